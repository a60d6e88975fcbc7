"""The folder of a run: creation, versions of the code, and small JSON files."""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from customized_grpo import __version__
from customized_grpo.config import Config, dump_config
from customized_grpo.disk import DISK_ERRORS
from customized_grpo.errors import UserError
from customized_grpo.files import DRAFT_ENDING, read_json, sync, write_bytes, write_json, write_text
from customized_grpo.runs.lock import FILES as LOCKS

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy")
CONFIG = "config.yaml"
VERSIONS = "versions.json"
STARTED = "started.json"
"""Says in which working directory the run was started, to which its relative paths belong."""

STARTING = ".starting"
"""Marker of a folder whose run is being created: everything in it may be replaced."""


def is_run_folder(path: Path) -> bool:
    """Return whether `RunFolder.create` made the folder, to its end.

    config.yaml alone proves nothing: many a foreign folder has one. A run whose versions.json is damaged is
    still known by a committed checkpoint.
    """
    if not (path / CONFIG).is_file() or (path / STARTING).exists():
        return False
    versions_file = path / VERSIONS
    if versions_file.is_file() and "customized_grpo" in versions_file.read_text(errors="replace"):
        return True
    return any((path / "checkpoints").glob("step_*/COMMIT.json"))


def is_unused(path: Path) -> bool:
    """Return whether a folder, which need not exist, holds nothing, or only what a killed start leaves."""
    if not path.exists():
        return True
    if not path.is_dir():
        return False
    names = {file.name for file in path.iterdir()}
    return STARTING in names or all(name in LOCKS or name.endswith(DRAFT_ENDING) for name in names)


def runs_in(folder: Path) -> list[Path]:
    """Return the run folders in a folder, sorted."""
    return sorted(file.parent for file in folder.glob(f"*/{CONFIG}") if is_run_folder(file.parent))


class RunFolder:
    """Paths and files of one run.

    Attributes:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def make(cls, path: Path) -> Path:
        """Make the folder, so that it can be locked, and return it.

        Raises:
            UserError: It cannot be written.
        """
        with _start_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        return path

    @classmethod
    def create(cls, config: Config) -> RunFolder:
        """Turn run.dir into the folder of a new run, with its resolved config and versions.

        A marker is in the folder from before the first change until everything is written. So whatever the
        instant of a kill, the folder holds a whole run, old or new, or one that was not started, in whose
        place `cgrpo train` starts again. Only the holder of the run's lock may call this.

        Raises:
            UserError: The folder holds something else, or cannot be written.
        """
        path = cls.make(config.run.dir)
        cls.check_free(config)
        folder = cls(path)
        with _start_errors(path):
            write_bytes(path / STARTING, b"", durable=True)
            for file in path.iterdir():
                # the marker must stand until the end, and the caller holds the lock
                if file.name not in (STARTING, *LOCKS):
                    _remove(file)
            write_text(path / CONFIG, dump_config(config), durable=True)
            write_json(path / STARTED, {"folder": str(Path.cwd())}, durable=True)
            write_json(path / VERSIONS, versions(), durable=True)
            # all files are on the disk before the marker goes: a power cut must not leave a part without it
            sync(path)
            (path / STARTING).unlink()
        return folder

    @classmethod
    def check_free(cls, config: Config) -> None:
        """Refuse a run.dir that cannot become a new run, before anything is loaded; changes nothing.

        Raises:
            UserError: It holds a run that may not be overwritten, or something that is no run at all.
        """
        path = config.run.dir
        if is_unused(path):
            return
        if not is_run_folder(path):
            raise UserError(f"{path} exists and is not the folder of a run", hint="Choose another run.dir.")
        if not config.run.overwrite:
            raise UserError(
                f"run folder {path} already holds a run",
                hint=f"Continue it with `cgrpo resume {path}`, choose another run.dir, or replace it with "
                "run.overwrite=true.",
            )

    def replace_config(self, config: Config) -> None:
        """Write the recipe that a resumed run goes on with.

        Raises:
            UserError: The folder cannot be written.
        """
        with disk_errors(self.path):
            write_text(self.path / CONFIG, dump_config(config), durable=True)

    def write_json(self, name: str, value: Any, *, durable: bool = False) -> None:
        """Write a small JSON file so that readers see the old or the new one, never half of it.

        Args:
            name: The file, in the run folder.
            value: Its content.
            durable: Whether it must survive a power cut.
        """
        target = self.path / name
        # the scores of evaluations have a folder of their own
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, value, durable=durable)
        if durable:
            # the rename as well: a name is content of its folder
            sync(target.parent)

    def sweep(self) -> None:
        """Delete the drafts that killed writers have left; only the holder of the lock may call this."""
        for draft in self.path.rglob(f".*{DRAFT_ENDING}"):
            draft.unlink(missing_ok=True)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Read a JSON file of the run; None if it does not exist.

        Raises:
            UserError: It is damaged.
        """
        file = self.path / name
        return read_json(file) if file.is_file() else None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def _start_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write run folder {path}: {error.strerror}", hint="Choose run.dir elsewhere."
        ) from error


@contextmanager
def disk_errors(run: Path) -> Iterator[None]:
    """Turn an error of the disk, wherever the block writes into the run folder, into one message.

    Raises:
        UserError: Names the path and the free bytes. Other errors of the operating system are not caught.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        raise UserError(
            f"cannot write to {error.filename or run}: {error.strerror} "
            f"({shutil.disk_usage(run).free:,} bytes are free there)",
            hint="The last checkpoint is intact. Free some space or fix the disk, then "
            f"`cgrpo resume {run}`.",
        ) from error


def versions() -> dict[str, Any]:
    """Return the versions of this package, its libraries and Python, and the commit that runs, if any.

    As they were when this process asked first: what is installed or checked out later is not what runs in it.
    """
    return copy.deepcopy(_versions())


@functools.cache
def _versions() -> dict[str, Any]:
    return {
        "customized_grpo": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "git": _git_state(),
    }


def installation() -> dict[str, str]:
    """Return the versions that all processes of a run must share; the kernels of two hosts may differ."""
    return {
        name: version
        for name, version in versions().items()
        if isinstance(version, str) and name != "platform"
    }


def _git_state() -> dict[str, Any] | None:
    source = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(source), *arguments], capture_output=True, text=True, timeout=10, check=True
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # an installed package lies in no repository, and has no commit
    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "modified": bool(git("status", "--porcelain", "--untracked-files=no"))}
