"""From examples to conditionings; with a cache every prompt and its references are encoded only once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from customized_grpo.policies.conditioning_cache import ConditioningCache, encoders_hash

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.data.examples import Example
    from customized_grpo.policies.conditioning import Conditioning
    from customized_grpo.policies.policy import Policy


class PromptEncoder:
    """Encodes examples one at a time, so that what an example is encoded to depends on nothing else.

    Neither its company, nor the number of processes, nor what a cache holds then changes a sample by a bit.

    Args:
        policy: Whose encoders are used.
        size: Height and width of the images to generate, in pixels.
        cache: Where encodings are kept; None encodes again each time.
    """

    def __init__(self, policy: Policy, size: tuple[int, int], cache: ConditioningCache | None = None) -> None:
        self.policy, self.size, self.cache = policy, size, cache

    @classmethod
    def of(cls, config: Config, policy: Policy) -> PromptEncoder:
        """Return the encoder of a recipe.

        Raises:
            UserError: The folder of the cache cannot be written.
        """
        model, folder = config.model, config.model.cache
        cache = None if folder is None else ConditioningCache(folder, encoders_hash(policy, model))
        return cls(policy, (model.height, model.width), cache)

    def __call__(self, examples: Iterable[Example]) -> list[Conditioning]:
        """Return the conditioning of each example, a single sample on the policy's device."""
        chosen = list(examples)
        kept = [self._kept(example) for example in chosen]
        if None not in kept:
            return [conditioning.to(self.policy.device) for conditioning in kept if conditioning]
        with self.policy.encoding():
            return [self._kept_or_encoded(example) for example in chosen]

    def fill_cache(self, examples: Iterable[Example], between: Callable[[], None] = lambda: None) -> None:
        """Encode what the cache does not hold yet; `between` is called before each and may raise to stop."""
        assert self.cache is not None, "there is no cache to fill"
        with self.policy.encoding():
            for example in examples:
                between()
                self._kept_or_encoded(example)

    def _kept_or_encoded(self, example: Example) -> Conditioning:
        kept = self._kept(example)
        return self._encode(example) if kept is None else kept.to(self.policy.device)

    def _kept(self, example: Example) -> Conditioning | None:
        return None if self.cache is None else self.cache.get(_key(example))

    def _encode(self, example: Example) -> Conditioning:
        encoded = self.policy.encode([example.prompt], [example.references], *self.size)
        if self.cache is not None:
            self.cache.put(_key(example), encoded)
        return encoded


def _key(example: Example) -> str:
    """Return a hash of the prompt and of the references' pixels."""
    digest = hashlib.sha256(example.prompt.encode())
    for image in example.references:
        digest.update(str(tuple(image.shape)).encode() + image.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
