"""What the studio answers: the shapes of its JSON, and how each is made of a run folder."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import BaseModel

from customized_grpo.config import preset_names
from customized_grpo.errors import UserError
from customized_grpo.files import read_json
from customized_grpo.flat import flat
from customized_grpo.links import leads_out
from customized_grpo.pages.comparison_page import render_comparison_page
from customized_grpo.pages.page import render
from customized_grpo.pages.run_data import read_run
from customized_grpo.pages.run_page import numbers_of
from customized_grpo.pages.sample_images import Samples, read_png, read_samples
from customized_grpo.pages.votes import votes_of_comparison
from customized_grpo.studio.control import Control
from customized_grpo.studio.counts import counts_of
from customized_grpo.studio.library import (
    RESULTS,
    Comparison,
    Library,
    Run,
    State,
    folder_id,
    read_config,
)

TEMPLATES = Path(__file__).parent / "templates"

HEADLINES = ("judge/identity", "judge/prompt", "reward/identity", "reward/prompt")
"""Metrics of the newest evaluation that the list shows beside those of the base, as far as they exist."""


class Change(BaseModel):
    """A held-out metric of the first evaluation and of the newest."""

    base: float | None
    now: float | None


class RunView(BaseModel):
    """A run in the list."""

    id: str
    name: str
    folder: str
    comparison: str | None
    state: State
    host: str | None
    problem: str
    ending: str
    """Why a run that is not training ended before it was finished; empty for the others."""
    iteration: int
    total: int | None
    rollouts: int | None
    wall_s: float | None
    written_s: float | None
    """Unix time at which its metrics were last written."""
    rewards: dict[str, float]
    held_out: dict[str, Change]
    alarms: list[str]


class ComparisonView(BaseModel):
    """A comparison in the list."""

    id: str
    name: str
    folder: str
    written_s: float | None
    """Unix time of its results; None before the first run has ended."""
    runs: int
    """Runs that are planned, in a folder of it, or joined from elsewhere."""
    elsewhere: int
    """Those among them that have finished elsewhere, without a folder here."""


class ListView(BaseModel):
    """Everything that is in the folders."""

    folders: list[str]
    runs: list[RunView]
    comparisons: list[ComparisonView]


class JobView(BaseModel):
    """A process that the studio has started."""

    number: int
    verb: str
    name: str
    run: str | None
    status: int | None
    """Exit status; None while it runs."""
    words: str
    """The end of its output, if it has failed."""


class ControlView(BaseModel):
    """What can be started from here."""

    is_on: bool
    folder: str = ""
    presets: list[str] = []
    jobs: list[JobView] = []


class SampleRowView(BaseModel):
    """A prompt that is drawn again and again."""

    prompt: str
    subject: str | None
    has_reference: bool
    has_target: bool


class SamplesView(BaseModel):
    """The sample images of a run; no rows when there are none."""

    rows: list[SampleRowView]
    iterations: list[int]


class Difference(BaseModel):
    """A setting that two recipes have not in common; None: not set."""

    key: str
    first: Any
    second: Any


def list_view(library: Library) -> ListView:
    """Return the list of runs and comparisons, as they are now."""
    comparisons = []
    for entry in library.comparisons():
        counts = counts_of(entry)
        comparisons.append(
            ComparisonView(
                id=entry.id,
                name=entry.name,
                folder=str(entry.folder),
                written_s=_written(entry.folder / RESULTS),
                runs=counts.runs,
                elsewhere=counts.elsewhere,
            )
        )
    return ListView(
        folders=[str(folder) for folder in library.folders],
        runs=[run_view(run) for run in library.runs()],
        comparisons=comparisons,
    )


def control_view(control: Control | None, library: Library) -> ControlView:
    """Return what can be started, and the processes that were."""
    if control is None:
        return ControlView(is_on=False)
    jobs = []
    for job in reversed(control.jobs):
        run = library.run(folder_id(job.folder))
        jobs.append(
            JobView(
                number=job.number,
                verb=job.verb,
                name=job.folder.name,
                run=None if run is None else run.id,
                status=job.status,
                words=job.last_words() if job.has_failed else "",
            )
        )
    return ControlView(is_on=True, folder=str(control.folder), presets=preset_names(), jobs=jobs)


def run_view(run: Run) -> RunView:
    """Return a run as the list shows it."""
    state = run.state()
    # The last holder of a lock that is free says nothing about now.
    holder = run.holder() if state in ("running", "elsewhere") else None
    rewards: dict[str, float] = {}
    for key, value in run.last.items():
        name = key.removeprefix("reward/")
        # reward/KIND alone; deeper names and spreads are other statistics.
        is_mean = name != key and "/" not in name and not name.endswith("_group_std")
        if is_mean and isinstance(value, int | float):
            rewards[name] = value
    return RunView(
        id=run.id,
        name=run.name,
        folder=str(run.folder),
        comparison=run.comparison,
        state=state,
        host=holder.host if holder is not None else None,
        problem=run.problem or run.failure,
        ending=_ending(run) if state in ("stopped", "failed") else "",
        iteration=int(run.last.get("iteration") or 0),
        total=run.total,
        rollouts=_number(run.last, "rollouts"),
        wall_s=_number(run.last, "wall_s"),
        written_s=_written(run.tail.path),
        rewards=rewards,
        held_out=_held_out(run),
        alarms=run.standing_alarms(),
    )


def _ending(run: Run) -> str:
    return run.ending() or "It says nothing of its end: it was killed, or its machine went down."


def _held_out(run: Run) -> dict[str, Change]:
    changes = {}
    for key in HEADLINES:
        now = _number(run.last_eval, key)
        if now is not None:
            changes[key] = Change(base=_number(run.first_eval, key), now=now)
    return changes


def _number(record: Mapping[str, Any], key: str) -> Any:
    value = record.get(key)
    return value if _is_number(value) else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _written(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def head_html(run: Run) -> str:
    """Return alarms, findings and facts of a run, as its report has them.

    Raises:
        UserError: A file of the run is damaged, or leads out of its folder; so for all below.
    """
    return _render("head.html.j2", run)


def report_html(run: Run) -> str:
    """Return the tables and figures of a run's report, drawn from what it has written so far."""
    return _render("report.html.j2", run)


