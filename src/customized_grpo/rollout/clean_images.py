"""The rollout of NFT and AWM: groups of samples of which only the clean end is kept.

Nothing is asked of the way there, so the sampler may draw noise in its steps or none, and few steps will do.

Shapes: P prompts, G samples of each, N = P x G samples, B of them in a batch, L tokens of C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, MutableSequence, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from customized_grpo.data.sampler import count_repeats
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.policies.policy import Policy
from customized_grpo.rollout.batches import sample_conditioning, samples_of_groups
from customized_grpo.rollout.collect import NoiseKey, batches_with_noise
from customized_grpo.rollout.denoise import draw_clean
from customized_grpo.rollout.sampler import Sampler, StepPlan

if TYPE_CHECKING:
    from customized_grpo.config.schema import RolloutConfig
    from customized_grpo.data.examples import Example
    from customized_grpo.rollout.encoding import PromptEncoder


@dataclass(frozen=True)
class CleanSamples:
    """N samples in whole groups, G of each of P prompts, and the noise levels at which they are trained.

    Attributes:
        conditionings: Conditioning of each prompt [P], a single sample each; sample n belongs to prompt
            n // G.
        buckets: Bucket of each prompt [P]; only samples of one bucket can be in one model call.
        group_size: G.
        progress: Progress of the K noise levels [K], ascending in [0, 1), see `algorithms.forward_process`.
        sigmas: The levels themselves [K].
        clean: Latents of the finished samples [N, L, C], fp32.
        images: Decoded samples [N, 3, H, W] in [0, 1].
        prompt_ids: Id of each prompt [P].
        first_numbers: Number of each group's first sample among those of its prompt in the iteration [P].
        noise_key: Selects the noise that is added.
    """

    conditionings: MutableSequence[Conditioning]
    buckets: MutableSequence[Hashable]
    group_size: int
    progress: Tensor
    sigmas: Tensor
    clean: Tensor
    images: Tensor
    prompt_ids: MutableSequence[str]
    first_numbers: MutableSequence[int]
    noise_key: NoiseKey

    def __len__(self) -> int:
        return len(self.images)

    @property
    def n_trained(self) -> int:
        """Return K."""
        return len(self.sigmas)

    def replace_groups(self, places: Sequence[int], others: CleanSamples) -> None:
        """Put groups of other samples, with the same levels and key, in the place of some of these.

        Args:
            places: Numbers of the groups that are replaced, one for each group of the others.
            others: The groups that take their places, in this order.
        """
        samples = samples_of_groups(places, self.group_size)
        self.clean[samples] = others.clean
        self.images[samples] = others.images
        for number, place in enumerate(places):
            self.conditionings[place] = others.conditionings[number]
            self.buckets[place] = others.buckets[number]
            self.prompt_ids[place] = others.prompt_ids[number]
            self.first_numbers[place] = others.first_numbers[number]

    def release(self) -> None:
        """Free nothing: no graphs are kept."""

    def noise(self, policy: Policy, level: int, samples: slice) -> Tensor:
        """Return the noise that samples get at the level of that number [B, L, C].

        It depends on the sample and the level, not on the batch: the old and the trained policy see the same,
        and so does every pass over the iteration.
        """
        generators = []
        for sample in range(samples.start, samples.stop):
            # sample of the N -> its prompt, and its place in the group
            prompt, place = divmod(sample, self.group_size)
            # A prompt that was drawn twice has two groups: the noise goes by the number among all its
            # samples.
            number = self.first_numbers[prompt] + place
            generators.append(self.noise_key.generator(f"level {level}", self.prompt_ids[prompt], number))
        # A batch is of one bucket, so the first prompt's size is everyone's.
        conditioning = self.conditionings[samples.start // self.group_size]
        return policy.noise(generators, conditioning.height, conditioning.width)


@torch.no_grad()
def collect_clean(
    policy: Policy,
    sampler: Sampler,
    examples: Sequence[Example],
    config: RolloutConfig,
    *,
    encoder: PromptEncoder,
    group_size: int,
    plan: StepPlan,
    progress: Tensor,
    sigmas: Tensor,
    noise_key: NoiseKey,
    repeats: Sequence[int] | None = None,
    before_batch: Callable[[], None] = lambda: None,
    on_batch: Callable[[slice, Tensor], None] = lambda samples, images: None,
) -> CleanSamples:
    """Draw `group_size` samples for each example.

    Args:
        policy: The policy, with the adapter that draws.
        sampler: The recipe's sampler.
        examples: P prompts; those of different buckets are denoised apart.
        config: The recipe's rollout section.
        encoder: Encodes the examples; knows the size of the images.
        group_size: G.
        plan: Which steps draw noise; none is trained.
        progress: Progress of the levels at which the samples will be trained [K].
        sigmas: The levels themselves [K].
        noise_key: Selects the random numbers.
        repeats: As in `collect`.
        before_batch: Called before every batch; may raise to stop.
        on_batch: Called after every batch with its samples, a range of the N, and their images
            [B, 3, H, W], so that scoring can begin.
    """
    conditionings = encoder(examples)
    if repeats is None:
        repeats = count_repeats([example.id for example in examples])
    clean: list[Tensor] = []
    images: list[Tensor] = []
    for samples, noise in batches_with_noise(examples, config, group_size, noise_key, repeats):
        before_batch()
        conditioning = sample_conditioning(conditionings, group_size, samples)
        x = policy.noise(noise.initial, conditioning.height, conditioning.width)
        x = draw_clean(policy, sampler, conditioning, x, noise.steps, plan.noisy)
        clean.append(x)
        images.append(policy.decode(x, conditioning.height, conditioning.width))
        on_batch(samples, images[-1])
    return CleanSamples(
        conditionings=conditionings,
        buckets=[example.bucket for example in examples],
        group_size=group_size,
        progress=progress,
        sigmas=sigmas,
        clean=torch.cat(clean),
        images=torch.cat(images),
        prompt_ids=[example.id for example in examples],
        # The second group of a prompt goes on counting where the first one ended.
        first_numbers=[repeat * group_size for repeat in repeats],
        noise_key=noise_key,
    )
