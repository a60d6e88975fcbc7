"""Which prompts an iteration trains on: a pure function of seed and iteration, so nothing is saved."""

from __future__ import annotations

from customized_grpo.seeding import generator


def prompt_indices(count: int, per_iteration: int, iteration: int, seed: int) -> list[int]:
    """Return the rows of one iteration.

    Rows are visited in shuffled passes: every row once, in a new order, before any row is seen again.

    Args:
        count: Number of rows of the data set.
        per_iteration: Prompts of an iteration.
        iteration: Number of the iteration, from 0.
        seed: The run's seed.
    """
    import torch

    first = iteration * per_iteration
    orders: dict[int, list[int]] = {}
    chosen = []
    for position in range(first, first + per_iteration):
        epoch, place = divmod(position, count)
        if epoch not in orders:
            orders[epoch] = torch.randperm(count, generator=generator(seed, "order", epoch)).tolist()
        chosen.append(orders[epoch][place])
    return chosen