def _render(template: str, run: Run) -> str:
    numbers = numbers_of(read_run(run.folder))
    # two runs stand side by side, and one address must not be there twice
    return render(f"studio_{template}", TEMPLATES, addressed=False, **numbers)


def comparison_html(comparison: Comparison) -> str:
    """Return the page of a comparison, drawn from its results.

    Raises:
        UserError: It has no results yet.
    """
    results = _own_json(comparison, RESULTS)
    folders = {}
    for run in results.get("runs", ()):
        arm = run.get("arm")
        seed = run.get("seed")
        folder = comparison.folder / "runs" / str(arm) / f"seed_{seed}"
        # Arm and seed come from a file that somebody may have sent.
        if not leads_out(folder, comparison.folder):
            folders[(arm, seed)] = folder
    # newer than those in the results: people vote after the runs
    results["votes"] = votes_of_comparison(comparison.folder)
    return render_comparison_page(results, folders)


def _own_json(comparison: Comparison, name: str) -> dict[str, Any]:
    file = comparison.folder / name
    if leads_out(file, comparison.folder):
        raise UserError(f"{file} is a link out of the comparison's folder")
    return read_json(file, missing_hint="It is there when the first run has finished.")


def samples_view(run: Run) -> SamplesView:
    """Return what the sample images of a run are of."""
    samples = run_samples(run)
    if samples is None:
        return SamplesView(rows=[], iterations=[])
    rows = []
    for row in samples.rows:
        rows.append(
            SampleRowView(
                prompt=row.get("prompt") or "",
                subject=row.get("subject"),
                has_reference=row.get("reference") is not None,
                has_target=bool(row.get("target")),
            )
        )
    return SamplesView(rows=rows, iterations=sorted(samples.iterations))


def image_png(run: Run, row: int, which: str, side: int | None) -> bytes:
    """Return a sample image as PNG.

    Args:
        run: The run.
        row: Number of the prompt.
        which: "reference", "target" or the iteration that drew it.
        side: Largest width and height in pixels; None: as it is.

    Raises:
        UserError: There is no such image, or it leads out of the run folder.
    """
    samples = run_samples(run)
    if samples is None or not 0 <= row < len(samples.rows):
        raise UserError(f"{run.name} has no prompt {row}")
    if which == "reference":
        path = samples.reference_path(row)
    elif which == "target":
        path = samples.target_path(row)
    # Only iterations that the index lists: a number from the address names no file by itself.
    elif which.isdecimal() and len(which) < 10 and int(which) in samples.iterations:
        path = samples.drawn_path(row, int(which))
    else:
        path = None
    if path is None:
        raise UserError(f"{run.name} has no image {which!r} of prompt {row}")
    # decoded and written again: what the file holds besides an image never reaches the browser
    image = read_png(path)
    if side is not None and max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def run_samples(run: Run) -> Samples | None:
    """Return the sample images of a run; None when there are none."""
    folder = run.folder / "samples"
    if leads_out(folder / "index.json", run.folder):
        raise UserError(f"{folder} is a link out of the run folder")
    return read_samples(folder)


def recipe_text(run: Run) -> str:
    """Return the resolved recipe of a run."""
    return read_run(run.folder).config_text


def differences(first: Run, second: Run) -> list[Difference]:
    """Return the settings that differ between the recipes of two runs, but for where they are written."""
    before = flat(read_config(first.folder))
    after = flat(read_config(second.folder))
    found = []
    for key in dict.fromkeys([*before, *after]):
        if before.get(key) != after.get(key) and key != "run.dir":
            found.append(Difference(key=key, first=before.get(key), second=after.get(key)))
    return found
