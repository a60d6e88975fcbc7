"""Run folders that are there already, read for a comparison; what cannot be compared is refused.

`cgrpo compare RUN RUN` trains nothing and loads no model: it reads the scores that each run has written of
its held-out images.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from customized_grpo.errors import UserError
from customized_grpo.evaluation.scores import HeldOutScores, read_scores
from customized_grpo.files import read_json
from customized_grpo.links import leads_out
from customized_grpo.pages.run_data import RunData, read_run
from customized_grpo.runs.checkpoints import STATE, CheckpointStore
from customized_grpo.runs.folder import is_run_folder

EVALUATIONS = "evaluations"
JUDGE = "judge/"
REWARD = "reward/"
SCORE = "score/"
JUDGES_CONTENT = "evaluation.judges"
"""Keys of a checkpoint's contents that say what the held-out judges are made of."""

HELD_OUT_CONTENT = "data.held_out"
"""Keys of a checkpoint's contents that say what the held-out rows and their images are."""

MODEL_CONTENT = "model.files"

DRAWN_WITH = {
    "steps": ("evaluation.steps", "rollout.steps"),
    "guidance": ("evaluation.guidance", "model.guidance"),
    "height": ("evaluation.height", "model.height"),
    "width": ("evaluation.width", "model.width"),
}
"""Settings that held-out images are drawn with: the evaluation's, or those of training where it has none."""


@dataclass(frozen=True)
class JudgedRun:
    """A run that was judged before training and at some later iteration.

    Attributes:
        name: Short, and of no other run of the comparison.
        folder: Its folder.
        data: Its records, recipe and images.
        iteration: Of the latest evaluation.
        base: Scores before training.
        final: Scores of the latest evaluation, of the same prompts and samples.
        contents: Fingerprints of what its recipe names, by key; empty where no checkpoint is there to say.
    """

    name: str
    folder: Path
    data: RunData
    iteration: int
    base: HeldOutScores
    final: HeldOutScores
    contents: Mapping[str, Any]

    @property
    def is_finished(self) -> bool:
        """Return whether the run has come to its end."""
        return bool(self.data.summary.get("finished"))

    def content(self, section: str) -> dict[str, Any]:
        """Return the fingerprints of a section."""
        return {key: value for key, value in self.contents.items() if key.startswith(section)}


def read_runs(folders: Sequence[Path]) -> list[JudgedRun]:
    """Read runs and check that they can be compared.

    Args:
        folders: Run folders, two or more; the first is the one that the others are compared with.

    Raises:
        UserError: There are fewer than two, one is there twice, is damaged or was not judged, or they were
            judged on other prompts or by other judges.
    """
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if not is_run_folder(folder):
            raise UserError(
                f"{folder} is not the folder of a run",
                hint="Give the folder that `cgrpo train` wrote: it has a config.yaml.",
            )
        if places.count(place) > 1:
            raise UserError(f"{folder} is given twice", hint="Compare it with another run.")
    if len(folders) < 2:
        raise UserError(
            "a comparison needs two runs or more",
            hint="Name another one. `cgrpo compare RECIPE`, with a recipe, trains what it compares.",
        )
    names = short_names(places)
    runs = [_read(folder, name) for folder, name in zip(folders, names, strict=True)]
    for other in runs[1:]:
        _check_comparable(runs[0], other)
    return runs


def short_names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of the paths that tell all of them apart, such as "ours/seed_0"."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names


def _read(folder: Path, name: str) -> JudgedRun:
    """Return a run with its first and its latest scores.

    Raises:
        UserError: It was not judged before and after, or a file is damaged.
    """
    files = {
        int(file.stem.rpartition("_")[2]): file for file in folder.glob(f"{EVALUATIONS}/iteration_*.json")
    }
    for file in files.values():
        if leads_out(file, folder):
            raise UserError(
                f"{file} is a link out of the run folder", hint="Put the file itself in its place."
            )
    latest = max(files, default=0)
    if 0 not in files or latest == 0:
        raise UserError(
            f"{folder} has no held-out scores of before and after training, so there is nothing to compare",
            hint="Held-out rows (data.held_out, or evaluation.prompts) are judged while a run trains.",
        )
    base = read_scores(files[0])
    final = read_scores(files[latest])
    if base.ids != final.ids:
        raise UserError(
            f"{folder}: its first and its last evaluation have different prompts, so it cannot be compared",
            hint="Its files were changed, or mixed with another run's: restore them, or train it again.",
        )
    return JudgedRun(name, folder, read_run(folder), latest, base, final, _contents(folder))


