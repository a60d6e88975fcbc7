"""Who samples what: whole groups, the same number for every process in every optimizer step.

Legend: P prompts of an iteration, U optimizer steps per pass over them, W processes, n = P / (U W).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from customized_grpo.errors import UserError


@dataclass(frozen=True)
class Share:
    """The prompts of one process.

    An optimizer step u trains the prompts u P / U to (u + 1) P / U, whatever W is; each process samples n
    of them in a row. So the same prompts meet in a step at any number of processes.

    Attributes:
        rank: Number of this process, from 0.
        world_size: W.
        steps: U.
    """

    rank: int = 0
    world_size: int = 1
    steps: int = 1

    def check(self, prompts: int) -> None:
        """Refuse a number of prompts that the processes cannot share evenly.

        Raises:
            UserError: P is not a multiple of U W.
        """
        parts = self.steps * self.world_size
        if prompts % parts:
            raise UserError(
                f"train.prompts_per_iteration={prompts} cannot be shared by {self.world_size} processes in "
                f"{self.steps} updates: every update needs the same number of whole groups of each",
                f"Use a multiple of {parts}.",
            )

    def prompts(self, total: int) -> list[int]:
        """Return which of the P prompts of an iteration are this process's: [U n], step after step."""
        per_step = total // self.steps
        mine = per_step // self.world_size
        starts = (step * per_step + self.rank * mine for step in range(self.steps))
        return [start + number for start in starts for number in range(mine)]

    def in_order(self, gathered: Tensor) -> Tensor:
        """Bring what was gathered from all processes [W U n, ...] into the iteration's order [U W n, ...].

        Rows may be prompts or the samples of prompts, as long as every process gave equally many.
        """
        parts = gathered.unflatten(0, (self.world_size, self.steps, -1))
        return parts.transpose(0, 1).flatten(0, 2)

    def own(self, rows: int) -> slice:
        """Return which of the rows of one optimizer step, those of all processes, are this process's."""
        mine = rows // self.world_size
        return slice(self.rank * mine, (self.rank + 1) * mine)


def padded_block(total: int, rank: int, world_size: int) -> list[int]:
    """Return the items of one process, in blocks of equal length; the last item fills up the last blocks.

    For work whose number of model calls must be equal everywhere, such as an evaluation: gathered and cut to
    `total`, the blocks are the items in order.
    """
    length = -(-total // world_size)
    return [min(item, total - 1) for item in range(rank * length, (rank + 1) * length)]
