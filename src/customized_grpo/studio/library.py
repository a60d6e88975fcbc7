"""Which runs and comparisons there are, and how far each run is: what runs write is read, never changed."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from customized_grpo.config.yaml_text import read_yaml
from customized_grpo.errors import UserError
from customized_grpo.files import read_json
from customized_grpo.links import leads_out
from customized_grpo.reporting.ending import ENDED, ending_sentence
from customized_grpo.reporting.metrics import Record, iteration_of
from customized_grpo.reporting.tail import MetricsTail
from customized_grpo.runs.folder import CONFIG, is_run_folder
from customized_grpo.runs.lock import FILE as LOCK
from customized_grpo.runs.lock import Holder, last_holder

DEPTH = 6
"""Folders below a folder of the command line in which runs are looked for."""

MAX_FOLDERS = 20_000
"""Folders that one search visits; `cgrpo studio /` must not read a whole disk."""

FRESH_S = 2.0
"""Seconds that a search is good for."""

PLAN = "plan.json"
RESULTS = "results.json"

State = Literal["running", "elsewhere", "ended", "stopped", "failed", "damaged"]
"""running: its trainer is alive here. elsewhere: another machine has its lock, and may or may not train.
ended: it has its summary. stopped: neither. failed: the same, and the studio that started it knows why.
damaged: a file of it cannot be read."""


@dataclass
class Run:
    """A run folder, and what of its metrics the list shows.

    Attributes:
        id: Its name in addresses; a folder has the same one in every studio.
        folder: The folder.
        name: Its path below the folder of the command line.
        comparison: Id of the comparison that it belongs to; None: of none.
        tail: Its metrics file.
        total: train.iterations of its recipe; None if that cannot be read.
        config_stamp: When the recipe was written that `total` is of.
        last: Newest record of training or evaluation.
        first_eval: Oldest evaluation.
        last_eval: Newest evaluation.
        alarms: Alarms by kind: the iteration of the latest and its message.
        problem: Why a file of it cannot be read; empty if all can.
        failure: The last words of its trainer, if the studio has started it and it has failed.
    """

    id: str
    folder: Path
    name: str
    comparison: str | None
    tail: MetricsTail
    total: int | None = None
    config_stamp: int = -1
    last: Record = field(default_factory=dict)
    first_eval: Record = field(default_factory=dict)
    last_eval: Record = field(default_factory=dict)
    alarms: dict[str, tuple[int, str]] = field(default_factory=dict)
    problem: str = ""
    failure: str = ""

    def look(self) -> None:
        """Take in what the run has written since the last look."""
        try:
            if leads_out(self.tail.path, self.folder):
                raise UserError(f"{self.tail.path} is a link out of the run folder")
            change = self.tail.read()
            self.problem = ""
        except (UserError, OSError) as error:
            self.problem = str(error)
            return
        if change.restarted:
            self.last = {}
            self.first_eval = {}
            self.last_eval = {}
            self.alarms = {}
        for record in change.records:
            self._take(record)

    def _take(self, record: Record) -> None:
        kind = record.get("kind")
        iteration = iteration_of(record)
        if kind == "event":
            if record.get("event") == "alarm":
                message = str(record.get("message", ""))
                self.alarms[str(record.get("alarm", message))] = (iteration, message)
            return
        # Records add to one another: that of an evaluation lacks what training says.
        if iteration >= iteration_of(self.last or {"iteration": 0}):
            self.last = {**self.last, **record}
        if kind == "eval":
            # The base, even where a resumed run has written an evaluation twice.
            if not self.first_eval or iteration < iteration_of(self.first_eval):
                self.first_eval = record
            if not self.last_eval or iteration >= iteration_of(self.last_eval):
                self.last_eval = record

    def holder(self) -> Holder | None:
        """Return who has taken its lock last."""
        return None if leads_out(self.folder / LOCK, self.folder) else last_holder(self.folder)

    def state(self) -> State:
        """Return how the run is doing."""
        if self.problem:
            return "damaged"
        # First: a finished run may still have the file of its lock.
        if _is_finished(self.folder):
            return "ended"
        holder = self.holder()
        if holder is None or holder.is_alive is False:
            return "failed" if self.failure else "stopped"
        return "running" if holder.is_here else "elsewhere"

    def ending(self) -> str:
        """Return why it ended before it was finished, as it wrote that down; empty if it did not."""
        file = self.folder / ENDED
        if not file.is_file() or leads_out(file, self.folder):
            return ""
        try:
            return ending_sentence(read_json(file))
        except UserError as error:
            return error.message

    def standing_alarms(self) -> list[str]:
        """Return the alarms that the newest evaluation raised."""
        newest = self.last_eval.get("iteration")
        return [message for iteration, message in self.alarms.values() if iteration == newest]


@dataclass(frozen=True)
class Comparison:
    """The folder of a comparison.

    Attributes:
        id: Its name in addresses.
        folder: The folder.
        name: Its path below the folder of the command line.
    """

    id: str
    folder: Path
    name: str


class Library:
    """The runs and comparisons in some folders; it may be asked by several threads.

    Args:
        folders: Folders of runs, of comparisons, or of folders of them.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.folders = [folder.absolute() for folder in folders]
        self._runs: dict[str, Run] = {}
        self._comparisons: dict[str, Comparison] = {}
        self._lock = threading.Lock()
        self._searched = float("-inf")

    def runs(self) -> list[Run]:
        """Return all runs, each as it is now, in the order of their names."""
        with self._lock:
            self._search()
            for run in self._runs.values():
                run.look()
            return list(self._runs.values())

    def comparisons(self) -> list[Comparison]:
        """Return all comparisons, in the order of their names."""
        with self._lock:
            self._search()
            return list(self._comparisons.values())

    def run(self, run_id: str) -> Run | None:
        """Return a run by its id; only folders that a search has found have one."""
        with self._lock:
            self._search()
            return self._runs.get(run_id)

    def comparison(self, comparison_id: str) -> Comparison | None:
        """Return a comparison by its id."""
        with self._lock:
            self._search()
            return self._comparisons.get(comparison_id)

    def search_again(self) -> None:
        """Make the next question search, as after a run was started."""
        with self._lock:
            self._searched = float("-inf")

    def _search(self) -> None:
        if time.monotonic() < self._searched + FRESH_S:
            return
        runs: dict[str, Run] = {}
        comparisons: dict[str, Comparison] = {}
        for root in self.folders:
            for folder, name, comparison in _found(root):
                if (folder / PLAN).is_file() and not is_run_folder(folder):
                    entry = Comparison(folder_id(folder), folder, name)
                    # Two folders of the command line may hold the same one.
                    comparisons.setdefault(entry.id, entry)
                    continue
                run = self._known(folder, name, comparison)
                runs.setdefault(run.id, run)
        self._runs = dict(sorted(runs.items(), key=lambda item: item[1].name))
        self._comparisons = dict(sorted(comparisons.items(), key=lambda item: item[1].name))
        self._searched = time.monotonic()

    def _known(self, folder: Path, name: str, comparison: Path | None) -> Run:
        """Return the entry of a run folder, the old one if there is one: it knows what was read."""
        run_id = folder_id(folder)
        run = self._runs.get(run_id)
        if run is None:
            belongs = None if comparison is None else folder_id(comparison)
            run = Run(run_id, folder, name, belongs, MetricsTail(folder / "metrics.jsonl"))
        stamp = (folder / CONFIG).stat().st_mtime_ns
        if run.config_stamp != stamp:  # reading YAML is slow, and most recipes never change
            run.config_stamp = stamp
            run.total = _iterations(folder)
        return run


