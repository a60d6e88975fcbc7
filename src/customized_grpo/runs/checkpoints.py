"""The checkpoint store: safetensors and JSON in folders that are either committed whole or absent.

The order of one save is the guarantee. Each step is durable before the next begins:

1. write every file into a temporary sibling `.partial-step_000010`, fsync each file, see `files.replacing`;
2. write and fsync COMMIT.json (sha256 and size per file), then fsync the folder;
3. rename the folder to `step_000010`, fsync the parent;
4. only now remove older checkpoints, each renamed away first: no half-deleted folder looks committed.

A kill between any two system calls leaves the previous checkpoint, the new one, or both, and at most
leftovers whose names start with a dot; `sweep` removes those.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import torch
from safetensors.torch import load_file

from customized_grpo.errors import UserError
from customized_grpo.files import file_sha256, read_json, sync, write_bytes, write_json, write_tensors

JSON: TypeAlias = "None | bool | int | float | str | Sequence[JSON] | Mapping[str, JSON]"

FORMAT = 1
COMMIT = "COMMIT.json"
STATE = "state.json"
PARTIAL = ".partial-"  # being written
PRUNED = ".pruned-"  # being deleted

_STEP_FOLDER = re.compile(r"step_(\d{6,})")
_ENTRY_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Checkpoint:
    """The content of one committed step.

    Attributes:
        step: The iteration after which it was saved.
        tensors: CPU tensors by entry ("adapter", "optimizer", ...) and by name within the entry.
        state: The JSON state, equal to the argument of `save`.
    """

    step: int
    tensors: dict[str, dict[str, torch.Tensor]]
    state: dict[str, Any]


class CheckpointStore:
    """The committed checkpoints of one run, in `folder/step_000010/`. One process writes; any may read.

    Args:
        folder: Folder of the step folders; created by the first save.
        keep: How many of the newest checkpoints a save leaves behind, itself included; 0 keeps them all.

    Attributes:
        kept_step: A step that is kept as well, however old; None for none.

    Raises:
        ValueError: `keep` is negative.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        if keep < 0:
            raise ValueError(f"keep must be 0 (all) or positive, got {keep}")
        self.folder = folder
        self.keep = keep
        self.kept_step: int | None = None

    def steps(self) -> list[int]:
        """Return the committed steps in ascending order, by scanning the folder."""
        if not self.folder.is_dir():
            return []
        steps = []
        for path in self.folder.iterdir():
            match = _STEP_FOLDER.fullmatch(path.name)
            if match and (path / COMMIT).is_file():
                # as numbers: by name step_1000000 would come before step_999999
                steps.append(int(match[1]))
        return sorted(steps)

    def latest(self) -> int | None:
        """Return the highest committed step, or None when there is none."""
        return max(self.steps(), default=None)

    def save(
        self, step: int, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, JSON]
    ) -> Path:
        """Commit one checkpoint, then prune older ones; return its folder.

        Args:
            step: Higher than every committed step (a checkpoint is never overwritten; see `rewind`).
            tensors: One safetensors file is written per entry. Names of entries match [a-z][a-z0-9_]*.
            state: JSON that must come back equal: string keys, lists rather than tuples, finite numbers.

        Raises:
            UserError: A tensor is not finite, or the disk refuses; older checkpoints are intact and
                nothing partial is left.
            ValueError: `step`, an entry's name or `state` breaks the rules above.
        """
        self._check_step(step)
        for entry, group in tensors.items():
            if not _ENTRY_NAME.fullmatch(entry) or entry == "state":
                raise ValueError(f"bad checkpoint entry name {entry!r}")
            # before anything is written: the checkpoint of a diverged run would push out a good one
            _refuse_non_finite(step, entry, group)
        text = _encode_state(state)

        final = self._path(step)
        try:
            self._commit(final, lambda partial: _write_files(partial, step, tensors, text))
        except OSError as error:
            needed = len(text)
            for group in tensors.values():
                needed += sum(tensor.nbytes for tensor in group.values())
            _raise_disk_error(final, needed, error)
        self._prune()
        return final

    def probe(self) -> None:
        """Do all that a save does, with a small file, to find a disk that cannot take one at the start.

        Raises:
            UserError: Checkpoints cannot be saved in the folder.
        """
        # a name that `sweep` removes, should this process be killed meanwhile
        final = self.folder / f"{PRUNED}probe"
        try:
            self._commit(final, lambda partial: write_json(partial / COMMIT, {}, durable=True))
            shutil.rmtree(final)
        except OSError as error:
            raise UserError(
                f"checkpoints cannot be saved in {self.folder}: {error}",
                hint="Nothing was trained. Choose a run.dir on another file system.",
            ) from error

    def _commit(self, final: Path, write: Callable[[Path], object]) -> None:
        """Make a folder in one step: `write` fills a partial one, which is then renamed."""
        partial = self.folder / (PARTIAL + final.name)
        try:
            _make_folder(self.folder)
            if partial.exists():  # of a save that was killed
                shutil.rmtree(partial)
            partial.mkdir()
            write(partial)
            sync(partial)
            os.replace(partial, final)  # the commit: from here on the step exists
            sync(self.folder)
        finally:
            # absent after success; what cannot be removed is swept later
            shutil.rmtree(partial, ignore_errors=True)

    def load(self, step: int) -> Checkpoint:
        """Read one committed checkpoint, its hashes verified before anything is parsed.

        Raises:
            UserError: The step is not committed, or a file is missing, altered or unreadable. The message
                names the file; the hint lists the older steps that can be resumed instead.
        """
        folder = self._path(step)
        committed = self.steps()
        if step not in committed:
            content = f"committed steps: {_listing(committed)}" if committed else "it holds no checkpoint"
            raise UserError(f"{self.folder} has no committed checkpoint of step {step}; {content}")
        older = [s for s in committed if s < step]
        hint = (
            f"Older checkpoints in the same folder: steps {_listing(older)}. Resume from one of these: "
            f"`cgrpo resume RUN --from {older[-1]}`."
            if older
            else "There is no older checkpoint in this folder to fall back to."
        )
        try:
            files = _read_commit(folder, step)
            for name, (sha256, size) in files.items():
                _verify(folder / name, sha256, size)  # all of them, before a parser sees the first
            tensors = {Path(n).stem: load_file(folder / n) for n in sorted(files) if n != STATE}
            state = read_json(folder / STATE)
        except UserError as error:
            raise UserError(error.message, hint=hint) from error
        except OSError as error:
            raise UserError(f"cannot read checkpoint {folder}: {error}", hint=hint) from error
        return Checkpoint(step=step, tensors=tensors, state=state)

    def rewind(self, step: int) -> list[Path]:
        """Set aside every checkpoint later than `step`, so that training can continue from there.

        Nothing is deleted: `step_000020` becomes `abandoned-1-step_000020`, which the scan ignores.

        Returns:
            The new paths, empty when `step` is the latest already.

        Raises:
            UserError: `step` itself is not committed.
        """
        committed = self.steps()
        if step not in committed:
            raise UserError(
                f"{self.folder} has no committed checkpoint of step {step} to go back to",
                hint=f"Committed steps: {_listing(committed)}.",
            )
        later = [s for s in committed if s > step]
        moved = []
        for name in (self._path(s).name for s in reversed(later)):  # newest first: a kill leaves no gap
            attempt = 1 + sum(1 for _ in self.folder.glob(f"abandoned-*-{name}"))
            moved.append(self.folder / f"abandoned-{attempt}-{name}")
            os.replace(self.folder / name, moved[-1])
        if moved:
            sync(self.folder)
        return moved

    def sweep(self) -> list[Path]:
        """Remove the leftovers of killed saves: partial folders, and older checkpoints that were not removed.

        Call it at start, holding the lock.

        Returns:
            The partial folders.
        """
        if not self.folder.is_dir():
            return []
        leftovers = [p for p in sorted(self.folder.iterdir()) if p.name.startswith((PARTIAL, PRUNED))]
        for path in leftovers:
            shutil.rmtree(path)
        self._prune()
        return leftovers

    def _path(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}"

    def _check_step(self, step: int) -> None:
        latest = self.latest()
        if step < 0:
            raise ValueError(f"step must not be negative, got {step}")
        if latest is not None and step <= latest:
            raise ValueError(f"step {step} is not after the committed step {latest}; rewind first")

    def _prune(self) -> None:
        if self.keep == 0:
            return
        older = self.steps()[: -self.keep]
        for step in [step for step in older if step != self.kept_step]:
            path = self._path(step)
            pruned = self.folder / (PRUNED + path.name)
            try:
                if pruned.exists():
                    shutil.rmtree(pruned)
                os.replace(path, pruned)  # first, or a half-deleted folder would look committed
                shutil.rmtree(pruned)
            except OSError as error:
                raise UserError(
                    f"the new checkpoint is saved, but {path} cannot be removed: {error}"
                ) from error


