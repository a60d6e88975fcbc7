"""Run by test_stopped_twice.py: short trainings, each of which gets SIGTERM twice in its first rollout.

usage: stopped_twice.py FOLDER SECONDS...

One training for each number of seconds between the two signals, in FOLDER/SECONDS, in a forked process. Their
exit statuses are written to FOLDER/statuses.json, what one printed on stderr to FOLDER/SECONDS.txt.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import preloaded  # noqa: F401 what the forks would else import again
from customized_grpo.cli.main import main
from customized_grpo.training.drawing import Drawing
from interrupted_train import in_child


def train(folder: Path, seconds: str) -> int:
    """Train into FOLDER/SECONDS, signalled twice."""
    collect = Drawing.collect

    def signalled(self: Drawing, *args: object) -> object:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(float(seconds))
        os.kill(os.getpid(), signal.SIGTERM)
        return collect(self, *args)

    Drawing.collect = signalled
    os.dup2(os.open(folder / f"{seconds}.txt", os.O_WRONLY | os.O_CREAT), 2)
    return main(["train", "toybox-smoke", f"run.dir={folder / seconds}"])


if __name__ == "__main__":
    root = Path(sys.argv[1])
    statuses = {}
    for seconds in sys.argv[2:]:
        statuses[seconds] = in_child(lambda seconds=seconds: train(root, seconds))  # type: ignore[misc]
    (root / "statuses.json").write_text(json.dumps(statuses))
