"""What the report reads from a run folder, as plain data; what is absent is empty, damage is a user error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from customized_grpo.config.yaml_text import read_yaml
from customized_grpo.errors import UserError
from customized_grpo.files import read_json
from customized_grpo.pages.plots.numbers import Interval
from customized_grpo.reporting.metrics import Record, read_metrics


@dataclass(frozen=True)
class Comparison:
    """One metric before and after training. With an interval, the difference is a paired one."""

    metric: str
    base: Interval
    tuned: Interval
    difference: Interval


@dataclass(frozen=True)
class Samples:
    """The sample pictures of a run: folder, one entry a row, and the iterations drawn."""

    folder: Path
    rows: Sequence[dict[str, str | None]]
    iterations: Sequence[int]


@dataclass(frozen=True)
class RunData:
    """A run folder, read. `train`, `evals` and `events` are the records of metrics.jsonl by kind.

    `prompt_weights` are the schedule's weights of every denoising step, as the run wrote them down when it
    started, so that a report needs neither torch nor the code of a foreign schedule.
    """

    name: str
    config: dict[str, Any]
    config_text: str
    versions: dict[str, Any]
    train: list[Record]
    evals: list[Record]
    events: list[Record]
    comparisons: dict[str, Comparison]
    summary: dict[str, Any]
    samples: Samples | None
    prompt_weights: list[float] | None

    def setting(self, path: str) -> Any:
        """A resolved setting such as "train.iterations"; None when the config does not have it."""
        value: Any = self.config
        for key in path.split("."):
            if not isinstance(value, dict) or key not in value:
                return None
            value = value[key]
        return value

    @property
    def last(self) -> Record:
        """The newest record with counters: train if there is one, else eval, else empty."""
        return max(
            (*self.evals[-1:], *self.train[-1:]), key=lambda record: record["iteration"] or 0, default={}
        )


def read_run(run_dir: Path) -> RunData:
    """Read a run folder, finished or not.

    Raises:
        UserError: No such run, or a file of it is damaged; the message names the file.
    """
    config_path = run_dir / "config.yaml"
    if not config_path.is_file():
        raise UserError(f"{run_dir} is not a run folder: it has no config.yaml")
    config_text = config_path.read_text(encoding="utf-8")
    config, mistakes = read_yaml(config_text)
    if mistakes or not isinstance(config, dict):
        reason = mistakes[0].text if mistakes else "a mapping is expected"
        raise UserError(f"{config_path}: {reason}")
    records = read_metrics(run_dir / "metrics.jsonl")
    evals = [record for record in records if record.get("kind") == "eval"]
    summary = _read_object(run_dir / "summary.json")
    return RunData(
        name=run_dir.resolve().name,
        config=config,
        config_text=config_text,
        versions=_read_object(run_dir / "versions.json"),
        train=[record for record in records if record.get("kind") == "train"],
        evals=evals,
        events=[record for record in records if record.get("kind") == "event"],
        comparisons=_from_summary(run_dir / "summary.json", summary) if summary else _from_evals(evals),
        summary=summary,
        samples=_read_samples(run_dir / "samples"),
        prompt_weights=_read_object(run_dir / "schedule.json").get("prompt_weights"),
    )


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is no such file."""
    return read_json(path) if path.is_file() else {}


def _from_summary(path: Path, summary: dict[str, Any]) -> dict[str, Comparison]:
    try:
        base, tuned, difference = (summary.get(part, {}) for part in ("base", "tuned", "difference"))
        return {
            metric: Comparison(
                metric, _interval(base[metric]), _interval(tuned[metric]), _interval(difference[metric])
            )
            for metric in base
            if metric in tuned and metric in difference and base[metric]["mean"] is not None
            and tuned[metric]["mean"] is not None and difference[metric]["mean"] is not None
        }  # fmt: skip
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: every metric needs mean, low and high ({error!r})") from error


def _interval(entry: dict[str, float | None]) -> Interval:
    mean, low, high = entry["mean"], entry["low"], entry["high"]
    if mean is None:
        raise ValueError("mean is null")
    return Interval(mean, low, high)


def _from_evals(evals: list[Record]) -> dict[str, Comparison]:
    """First against latest evaluation of an unfinished run; unpaired, so the difference has no interval."""
    if len(evals) < 2 or evals[0]["iteration"] != 0:
        return {}
    found = {}
    for metric, before in evals[0].items():
        after = evals[-1].get(metric)
        if metric.endswith(("_low", "_high")) or "/" not in metric:
            continue
        if isinstance(before, int | float) and isinstance(after, int | float):
            base, tuned = (
                Interval(value, _float(record.get(f"{metric}_low")), _float(record.get(f"{metric}_high")))
                for value, record in ((before, evals[0]), (after, evals[-1]))
            )
            found[metric] = Comparison(metric, base, tuned, Interval(after - before, None, None))
    return found


def _float(value: object) -> float | None:
    return value if isinstance(value, int | float) else None


def _read_samples(folder: Path) -> Samples | None:
    index = _read_object(folder / "index.json")
    if not index:
        return None
    rows, iterations = index.get("rows"), index.get("iterations")
    if not isinstance(rows, list) or not isinstance(iterations, list):
        raise UserError(f"{folder / 'index.json'}: rows and iterations are expected")
    return Samples(folder, rows, iterations)
