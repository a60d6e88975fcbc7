"""What a resumed run finds of its own records: the lines of metrics.jsonl and the scores of evaluations.

A checkpoint is saved after both have reached the disk, so that nothing up to its iteration is missing, unless
a disk or a hand has damaged it since. What is missing is never guessed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from customized_grpo.errors import UserError
from customized_grpo.evaluation.scores import read_scores
from customized_grpo.reporting.metrics import read_metrics
from customized_grpo.runs.folder import RunFolder

METRICS = "metrics.jsonl"
EVALUATIONS = "evaluations"

LINES_KEY = "metrics"
"""Key of --allow-change for lines of training iterations that are gone."""

EVALUATIONS_KEY = "evaluations"
"""Key of --allow-change for evaluations that are gone."""


@dataclass(frozen=True)
class Records:
    """What is there of a run's records, up to the iteration of its checkpoint.

    Attributes:
        evaluated: Iterations whose evaluation is whole: its scores are there, and its line, written last.
        missing_lines: Iterations whose line of training is not in metrics.jsonl.
    """

    evaluated: Collection[int]
    missing_lines: Sequence[int]


def read_records(folder: RunFolder, iteration: int) -> Records:
    """Return what is there of a run's records up to an iteration.

    Raises:
        UserError: metrics.jsonl is damaged in its middle.
    """
    path = folder.path / METRICS
    lines = read_metrics(path) if path.is_file() else []
    # A line counts by its iteration, wherever it stands in the file.
    trained = {line["iteration"] for line in lines if line.get("kind") == "train"}
    evaluated = {line["iteration"] for line in lines if line.get("kind") == "eval"}
    return Records(
        evaluated=[
            number for number in range(iteration + 1) if number in evaluated and _is_whole(folder, number)
        ],
        # from 1, as a line counts finished iterations
        missing_lines=[number for number in range(1, iteration + 1) if number not in trained],
    )


def scores_file(iteration: int) -> str:
    """Return the name, in the run folder, of the scores of an evaluation."""
    return f"{EVALUATIONS}/iteration_{iteration:06d}.json"


def set_aside(folder: RunFolder, iteration: int) -> Path | None:
    """Move the scores of all evaluations out of the way, where later ones cannot be compared with them.

    Returns:
        Where they are now; None if there were none.
    """
    path = folder.path / EVALUATIONS
    if not path.is_dir():
        return None
    # The same iteration may be set aside several times.
    attempt = 1 + sum(1 for _ in folder.path.glob(f"{EVALUATIONS}-until-{iteration:06d}-*"))
    return path.rename(folder.path / f"{EVALUATIONS}-until-{iteration:06d}-{attempt}")


def _is_whole(folder: RunFolder, iteration: int) -> bool:
    try:
        read_scores(folder.path / scores_file(iteration))
    except UserError:
        return False
    return True


def check_records(records: Records, history: Sequence[int], allowed: Collection[str]) -> list[str]:
    """Return what is missing and allowed to be, one sentence each.

    The evaluations of the base and of the checkpoint's own iteration are not asked for here: they can be made
    again.

    Args:
        records: What is there.
        history: Iterations of the evaluations that the checkpoint knows of.
        allowed: Keys of --allow-change.

    Raises:
        UserError: Something else is missing.
    """
    # By the checkpoint's history: evaluations later than it are done again anyway.
    lost = [number for number in history if number not in records.evaluated]
    problems = {
        LINES_KEY: ("lines of training in metrics.jsonl", records.missing_lines),
        EVALUATIONS_KEY: ("scores of evaluations", lost),
    }
    missing = {}
    for key, (what, iterations) in problems.items():
        if iterations:
            numbers = ", ".join(map(str, iterations))
            missing[key] = f"{what} are missing or damaged, of iteration {numbers}"
    refused = [key for key in missing if key not in allowed]
    if refused:
        keys = " ".join(f"--allow-change {key}" for key in refused)
        raise UserError(
            "cannot resume exactly:\n  " + "\n  ".join(missing[key] for key in refused),
            hint=f"Restore the files from a copy, or go on without them: {keys}.",
        )
    return list(missing.values())
