"""Images without noise in the steps, as the evaluation, `generate` and the benchmarks draw them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from customized_grpo.algorithms.samplers import ODE
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.policies.policy import Policy
from customized_grpo.rollout.batches import sample_batches, sample_conditioning
from customized_grpo.rollout.sampler import Sampler
from customized_grpo.seeding import generator

if TYPE_CHECKING:
    from customized_grpo.data.examples import Example
    from customized_grpo.rollout.encoding import PromptEncoder


AHEAD = 64
"""Examples that are encoded together where text encoders wait on the CPU: .3 GiB of host memory of FLUX.1 at
512 pixels."""


@torch.no_grad()
def sample_images(
    policy: Policy,
    conditioning: Conditioning,
    generators: Sequence[torch.Generator],
    sigmas: Tensor,
    batch_size: int,
) -> Tensor:
    """Draw images of one bucket.

    Args:
        policy: The policy.
        conditioning: Conditioning of N samples.
        generators: One per sample [N], for its initial noise.
        sigmas: Noise levels [T + 1].
        batch_size: Samples drawn together.

    Returns:
        Images [N, 3, H, W] in [0, 1].
    """
    size = (conditioning.height, conditioning.width)
    ode = Sampler(ODE, 0.0, sigmas)
    images = []
    for start in range(0, len(generators), batch_size):
        batch = slice(start, min(start + batch_size, len(generators)))
        batch_conditioning = conditioning.index(batch)
        x = policy.noise(generators[batch], *size)
        for step in range(ode.n_steps):
            x, _ = ode.transition(policy, x, step, batch_conditioning)  # without noise the mean is the state
        images.append(policy.decode(x, *size))
    return torch.cat(images)


def sample_examples(
    policy: Policy,
    encoder: PromptEncoder,
    examples: Sequence[Example],
    sigmas: Tensor,
    *,
    samples_per_prompt: int,
    batch_size: int,
    seed: int,
    purpose: str,
    before_batch: Callable[[], None] = lambda: None,
) -> Iterator[tuple[slice, Tensor]]:
    """Draw images for examples of any buckets.

    Args:
        policy: The policy.
        encoder: Encodes the examples: of a batch at a time, or of many batches where text encoders wait.
        examples: P prompts.
        sigmas: Noise levels [T + 1].
        samples_per_prompt: S.
        batch_size: Samples drawn together.
        seed: With `purpose`, the prompt's id and the image's number among the S, it determines the noise.
        purpose: A word that keeps the noise apart from that of other uses of the seed.
        before_batch: Called before every batch; may raise to stop.

    Yields:
        (samples, images): A range of the P x S samples, those of a prompt in a row, and their images
        [B, 3, H, W] in [0, 1].
    """
    buckets = [example.bucket for example in examples]
    all_samples = slice(0, len(examples) * samples_per_prompt)
    block = slice(0, 0)  # of examples, encoded together
    encoded: list[Conditioning] = []
    for samples in sample_batches(buckets, samples_per_prompt, all_samples, batch_size):
        before_batch()
        first_prompt = samples.start // samples_per_prompt
        # One past the prompt of the last sample.
        end_prompt = (samples.stop - 1) // samples_per_prompt + 1
        if end_prompt > block.stop:
            is_costly = policy.placement.text_encoders_wait  # each turn of theirs moves the whole transformer
            # The block may end beyond the last example; a slice of a list does not mind.
            block = slice(first_prompt, max(end_prompt, first_prompt + AHEAD) if is_costly else end_prompt)
            encoded = encoder.ahead(examples[block]) if is_costly else encoder(examples[block])
        # counted from the block's first example on
        offset = block.start * samples_per_prompt
        conditioning = sample_conditioning(
            encoded, samples_per_prompt, slice(samples.start - offset, samples.stop - offset)
        ).to(policy.device)
        generators = []
        for sample in range(samples.start, samples.stop):
            prompt, number = divmod(sample, samples_per_prompt)
            generators.append(generator(seed, purpose, examples[prompt].id, number))
        yield samples, sample_images(policy, conditioning, generators, sigmas, batch_size)
