"""From examples to conditionings; with a cache every prompt and its references are encoded only once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

from customized_grpo.policies.conditioning_cache import ConditioningCache, encoders_hash

if TYPE_CHECKING:
    from customized_grpo.config.schema import ModelConfig
    from customized_grpo.data.examples import Example
    from customized_grpo.policies.conditioning import Conditioning
    from customized_grpo.policies.policy import Policy


class PromptEncoder:
    """Encodes examples one at a time, so that the encoding of an example depends on nothing else.

    Then neither the other examples of a batch, nor the number of processes, nor the contents of a cache
    change a sample by a bit.

    Args:
        policy: Its encoders are used.
        size: Height and width of the images to generate, in pixels.
        cache: Where encodings are stored; None encodes again each time.
    """

    def __init__(self, policy: Policy, size: tuple[int, int], cache: ConditioningCache | None = None) -> None:
        self.policy = policy
        self.size = size
        self.cache = cache

    @classmethod
    def from_config(cls, model: ModelConfig, policy: Policy) -> PromptEncoder:
        """Return the encoder of a recipe's `model` section.

        Raises:
            UserError: The folder of the cache cannot be written.
        """
        cache = None
        if model.cache is not None:
            cache = ConditioningCache(model.cache, encoders_hash(policy, model))
        return cls(policy, (model.height, model.width), cache)

    def __call__(self, examples: Iterable[Example]) -> list[Conditioning]:
        """Return the conditioning of each example, a single sample on the policy's device."""
        examples = list(examples)
        cached = [self._cached(example) for example in examples]
        # Nothing to encode: `encoding()` would bring the text encoders to the device for nothing.
        if None not in cached:
            return _shared([conditioning.to(self.policy.device) for conditioning in cached if conditioning])
        with self.policy.encoding():
            return _shared([self._cached_or_encoded(example) for example in examples])

    def ahead(self, examples: Sequence[Example]) -> list[Conditioning]:
        """Return the conditioning of each example, on the CPU: for batches that are drawn later."""
        return [conditioning.to("cpu") for conditioning in self(examples)]

    def fill_cache(
        self, examples: Iterable[Example], before_example: Callable[[], None] = lambda: None
    ) -> None:
        """Encode what the cache does not hold yet.

        Args:
            examples: What to encode.
            before_example: Called before each example; may raise to stop.
        """
        assert self.cache is not None, "there is no cache to fill"
        with self.policy.encoding():
            for example in examples:
                before_example()
                self._cached_or_encoded(example)

    def _cached_or_encoded(self, example: Example) -> Conditioning:
        cached = self._cached(example)
        return self._encode(example) if cached is None else cached.to(self.policy.device)

    def _cached(self, example: Example) -> Conditioning | None:
        return None if self.cache is None else self.cache.get(_key(example))

    def _encode(self, example: Example) -> Conditioning:
        encoded = self.policy.encode([example.prompt], [example.references], *self.size)
        if self.cache is not None:
            self.cache.put(_key(example), encoded)
        return encoded


def _shared(conditionings: Sequence[Conditioning]) -> list[Conditioning]:
    """Return the conditionings, those of one bucket with the same tensor objects where they share values."""
    first: dict[Hashable, Conditioning] = {}
    result = []
    for conditioning in conditionings:
        shapes = tuple((name, tensor.shape) for name, tensor in conditioning.shared.items())
        result.append(conditioning.share(first.setdefault(shapes, conditioning)))
    return result


def _key(example: Example) -> str:
    """Return a hash of the prompt and of the references' pixels."""
    digest = hashlib.sha256(example.prompt.encode())
    for image in example.references:
        # With the shape: the same bytes can be a wide image or a high one.
        digest.update(str(tuple(image.shape)).encode() + image.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
