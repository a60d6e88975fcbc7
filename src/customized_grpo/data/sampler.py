"""Which rows a training draws: a pure function of the seed and of how many were drawn before."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from customized_grpo.seeding import generator


def prompt_indices(count: int, first: int, n_prompts: int, seed: int) -> list[int]:
    """Return the rows of consecutive prompts of a training.

    Rows are visited in shuffled passes: every row once, in a new order, before any row is seen again.

    Args:
        count: Number of rows of the data set.
        first: Number of prompts that were drawn before.
        n_prompts: Number of prompts to draw.
        seed: The run's seed.
    """
    import torch

    # the prompts may take the end of one pass and the beginning of the next
    orders: dict[int, torch.Tensor] = {}
    chosen = []
    for position in range(first, first + n_prompts):
        epoch, place = divmod(position, count)
        if epoch not in orders:
            orders[epoch] = torch.randperm(count, generator=generator(seed, "order", epoch))
        chosen.append(int(orders[epoch][place]))
    return chosen


def row_of_pass(count: int, visit: int, seed: int, part: int) -> int:
    """Return the row of a manifest among several at its n-th visit, in shuffled passes.

    Args:
        count: Number of rows of the manifest.
        visit: How often a row of it was drawn before.
        seed: The run's seed.
        part: Number of the manifest: each has an order of its own.
    """
    import torch

    epoch, place = divmod(visit, count)
    order = torch.randperm(count, generator=generator(seed, "order", part, epoch))
    return int(order[place])


def count_repeats(rows: Sequence[Hashable]) -> list[int]:
    """Return for each of an iteration's rows how often the same one comes before it.

    A pass over the rows may end within an iteration, and the next one begin with a row that was drawn
    already; with fewer rows than prompts this is so for every row.
    """
    counts: dict[Hashable, int] = {}
    repeats = []
    for row in rows:
        repeats.append(counts.get(row, 0))
        counts[row] = repeats[-1] + 1
    return repeats
