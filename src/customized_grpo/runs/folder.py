"""The folder of a run: creation, versions of the code, and small JSON files."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from customized_grpo import __version__
from customized_grpo.config import Config, dump_config
from customized_grpo.errors import UserError
from customized_grpo.files import write_json

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy")
CONFIG = "config.yaml"
VERSIONS = "versions.json"
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


def is_run_folder(path: Path) -> bool:
    """Return whether `RunFolder.create` made the folder.

    config.yaml alone proves nothing: many a foreign folder has one.
    """
    versions_file = path / VERSIONS
    if not (path / CONFIG).is_file() or not versions_file.is_file():
        return False
    return "customized_grpo" in versions_file.read_text(errors="replace")


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
    def create(cls, config: Config) -> RunFolder:
        """Create the folder of a new run, with its resolved config and versions.

        Raises:
            UserError: The folder exists, or cannot be written.
        """
        path = config.run.dir
        cls.check_free(config)
        try:
            cls._remove_old(path)
            path.mkdir(parents=True)
            (path / CONFIG).write_text(dump_config(config))
        except OSError as error:
            raise UserError(
                f"cannot write run folder {path}: {error.strerror}", hint="Choose run.dir elsewhere."
            ) from error
        folder = cls(path)
        folder.write_json(VERSIONS, versions())
        return folder

    @classmethod
    def check_free(cls, config: Config) -> None:
        """Refuse a run.dir that cannot become a new run, before anything is loaded; changes nothing.

        Raises:
            UserError: It holds a run that may not be overwritten, or something that is no run at all.
        """
        path = config.run.dir
        if not path.exists() or cls._is_empty(path):
            return
        if not is_run_folder(path):
            raise UserError(f"{path} exists and is not the folder of a run", hint="Choose another run.dir.")
        if not config.run.overwrite:
            raise UserError(
                f"run folder {path} already holds a run",
                hint=f"Continue it with `cgrpo resume {path}`, choose another run.dir, or replace it with "
                "run.overwrite=true.",
            )

    @staticmethod
    def _is_empty(path: Path) -> bool:
        return path.is_dir() and not any(path.iterdir())

    @classmethod
    def _remove_old(cls, path: Path) -> None:
        """Remove an empty folder or the run that is to be overwritten."""
        if not path.exists():
            return
        if cls._is_empty(path):
            path.rmdir()
            return
        from customized_grpo.runs.lock import RunLock

        with RunLock(path):  # another process may be training in it
            shutil.rmtree(path)

    def write_json(self, name: str, value: Any) -> None:
        """Write a small JSON file so that readers see the old or the new one, never half of it."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, value)

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the run; None if it does not exist."""
        file = self.path / name
        return json.loads(file.read_text()) if file.is_file() else None


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
    """Return the versions of this package, its libraries and Python, and the commit that runs, if any."""
    return {
        "customized_grpo": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
        "git": _git_state(),
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

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return None
    return {"commit": commit, "modified": bool(git("status", "--porcelain", "--untracked-files=no"))}