def _write_files(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, torch.Tensor]], state: bytes
) -> None:
    """Write every file of a checkpoint into `folder` and make them durable, COMMIT.json last."""
    for entry, group in tensors.items():
        # One copy on the CPU: contiguous and unshared, which is all that safetensors accepts.
        copies = {
            name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name, tensor in group.items()
        }
        write_tensors(folder / f"{entry}.safetensors", copies, durable=True)
    write_bytes(folder / STATE, state, durable=True)
    files = {
        path.name: {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
    }
    commit = {"format": FORMAT, "step": step, "files": files}
    write_json(folder / COMMIT, commit, durable=True)


def _encode_state(state: Mapping[str, JSON]) -> bytes:
    """Return the state as JSON bytes; refuse what JSON would change silently (tuples, integer keys, NaN)."""
    try:
        text = json.dumps(state, indent=1, allow_nan=False)
    except TypeError as error:
        raise ValueError(f"checkpoint state is not JSON: {error}") from error
    if json.loads(text) != state:
        raise ValueError("checkpoint state would change in JSON: use string keys, and lists for tuples")
    return text.encode()


def _refuse_non_finite(step: int, entry: str, group: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in group.items():
        bad = int((~torch.isfinite(tensor)).sum())
        if bad:
            raise UserError(
                f"step {step} is not saved: "
                f"{bad} of the {tensor.numel()} values of {entry}/{name} are not finite",
                hint="Training diverged. Resume from the last checkpoint with a lower learning rate.",
            )


def _read_commit(folder: Path, step: int) -> dict[str, tuple[str, int]]:
    """Return sha256 and size by file name.

    Raises:
        UserError: COMMIT.json is damaged, of another format, or of another step.
    """
    path = folder / COMMIT
    try:
        commit = json.loads(path.read_bytes())
        files = {str(name): (str(f["sha256"]), int(f["bytes"])) for name, f in commit["files"].items()}
        is_known_format = commit["format"] == FORMAT
        committed_step = commit["step"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged: {error!r}") from error
    if not is_known_format:
        raise UserError(f"{path} has format {commit['format']!r}; this version reads format {FORMAT}")
    # a name with a slash would be read, and its hash believed, outside of the checkpoint
    if committed_step != step or STATE not in files or any(Path(name).name != name for name in files):
        raise UserError(f"{path} is damaged: it does not describe a checkpoint of step {step}")
    return files


def _verify(path: Path, sha256: str, size: int) -> None:
    if not path.is_file():
        raise UserError(f"checkpoint file {path} is missing")
    # the size first: it costs nothing, and is what a full disk or a broken copy changes
    if path.stat().st_size != size:
        raise UserError(f"checkpoint file {path} has {path.stat().st_size} bytes instead of {size}")
    if file_sha256(path) != sha256:
        raise UserError(f"checkpoint file {path} is damaged: its sha256 differs from {COMMIT}")


def _raise_disk_error(final: Path, needed: int, error: Exception) -> NoReturn:
    existing = next(path for path in final.parents if path.exists())
    free = shutil.disk_usage(existing).free
    raise UserError(
        f"cannot save checkpoint {final} ({needed:,} bytes; {free:,} bytes are free there): {error}",
        hint="Older checkpoints are intact. Free some space or fix the folder, then resume.",
    ) from error


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True)
        sync(folder.parent)


def _listing(steps: Sequence[int]) -> str:
    return ", ".join(str(step) for step in reversed(steps)) or "none"
