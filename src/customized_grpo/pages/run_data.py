"""The content of a run folder as the report needs it: absent files are empty, damaged files a user error."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from customized_grpo.config.yaml_text import read_yaml
from customized_grpo.errors import UserError
from customized_grpo.files import read_json
from customized_grpo.links import leads_out
from customized_grpo.pages.plots.numbers import Measurement
from customized_grpo.pages.sample_images import Samples, read_samples
from customized_grpo.reporting.ending import ENDED
from customized_grpo.reporting.metrics import Record, iteration_of, read_metrics

FILES = (
    "config.yaml",
    "versions.json",
    "metrics.jsonl",
    "summary.json",
    ENDED,
    "schedule.json",
    "held_out.json",
    "samples/index.json",
)
"""Files of a run that a report reads, besides the images that the last one names."""

_OF_COMPARISON = re.compile(r"/runs/([^/]+)/seed_(\d+)$")
"""Where `cgrpo compare` keeps its runs: the arm and the seed."""


@dataclass(frozen=True)
class BeforeAfter:
    """One metric before and after training.

    Attributes:
        metric: Its name.
        base: Before training.
        tuned: After training, or at the latest evaluation.
        difference: tuned - base; if it has an interval, a paired one.
    """

    metric: str
    base: Measurement
    tuned: Measurement
    difference: Measurement


@dataclass(frozen=True)
class RunData:
    """The content of a run folder.

    Attributes:
        name: Name of the folder; of a run of a comparison, its arm and its seed.
        config: The resolved recipe.
        config_text: The same as YAML.
        versions: Versions of the package and its libraries, and the commit.
        train: Records of training iterations of metrics.jsonl.
        evals: Records of evaluations.
        events: Records of events, such as alarms.
        comparisons: Each held-out metric before and after training, by name.
        summary: summary.json; empty while the run is not finished.
        ended: ended.json, why the run ended before it was finished; empty if it has not written that.
        samples: The sample images; None when there are none.
        prompt_weights: The schedule's weights of every denoising step, as the run wrote them down when it
            started, so that a report needs neither torch nor the code of a foreign schedule.
        held_out: What the held-out rows share with the training rows; empty if the run does not say.
    """

    name: str
    config: dict[str, Any]
    config_text: str
    versions: dict[str, Any]
    train: list[Record]
    evals: list[Record]
    events: list[Record]
    comparisons: dict[str, BeforeAfter]
    summary: dict[str, Any]
    ended: dict[str, Any]
    samples: Samples | None
    prompt_weights: list[float] | None
    held_out: dict[str, Any]

    def setting(self, path: str) -> Any:
        """Return a resolved setting such as "train.iterations"; None when the config does not have it."""
        value: Any = self.config
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                return None
            value = value[key]
        return value

    @property
    def commit(self) -> str | None:
        """Return the commit that trained it; None when it is not known."""
        git = self.versions.get("git")
        return str(git["commit"]) if isinstance(git, dict) and git.get("commit") else None

    @property
    def is_modified(self) -> bool:
        """Return whether there were changes beside the commit."""
        git = self.versions.get("git")
        return bool(git.get("modified")) if isinstance(git, dict) else False

    @property
    def held_out_rows(self) -> str:
        """Return in words what is known of the held-out rows: that their subjects are new, or not."""
        if not self.held_out:
            return "held-out rows"
        n_subjects = len(self.held_out.get("shared_subjects", ()))
        n_images = self.held_out.get("shared_images", 0)
        if n_subjects == n_images == 0:
            return "subjects it never saw"
        subjects = f"{n_subjects} subject{'' if n_subjects == 1 else 's'}"
        images = f"{n_images} image{'' if n_images == 1 else 's'}"
        return f"rows that share {subjects} and {images} with the training rows"

    @property
    def last(self) -> Record:
        """Return the newest record with counters, of training or evaluation; empty if there is none."""
        # the last record of the file may be an event, which counts no rollouts
        newest = [*self.evals[-1:], *self.train[-1:]]
        return max(newest, key=iteration_of, default={})


def read_run(run_dir: Path) -> RunData:
    """Read a run folder, finished or not.

    Raises:
        UserError: No such run, or a file of it is damaged; the message names the file.
    """
    config_path = run_dir / "config.yaml"
    if not config_path.is_file():
        raise UserError(f"{run_dir} is not a run folder: it has no config.yaml")
    # a run folder from elsewhere could link to private files, which a report would then show
    for name in FILES:
        if leads_out(run_dir / name, run_dir):
            raise UserError(
                f"{run_dir / name} is a link out of the run folder; a report shows nothing from elsewhere",
                hint="Put the file itself in the place of the link, or remove it.",
            )
    try:
        config_text = config_path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{config_path} is damaged: {error}") from error
    config, mistakes = read_yaml(config_text)
    if mistakes or not isinstance(config, dict):
        reason = mistakes[0].text if mistakes else "a mapping is expected"
        raise UserError(f"{config_path}: {reason}")
    records = read_metrics(run_dir / "metrics.jsonl")
    evals = [record for record in records if record.get("kind") == "eval"]
    evals.sort(key=iteration_of)  # the base may have been measured again, late
    summary = _read_object(run_dir / "summary.json")
    return RunData(
        # resolved, because "." has no name
        name=_name(run_dir.resolve()),
        config=config,
        config_text=config_text,
        versions=_read_object(run_dir / "versions.json"),
        train=[record for record in records if record.get("kind") == "train"],
        evals=evals,
        events=[record for record in records if record.get("kind") == "event"],
        comparisons=_from_summary(run_dir / "summary.json", summary) if summary else _from_evals(evals),
        summary=summary,
        ended=_read_object(run_dir / ENDED),
        samples=read_samples(run_dir / "samples"),
        prompt_weights=_read_weights(run_dir / "schedule.json"),
        held_out=_read_held_out(run_dir / "held_out.json"),
    )


def _name(folder: Path) -> str:
    """Return what a run is called: `seed_0` alone would be the name of a run of every arm."""
    of_comparison = _OF_COMPARISON.search(folder.as_posix())
    return f"{of_comparison[1]}, seed {of_comparison[2]}" if of_comparison else folder.name


def _read_object(path: Path) -> dict[str, Any]:
    """Return a JSON object; empty when there is no such file."""
    return read_json(path) if path.is_file() else {}


def _from_summary(path: Path, summary: dict[str, Any]) -> dict[str, BeforeAfter]:
    """Return the metrics that were measured before and after training."""
    comparisons = {}
    try:
        base = summary.get("base", {})
        tuned = summary.get("tuned", {})
        difference = summary.get("difference", {})
        for metric in base:
            if metric not in tuned or metric not in difference:
                continue
            entries = (base[metric], tuned[metric], difference[metric])
            # a NaN, which JSON does not have: nothing could be scored
            if any(entry["mean"] is None for entry in entries):
                continue
            before, after, change = map(_measurement, entries)
            comparisons[metric] = BeforeAfter(metric, before, after, change)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: every metric needs mean, low and high ({error!r})") from error
    return comparisons


def _measurement(entry: dict[str, Any]) -> Measurement:
    for name in ("mean", "low", "high"):
        value = entry[name]
        if value is not None and not _is_number(value):
            raise TypeError(f"{name} is {value!r}")
    return Measurement(entry["mean"], entry["low"], entry["high"])


def _is_number(value: object) -> bool:
    # Python counts True among the integers
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_weights(path: Path) -> list[float] | None:
    """Return the prompt weight of every step; None when the run wrote none."""
    weights = _read_object(path).get("prompt_weights")
    if weights is None:
        return None
    if not isinstance(weights, list) or not all(map(_is_number, weights)):
        raise UserError(f"{path} is damaged: prompt_weights must be a list of numbers")
    return weights


def _from_evals(evals: list[Record]) -> dict[str, BeforeAfter]:
    """Return the first against the latest evaluation of an unfinished run.

    They are not paired row by row, so the difference has no interval.
    """
    # without the base there is nothing to compare with
    if len(evals) < 2 or evals[0]["iteration"] != 0:
        return {}
    comparisons = {}
    for metric in evals[0]:
        # `_low` may also end the name of a metric; it is an interval's end only beside that metric
        ends_interval = metric.endswith(("_low", "_high")) and metric.rpartition("_")[0] in evals[0]
        # names without a slash are counters, such as rollouts
        if ends_interval or "/" not in metric:
            continue
        base = _from_record(evals[0], metric)
        tuned = _from_record(evals[-1], metric)
        if base is not None and tuned is not None:
            difference = Measurement(tuned.mean - base.mean, None, None)
            comparisons[metric] = BeforeAfter(metric, base, tuned, difference)
    return comparisons


def _from_record(record: Record, metric: str) -> Measurement | None:
    """Return a metric of an evaluation, with its interval if there is one; None if it was not measured."""
    mean = record.get(metric)
    if not isinstance(mean, int | float):
        return None
    low = record.get(f"{metric}_low")
    high = record.get(f"{metric}_high")
    return Measurement(mean, _float(low), _float(high))


def _float(value: object) -> float | None:
    return value if isinstance(value, int | float) else None


def _read_held_out(path: Path) -> dict[str, Any]:
    """Return what the held-out rows share with the training rows; empty when the run does not say."""
    shared = _read_object(path)
    subjects = shared.get("shared_subjects", [])
    if not isinstance(subjects, list) or not _is_number(shared.get("shared_images", 0)):
        raise UserError(f"{path} is damaged: shared_subjects must be a list, shared_images a number")
    return shared
