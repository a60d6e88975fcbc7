"""How an iteration's prompts are partitioned over processes.

Every process gets whole groups, the same number in every update.

Legend: P prompts of an iteration, G samples of each, U updates (optimizer steps per pass over the iteration),
W processes, n = P / (U W) prompts of one process in one update.
"""

from __future__ import annotations

from dataclasses import dataclass

from customized_grpo.errors import UserError


@dataclass(frozen=True)
class Partition:
    """The partition as one process sees it.

    Update u trains the prompts u P / U to (u + 1) P / U of the iteration, whatever W is; each process samples
    n consecutive ones of them. So the same prompts meet in an update at any number of processes.

    Attributes:
        rank: Number of this process, from 0.
        world_size: W.
        updates: U.
    """

    rank: int = 0
    world_size: int = 1
    updates: int = 1

    def check(self, n_prompts: int) -> None:
        """Refuse a number of prompts that cannot be partitioned evenly.

        Raises:
            UserError: P is not a multiple of U W.
        """
        parts = self.updates * self.world_size
        if n_prompts % parts:
            raise UserError(
                f"train.prompts_per_iteration={n_prompts} cannot be shared by {self.world_size} processes in "
                f"{self.updates} updates: every update needs the same number of whole groups of each",
                hint=f"Use a multiple of {parts}.",
            )

    def own_prompts(self, n_prompts: int) -> list[int]:
        """Return which of an iteration's P prompts are this process's: [U n], update after update."""
        per_update = n_prompts // self.updates
        own = per_update // self.world_size
        prompts: list[int] = []
        for update in range(self.updates):
            # prompts of the iteration -> of one update, all processes -> of this process
            first = update * per_update + self.rank * own
            prompts += range(first, first + own)
        return prompts

    def own_rows(self, n_rows: int) -> slice:
        """Return which rows of one update, those of all processes, are this process's."""
        own = n_rows // self.world_size
        # Within an update the rows of one process are neighbours, process after process.
        return slice(self.rank * own, (self.rank + 1) * own)


def padded_block(n_items: int, rank: int, world_size: int) -> list[int]:
    """Return the items of one process, in blocks of equal length; the last item fills up the last blocks.

    For work whose number of model calls must be equal everywhere, such as an evaluation: gathered and cut to
    `n_items`, the blocks are the items in order.
    """
    # The repeated items are dropped again by the caller, who cuts to `n_items`.
    length = -(-n_items // world_size)  # rounded up
    return [min(item, n_items - 1) for item in range(rank * length, (rank + 1) * length)]
