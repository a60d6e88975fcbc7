"""From examples to conditionings; with a cache every prompt and its references are encoded only once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from customized_grpo.policies.conditioning_cache import ConditioningCache, encoders_hash

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.data.examples import Example
    from customized_grpo.policies.base import Conditioning, Policy
    from customized_grpo.policies.pipeline_policy import PipelinePolicy


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
    def of(cls, config: Config, policy: PipelinePolicy) -> PromptEncoder:
        """Return the encoder of a recipe.

        Raises:
            UserError: The folder of the cache cannot be written.
        """
        model, folder = config.model, config.model.cache
        cache = None if folder is None else ConditioningCache(folder, encoders_hash(policy, model))
        return cls(policy, (model.height, model.width), cache)

    def __call__(self, examples: Iterable[Example]) -> list[Conditioning]:
        """Return the conditioning of each example, a single sample on the policy's device."""
        return [self._one(example) for example in examples]

    def fill_cache(self, examples: Iterable[Example], between: Callable[[], None] = lambda: None) -> None:
        """Encode what the cache does not hold yet; `between` is called before each and may raise to stop."""
        assert self.cache is not None, "there is no cache to fill"
        for example in examples:
            between()
            if self.cache.get(_key(example)) is None:
                self._one(example)

    def _one(self, example: Example) -> Conditioning:
        if self.cache is None:
            return self._encode(example)
        kept = self.cache.get(_key(example))
        if kept is None:
            encoded = self._encode(example)
            self.cache.put(_key(example), encoded)
            return encoded
        return kept.to(self.policy.device)

    def _encode(self, example: Example) -> Conditioning:
        return self.policy.encode([example.prompt], [example.references], *self.size)


def _key(example: Example) -> str:
    """Return a hash of the prompt and of the references' pixels."""
    digest = hashlib.sha256(example.prompt.encode())
    for image in example.references:
        digest.update(str(tuple(image.shape)).encode() + image.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