def folder_id(folder: Path) -> str:
    """Return the id of a folder."""
    # Of the real path, so that a run has one id by whichever way it was found.
    return hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:12]


def _found(root: Path) -> Iterator[tuple[Path, str, Path | None]]:
    """Give each run and comparison below a folder: its path, its name, the comparison that it is in."""
    pending: list[tuple[Path, int, Path | None]] = [(root, 0, None)]
    visited = 0
    while pending and visited < MAX_FOLDERS:
        folder, depth, comparison = pending.pop()
        visited += 1
        # below a comparison names would all begin with runs/, and those of two could not be told apart
        base = root.parent if (root / PLAN).is_file() or folder == root else root
        name = str(folder.relative_to(base))
        # Nothing is looked for inside a run.
        if is_run_folder(folder):
            yield folder, name, comparison
            continue
        if (folder / PLAN).is_file():
            yield folder, name, None
            comparison = folder
        if depth < DEPTH:
            pending += [(child, depth + 1, comparison) for child in _children(folder)]


def _children(folder: Path) -> list[Path]:
    """Return the folders in a folder; links are not followed, or a search could go round in circles."""
    try:
        with os.scandir(folder) as entries:
            return [
                Path(entry.path)
                for entry in entries
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
            ]
    except OSError:  # gone, or not ours to read
        return []


def _is_finished(folder: Path) -> bool:
    file = folder / "summary.json"
    if not file.is_file() or leads_out(file, folder):
        return False
    try:
        return read_json(file).get("finished") is True
    except UserError:
        return False


def _iterations(folder: Path) -> int | None:
    """Return train.iterations of a run's recipe."""
    config = read_config(folder)
    train = config.get("train")
    iterations = train.get("iterations") if isinstance(train, dict) else None
    return iterations if isinstance(iterations, int) else None


def read_config(folder: Path) -> dict[str, Any]:
    """Return the recipe of a run as plain data; empty if it cannot be read."""
    file = folder / CONFIG
    if leads_out(file, folder):
        return {}
    try:
        config, mistakes = read_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return {}
    return config if isinstance(config, dict) and not mistakes else {}
