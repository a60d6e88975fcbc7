"""Starting, stopping and resuming runs of this machine, for `cgrpo studio --control`.

A run is a process of its own, `cgrpo train` or `cgrpo resume`: what it refuses, and how it ends, is what the
same command does in a terminal. It outlives the studio.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from customized_grpo.errors import UserError
from customized_grpo.runs.folder import CONFIG, is_run_folder
from customized_grpo.studio.library import PLAN, Library, Run, folder_id

NAME = re.compile(r"[A-Za-z0-9][\w.+-]{0,99}")
SETTING = re.compile(r"[A-Za-z_][\w.]*=.*", re.DOTALL)
FIXED = ("run.dir", "run.overwrite")
"""Settings that say where a run is written, which the studio decides."""

STOPPED = (0, 129, 130, 143)
"""Exit statuses of a run that has ended, or was asked to stop and is saved."""

LAST_BYTES = 2000
"""Of the output of a process that has failed, what is shown of it."""


@dataclass
class Job:
    """A process that the studio has started.

    Attributes:
        number: From 1, in the order of the starts.
        verb: "train" or "resume".
        folder: The run folder.
        log: File of its output.
        process: The process.
        status: Its exit status; None while it runs.
    """

    number: int
    verb: str
    folder: Path
    log: Path
    process: subprocess.Popen[bytes]
    status: int | None = None

    @property
    def has_failed(self) -> bool:
        """Return whether it ended with an error."""
        # below 0: killed by a signal that it could not answer, such as the kernel's when memory is full
        return self.status is not None and self.status not in STOPPED

    def last_words(self) -> str:
        """Return the end of its output."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - LAST_BYTES))
            return file.read().decode("utf-8", "replace").strip()


class Control:
    """Starts, stops and resumes runs.

    Args:
        library: The runs; only those can be stopped and resumed.
    """

    def __init__(self, library: Library) -> None:
        self._library = library
        self._numbers = itertools.count(1)
        self._logs = Path(tempfile.mkdtemp(prefix="cgrpo-studio-"))
        self.jobs: list[Job] = []

    @property
    def folder(self) -> Path:
        """Return the folder of new runs: the first that holds runs and is none.

        Raises:
            UserError: Each folder of the studio is a run or a comparison.
        """
        for folder in self._library.folders:
            if not is_run_folder(folder) and not (folder / PLAN).is_file():
                return folder
        raise UserError(
            "there is no folder for new runs: each one of this studio is a run or a comparison",
            hint="Start the studio with the folder that your runs are in.",
        )

    def start(self, recipe: str, name: str, settings: Sequence[str]) -> Job:
        """Start a new run in a folder of that name.

        Args:
            recipe: A preset, the path of a YAML file, or the id of a run, whose recipe is taken.
            name: Of the new folder, below `folder`.
            settings: Replace the recipe's, each "section.key=value".

        Raises:
            UserError: Name or settings are not allowed. What `cgrpo train` refuses, the job says.
        """
        if not NAME.fullmatch(name):
            raise UserError(f"{name!r} is no name for a run", hint="Take letters, digits and ._+- inside.")
        _check_settings(settings)
        # The id of a run stands for its recipe; anything else is a preset or a file.
        run = self._library.run(recipe)
        source = recipe if run is None else str(run.folder / CONFIG)
        if not source:
            raise UserError("no recipe was given", hint="Name a preset or the path of a YAML file.")
        folder = self.folder / name
        # as JSON, because a setting is read as YAML
        where = [f"run.dir={json.dumps(str(folder))}", "run.overwrite=false"]
        # The studio's own settings last, because the last of two wins.
        return self._run("train", folder, [source, *settings, *where])

    def resume(self, run: Run, settings: Sequence[str]) -> Job:
        """Go on with a run that has stopped, or for longer with one that has ended.

        Raises:
            UserError: Settings are not allowed.
        """
        _check_settings(settings)
        return self._run("resume", run.folder, [str(run.folder), *settings])

    def stop(self, run: Run) -> None:
        """Ask the trainer of a run to save and stop.

        Raises:
            UserError: It does not train on this machine.
        """
        holder = run.holder()
        if run.state() != "running" or holder is None:
            raise UserError(f"{run.name} does not train on this machine")
        try:
            # SIGTERM, at which a trainer saves a checkpoint before it ends.
            os.kill(holder.pid, signal.SIGTERM)
        except ProcessLookupError:  # it has ended since we looked
            return
        except PermissionError as error:
            raise UserError(f"the trainer of {run.name} belongs to another user") from error

    def _run(self, verb: str, folder: Path, arguments: Sequence[str]) -> Job:
        number = next(self._numbers)
        log = self._logs / f"{number:03d}_{verb}_{folder.name}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                # behind -- nothing is an option, whatever it begins with
                [sys.executable, "-m", "customized_grpo", verb, "--", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C ends the studio, and its runs go on
            )
        job = Job(number, verb, folder, log, process)
        self.jobs.append(job)
        self._note(job, "")
        # A daemon: the studio may end before its runs do.
        threading.Thread(target=self._wait, args=[job], daemon=True).start()
        return job

    def _wait(self, job: Job) -> None:
        """Wait for the end of a process, which would stay a zombie otherwise."""
        job.status = job.process.wait()
        self._note(job, job.last_words() if job.has_failed else "")

    def _note(self, job: Job, failure: str) -> None:
        """Say in the library why a run has failed; nothing where it has not become a run."""
        self._library.search_again()
        run = self._library.run(folder_id(job.folder))
        if run is not None:
            run.failure = failure


def _check_settings(settings: Sequence[str]) -> None:
    for setting in settings:
        if not SETTING.fullmatch(setting):
            raise UserError(f"{setting!r} is no setting", hint="Write section.key=value, one in each line.")
        key = setting.partition("=")[0]
        if key in FIXED:
            raise UserError(f"{key} is decided by the studio", hint="The name says where the run is written.")
