"""Held-out rows by subject: nothing of a subject that is evaluated is ever trained on."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from customized_grpo.data.manifest import Row
from customized_grpo.errors import UserError
from customized_grpo.seeding import derive_seed

MIN_HELD_OUT = 2  # intervals resample subjects


@dataclass(frozen=True)
class HeldOut:
    """How many subjects to hold out.

    Attributes:
        amount: A number of subjects, or a share of them in percent.
        is_percent: Which of the two.
    """

    amount: float
    is_percent: bool

    @classmethod
    def parse(cls, text: str) -> HeldOut:
        """Read "8" as eight subjects and "10%" as a tenth of them.

        Raises:
            UserError: It is neither, or not between them.
        """
        match = re.fullmatch(r"(?P<count>\d+)|(?P<percent>\d+(\.\d+)?)%", text.strip())
        if match and match["count"]:
            return cls(int(match["count"]), is_percent=False)
        if match and 0 < float(match["percent"]) < 100:
            return cls(float(match["percent"]), is_percent=True)
        raise UserError(
            f"--held-out {text}: not a number of subjects, nor a share of them",
            hint="Give for example 24, or 10%.",
        )

    def count(self, subjects: int) -> int:
        """Return how many of the subjects that is, a share rounded up.

        Raises:
            UserError: Fewer than two would be held out, or none would be left.
        """
        wanted = math.ceil(self.amount * subjects / 100) if self.is_percent else int(self.amount)
        if not MIN_HELD_OUT <= wanted < subjects:
            raise UserError(
                f"--held-out would hold out {wanted} of {subjects} subjects",
                hint=f"Hold out at least {MIN_HELD_OUT} (eight or more for reliable intervals), "
                "and leave some to train on.",
            )
        return wanted


def subject_of(row: Row) -> str:
    """Return the subject of a row; a row that names none is a subject of its own."""
    return row.subject or row.id


def split_by_subject(rows: Sequence[Row], held_out: HeldOut, seed: int) -> tuple[list[Row], list[Row]]:
    """Return the rows to train on and the rows to hold out, each in their order.

    The subjects are ordered by a hash of seed and name, so a subject that is added or removed moves hardly
    any other between the two.

    Raises:
        UserError: As `HeldOut.count`.
    """
    subjects = sorted({subject_of(row) for row in rows}, key=lambda name: (derive_seed(seed, name), name))
    chosen = set(subjects[: held_out.count(len(subjects))])
    train = [row for row in rows if subject_of(row) not in chosen]
    return train, [row for row in rows if subject_of(row) in chosen]
