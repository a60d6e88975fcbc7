"""Rewards of a user's own, as the recipes of these tests name them; on PYTHONPATH as `own_rewards`."""

from __future__ import annotations

import os
import signal
import time
import zlib
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import SecretStr

from customized_grpo.errors import UserError
from customized_grpo.rewards import FunctionReward, ScoringBatch


def _brightness(batch: ScoringBatch) -> torch.Tensor:
    return batch.images.double().mean(dim=(1, 2, 3)).float().cpu()  # fp32 sums would depend on the layout


brightness = FunctionReward("brightness", "quality", _brightness)


class Own:
    """A reward with an option."""

    kind: Literal["quality"] = "quality"
    name = "own"

    def __init__(self, **options: Any) -> None:
        self.options = options

    def score(self, batch: ScoringBatch) -> torch.Tensor:
        return _brightness(batch)

    def fingerprint(self) -> dict[str, Any]:
        plain = {key: value for key, value in self.options.items() if not isinstance(value, SecretStr)}
        return {"name": self.name, "kind": self.kind, **plain}


class Slow(Own):
    """Takes `seconds`, and notes in the file `log` when it began."""

    def score(self, batch: ScoringBatch) -> torch.Tensor:
        if "log" in self.options:
            with open(self.options["log"], "a") as file:
                file.write(f"{len(batch)}\n")
        time.sleep(self.options["seconds"])
        return super().score(batch)


class Held(Own):
    """Notes in the file `log` when it began, and then waits for the file `until`."""

    def score(self, batch: ScoringBatch) -> torch.Tensor:
        with open(self.options["log"], "a") as file:
            file.write(f"{len(batch)}\n")
        while not Path(self.options["until"]).exists():
            time.sleep(0.01)
        return super().score(batch)


class Moody(Own):
    """Does what a row's meta says: scores it, cannot ("nan", "inf"), refuses, fails, leaves, or hangs."""

    def score(self, batch: ScoringBatch) -> torch.Tensor:
        scores = super().score(batch)
        for number, row in enumerate(batch.meta):
            mood = row.get("mood", "")
            if mood == "refuses":
                raise UserError(f"reward 'own': {batch.label(number)} lacks something", hint="Give it.")
            if mood == "fails":
                raise ValueError("no such file: /home/somebody/weights.bin")
            if mood == "leaves":
                raise SystemExit(3)
            if mood == "is interrupted":
                raise KeyboardInterrupt
            if mood == "hangs":
                time.sleep(row["seconds"])
                continue
            if mood:
                scores[number] = float(mood)
        return scores


class Dies(Own):
    """Kills its process while scoring, as often as there are files left in the folder `lives`."""

    def score(self, batch: ScoringBatch) -> torch.Tensor:
        for life in Path(self.options["lives"]).iterdir():
            life.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(batch)


class Environment(Own):
    """Scores with the number in an environment variable."""

    def score(self, batch: ScoringBatch) -> torch.Tensor:
        return torch.full((len(batch),), float(os.environ["OWN_NUMBER"]))


class Unmade(Own):
    """Cannot be made; leaves the program if it is told to."""

    def __init__(self, leaves: bool = False) -> None:
        if leaves:
            raise SystemExit(0)
        raise FileNotFoundError("weights.bin")


def is_dull(row_id: str) -> bool:
    """Return whether `sometimes` cannot tell the images of a row apart: half of all rows."""
    return zlib.crc32(row_id.encode()) % 2 == 0


def _sometimes(batch: ScoringBatch) -> torch.Tensor:
    ids = [row["id"] for row in batch.meta]
    SCORED.extend(ids)
    dull = torch.tensor([is_dull(row_id) for row_id in ids])
    return torch.where(dull, 0.5, _brightness(batch))


SCORED: list[str] = []
"""Ids of the rows of all images that `sometimes` has scored in this process."""

sometimes = FunctionReward("sometimes", "prompt", _sometimes)
