"""Which samples are drawn or trained together, and which prompt a sample belongs to.

Two index spaces meet here: P prompts, and their N = P x G samples, G of each prompt in a row. Sample n
belongs to prompt n // G.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

from customized_grpo.policies.conditioning import Conditioning

if TYPE_CHECKING:
    from customized_grpo.data.examples import Example


def repeat_examples(examples: Sequence[Example], group_size: int) -> list[Example]:
    """Return the example of each sample [N], given those of the prompts [P]."""
    samples: list[Example] = []
    for example in examples:
        samples += [example] * group_size
    return samples


def samples_of_groups(groups: Sequence[int], group_size: int) -> list[int]:
    """Return the numbers of the samples of these groups, group after group."""
    samples: list[int] = []
    for group in groups:
        samples += range(group * group_size, (group + 1) * group_size)
    return samples


def sample_batches(
    buckets: Sequence[Hashable], group_size: int, samples: slice, size: int
) -> Iterator[slice]:
    """Split samples into consecutive batches of at most `size` samples of one bucket.

    A group may be cut, and a batch may hold several groups.

    Args:
        buckets: Bucket of each prompt [P]; one model call takes samples of one bucket only.
        group_size: G.
        samples: The samples to split, a range of the N.
        size: Largest number of samples in a batch.
    """
    start = samples.start
    while start < samples.stop:
        bucket = buckets[start // group_size]
        stop = start + 1
        # `stop` is a sample; its bucket is that of prompt stop // G
        while stop < min(start + size, samples.stop) and buckets[stop // group_size] == bucket:
            stop += 1
        yield slice(start, stop)
        start = stop


def count_batches(examples: Sequence[Example], group_size: int, size: int) -> int:
    """Return the number of batches of at most `size` samples that a group of each example makes."""
    buckets = [example.bucket for example in examples]
    all_samples = slice(0, len(examples) * group_size)
    # Not a division: a batch also ends where the bucket changes.
    return sum(1 for _ in sample_batches(buckets, group_size, all_samples, size))


def sample_conditioning(
    conditionings: Sequence[Conditioning], group_size: int, samples: slice
) -> Conditioning:
    """Return the conditioning of samples of one bucket, given that of each prompt.

    Args:
        conditionings: Conditioning of each prompt [P], a single sample each.
        group_size: G.
        samples: A range of the N samples, all of one bucket.
    """
    first_prompt = samples.start // group_size
    # The range ends before `stop`, which may be the first sample of the next prompt.
    last_prompt = (samples.stop - 1) // group_size
    parts = []
    for prompt in range(first_prompt, last_prompt + 1):
        # the prompt's samples in the range: indices on the CPU would make the host wait for the device
        first = max(samples.start, prompt * group_size)
        end = min(samples.stop, (prompt + 1) * group_size)
        parts.append(conditionings[prompt].repeat_interleave(end - first))
    return Conditioning.cat(parts)