def _contents(folder: Path) -> dict[str, Any]:
    """Return the fingerprints in the newest checkpoint; empty without one."""
    store = CheckpointStore(folder / "checkpoints", keep=0)
    step = store.latest()
    if step is None:
        return {}
    # the file alone: the tensors of a checkpoint take long to verify, and are not needed
    state = read_json(folder / "checkpoints" / f"step_{step:06d}" / STATE)
    contents = state.get("contents")
    return contents if isinstance(contents, dict) else {}


def _check_comparable(first: JudgedRun, other: JudgedRun) -> None:
    """Refuse runs whose scores do not measure the same.

    Raises:
        UserError: They saw other held-out prompts, or other judges judged them.
    """
    pair = f"{first.folder} and {other.folder}"
    if first.final.ids != other.final.ids or first.final.subjects != other.final.subjects:
        common = len(set(first.final.ids) & set(other.final.ids))
        raise UserError(
            f"{pair} were judged on other held-out images, so they cannot be compared: "
            f"{len(first.final.ids)} and {len(other.final.ids)}, of which {common} are of the same prompt",
            hint="Judge both on one benchmark: `cgrpo benchmark run`, then `cgrpo benchmark compare`.",
        )
    if differs(first, other, HELD_OUT_CONTENT):
        raise UserError(
            f"{pair} were judged on held-out rows of the same names but with other contents, so they cannot "
            "be compared",
            hint="Judge both on one benchmark: `cgrpo benchmark run`, then `cgrpo benchmark compare`.",
        )
    different = _judges(first) != _judges(other) or differs(first, other, JUDGES_CONTENT)
    if different or not comparable_metrics([first, other]):
        raise UserError(
            f"{pair} were judged by other judges, so they cannot be compared",
            hint="Give both recipes the same evaluation.judges, or judge both on one benchmark: "
            "`cgrpo benchmark run`.",
        )


def drawn_with(run: JudgedRun) -> dict[str, Any]:
    """Return the settings with which a run draws its held-out images."""
    settings: dict[str, Any] = {}
    for name, (own, of_training) in DRAWN_WITH.items():
        value = run.data.setting(own)
        settings[name] = run.data.setting(of_training) if value is None else value
    return settings


def differs(first: JudgedRun, other: JudgedRun, section: str) -> bool:
    """Return whether the fingerprints of a section differ; False where a run does not know them."""
    if not first.contents or not other.contents:
        return False
    return first.content(section) != other.content(section)


def _judges(run: JudgedRun) -> Any:
    """Return what the recipe says of its judges, and which held-out measures they gave."""
    settings = run.data.setting("evaluation.judges"), run.data.setting("data.kind")
    return settings, sorted(name for name in run.final.columns if name.startswith(JUDGE))


def comparable_metrics(runs: Sequence[JudgedRun]) -> list[str]:
    """Return the held-out measures that mean the same in all runs and that enough subjects have.

    A reward means the same where the recipes give it the same settings; otherwise judges and monitors alone.
    """
    first = runs[0]
    same_rewards = all(_rewards(run) == _rewards(first) for run in runs)
    metrics = []
    for metric in first.final.columns:
        if metric.startswith((REWARD, SCORE)) and not same_rewards:
            continue
        if all(_is_measured(run, metric) for run in runs):
            metrics.append(metric)
    judged = [metric for metric in metrics if metric.startswith((JUDGE, REWARD))]
    return metrics if judged else []


def _rewards(run: JudgedRun) -> list[dict[str, Any]]:
    """Return the rewards of the recipe, but for where they run and what a failure does."""
    rewards = []
    for reward in run.data.setting("rewards") or ():
        rewards.append({key: value for key, value in reward.items() if key not in ("executor", "on_failure")})
    return rewards


def _is_measured(run: JudgedRun, metric: str) -> bool:
    has_both = metric in run.final.columns and metric in run.base.columns
    return has_both and run.final.is_measured(metric, run.base)


def same_base(runs: Sequence[JudgedRun]) -> bool:
    """Return whether all runs began from one model and one noise: the base's scores are then equal."""
    first = runs[0]
    metrics = comparable_metrics(runs)
    for run in runs[1:]:
        for metric in metrics:
            if not _equal(run.base.columns[metric], first.base.columns[metric]):
                return False
    return True


def _equal(some: Sequence[float], others: Sequence[float]) -> bool:
    """Return whether two columns are equal; NaN is equal to NaN."""
    pairs = zip(some, others, strict=True)
    return all(one == other or (math.isnan(one) and math.isnan(other)) for one, other in pairs)
