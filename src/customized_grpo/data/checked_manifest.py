"""Open a manifest for a run: every line and every file checked once, and not again while nothing changes."""

from __future__ import annotations

import hashlib
import io
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from customized_grpo.data.file_table import NO_BOX, FileTable, OpenedFile, open_files
from customized_grpo.data.fingerprint import RowDigest
from customized_grpo.data.image_info import ImageInfo, ImageInspector
from customized_grpo.data.index_renewal import files_text, renew, reopen
from customized_grpo.data.manifest import LineReader, Row, load_manifest
from customized_grpo.data.manifest_index import ManifestIndex, index_path, read_index, write_index
from customized_grpo.data.split import subject_of
from customized_grpo.data.stored_rows import StoredRows
from customized_grpo.errors import UserError
from customized_grpo.reporting.counting import counting

MANY_FILES = 500
"""Files from which their check shows progress and leaves an index; fewer take seconds."""


@dataclass(frozen=True)
class CheckedManifest:
    """A manifest of which every line and every file is right.

    Attributes:
        rows: Its rows.
        folder: Its resolved folder.
        files: All files of the rows.
        subjects: Subjects of the rows, each once.
        fingerprint: A number of rows with a digest of their texts, and the same of their images.
        notes: What the user should know of the check, a sentence each.
        n_bare: Rows without references.
    """

    rows: StoredRows
    folder: Path
    files: FileTable
    subjects: frozenset[str]
    fingerprint: Mapping[str, str]
    notes: tuple[str, ...] = ()
    n_bare: int = 0


def open_manifest(path: Path, *, require_masks: bool, show: bool = False) -> CheckedManifest:
    """Check a manifest and every file that it names.

    Files are decoded unless the index beside the manifest knows them: by their size, and by the times of
    their last change and of the last change of their entry on the disk. The lines are checked unless the
    manifest is the same to the byte, and files that have changed are as right as they were.

    Args:
        path: The manifest.
        require_masks: Whether a row without masks is a mistake.
        show: Whether to show progress on stderr.

    Raises:
        UserError: As `load_manifest`.
    """
    folder = path.parent.resolve()
    try:
        # read once: digest, checks and rows are of the same bytes, even if the file is edited meanwhile
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read manifest {path}: {error.strerror}") from error
    digest = hashlib.sha256(content).hexdigest()
    # a file takes about a hundred bytes besides its name, and at least four of the manifest
    index = read_index(index_path(path), max_bytes=(1 << 20) + 64 * len(content))
    known: dict[tuple[str, bool], OpenedFile] = {}
    if index is not None:
        unchanged = index.files.unchanged(folder)
        # the index may be of a check that did not ask for masks
        if index.manifest == digest and (index.has_masks or not require_masks):
            if unchanged.all():
                return _checked(path, folder, content, index)
            renewed, known = _renewed(path, folder, index, np.flatnonzero(~unchanged).tolist(), show=show)
            if renewed is not None:
                return _checked(path, folder, content, renewed, _keep(path, renewed))
        # = _known_files|The manifest itself changed: what is known of files that did not is still true.
        known |= _known_files(index.files, np.flatnonzero(unchanged).tolist())
    lines = _read_lines(folder, content, require_masks=require_masks)
    opened = _open(path, folder, lines, known, show=show)
    infos = [file.info for file in opened]
    if lines.has_problem or not lines.n_rows or not _all_right(lines, infos):
        _refuse(path, folder, lines, infos, require_masks=require_masks)
    files = _table(lines, opened)
    places = np.array(lines.places, np.int32)
    index = ManifestIndex(
        manifest=digest,
        has_masks=lines.n_masked == lines.n_rows,
        n_bare=lines.n_bare,
        subjects=frozenset(lines.subjects),
        fingerprint={"rows": lines.digest.text(), "images": files_text(files, places)},
        files=files,
        places=places,
    )
    notes = _keep(path, index) if len(opened) >= MANY_FILES else ()
    return _checked(path, folder, content, index, notes)


def _checked(
    path: Path, folder: Path, content: bytes, index: ManifestIndex, notes: tuple[str, ...] = ()
) -> CheckedManifest:
    rows = StoredRows(path, folder, content)
    return CheckedManifest(rows, folder, index.files, index.subjects, index.fingerprint, notes, index.n_bare)


def _keep(path: Path, index: ManifestIndex) -> tuple[str, ...]:
    """Write the index; a folder that cannot be written is worth a note, no more."""
    target = index_path(path)
    try:
        write_index(target, index)
    except OSError as error:
        sentence = (
            f"{target} cannot be written ({error.strerror}), so every start decodes the "
            f"{len(index.files):,} files of {path.name} again; make its folder writable once"
        )
        return (sentence,)
    return ()


@dataclass
class _Lines:
    """What one pass over the lines of a manifest found; no row is kept.

    Attributes:
        files: Path from the folder and whether it is a mask -> place, in the order of appearance.
        references: Places of files that are references.
        places: Places of the references, masks and target of each row, row by row.
        pairs: Place of a mask and of its reference, one after the other.
        subjects: Subjects of the rows.
        digest: Digest of their texts.
        n_rows: Good rows.
        n_masked: Those with masks.
        n_bare: Those without references.
        has_problem: Whether any line is bad.
    """

    files: dict[tuple[str, bool], int] = field(default_factory=dict)
    references: set[int] = field(default_factory=set)
    places: array[int] = field(default_factory=lambda: array("q"))
    pairs: array[int] = field(default_factory=lambda: array("q"))
    subjects: set[str] = field(default_factory=set)
    digest: RowDigest = field(default_factory=RowDigest)
    n_rows: int = 0
    n_masked: int = 0
    n_bare: int = 0
    has_problem: bool = False

    def place(self, folder: Path, file: Path, *, is_mask: bool) -> int:
        """Return the place of a file, a new one for a new file."""
        # by text: `Path.relative_to` takes several times as long, and this runs for every file of every row
        name = str(file)[len(str(folder)) :].lstrip("/")
        return self.files.setdefault((name, is_mask), len(self.files))

    def add(self, folder: Path, row: Row) -> None:
        """Add a good row."""
        # file -> its place among all files of the manifest, the same for every row that names it
        references = [self.place(folder, file, is_mask=False) for file in row.references]
        masks = [self.place(folder, file, is_mask=True) for file in row.masks]
        self.references.update(references)
        self.places.extend((*references, *masks))
        if row.target is not None:
            self.places.append(self.place(folder, row.target, is_mask=False))
        # a row has as many masks as references, or none
        for mask, reference in zip(masks, references, strict=False):
            self.pairs.extend((mask, reference))
        self.subjects.add(subject_of(row))
        self.digest.add(row)
        self.n_rows += 1
        self.n_masked += bool(masks)
        self.n_bare += not references


def _read_lines(folder: Path, content: bytes, *, require_masks: bool) -> _Lines:
    lines = _Lines()
    for _, row, _ in LineReader(folder, None, require_masks=require_masks).read_all(io.BytesIO(content)):
        if row is None:
            lines.has_problem = True
        else:
            lines.add(folder, row)
    return lines


def _renewed(
    path: Path, folder: Path, index: ManifestIndex, places: list[int], *, show: bool
) -> tuple[ManifestIndex | None, dict[tuple[str, bool], OpenedFile]]:
    """Open changed files of an index again; return it renewed (None if a row may be wrong now) and them."""
    with _progress(f"checking images of {path.name}", len(places), show=show) as on_file:
        opened = reopen(folder, index.files, places, on_file)
    if opened is None:
        return None, {}
    keys = [(index.files.names[place], bool(index.files.is_mask[place])) for place in places]
    return renew(index, places, opened), dict(zip(keys, opened, strict=True))


def _known_files(files: FileTable, places: list[int]) -> dict[tuple[str, bool], OpenedFile]:
    """Return files of an index that have not changed."""
    known = {}
    for place in places:
        key = (files.names[place], bool(files.is_mask[place]))
        size, changed, moved = files.stamps[place].tolist()
        known[key] = OpenedFile(files.info(place), (size, changed, moved), files.digests[place].tobytes())
    return known


def _open(
    path: Path, folder: Path, lines: _Lines, known: Mapping[tuple[str, bool], OpenedFile], *, show: bool
) -> list[OpenedFile]:
    """Return every file of the rows, decoding those that are not known."""
    # Only these are decoded; the order of the result is that of `lines.files` all the same.
    new = [key for key in lines.files if key not in known]
    with _progress(f"checking images of {path.name}", len(new), show=show) as on_file:
        opened = open_files([(folder / name, is_mask) for name, is_mask in new], on_file)
    by_key = {**known, **dict(zip(new, opened, strict=True))}
    return [by_key[key] for key in lines.files]


@contextmanager
def _progress(what: str, total: int, *, show: bool) -> Iterator[Callable[[], None]]:
    if not show or total < MANY_FILES:
        yield lambda: None
        return
    with closing(counting(what, total)) as counter:
        yield lambda: counter.add(1)


def _all_right(lines: _Lines, infos: list[ImageInfo | str]) -> bool:
    """Return whether every file could be decoded, and every mask has the size of its reference."""
    if any(isinstance(info, str) for info in infos):
        return False
    # no info is a text here, so nothing is left out and `sizes` has the places of `infos`
    sizes = [info.size for info in infos if isinstance(info, ImageInfo)]
    pairs = zip(lines.pairs[::2], lines.pairs[1::2], strict=True)
    return all(sizes[mask] == sizes[reference] for mask, reference in pairs)


def _refuse(
    path: Path, folder: Path, lines: _Lines, infos: list[ImageInfo | str], *, require_masks: bool
) -> None:
    """List every mistake.

    Raises:
        UserError: Always.
    """
    # the first pass kept no messages, so the lines are read again; the files are not opened again
    inspector = ImageInspector()
    for (name, is_mask), info in zip(lines.files, infos, strict=True):
        inspector.remember(folder / name, info, is_mask=is_mask)
    load_manifest(path, require_masks=require_masks, inspector=inspector)
    raise UserError(f"{path} was changed while it was checked", hint="Start again.")


def _table(lines: _Lines, opened: list[OpenedFile]) -> FileTable:
    infos = [file.info for file in opened if isinstance(file.info, ImageInfo)]
    is_reference = np.zeros(len(opened), np.bool_)
    is_reference[list(lines.references)] = True
    return FileTable(
        names=[name for name, _ in lines.files],
        is_mask=np.array([is_mask for _, is_mask in lines.files], np.bool_),
        is_reference=is_reference,
        stamps=np.array([file.stamp for file in opened], np.int64),
        sizes=np.array([info.size for info in infos], np.int32),
        boxes=np.array([info.box or NO_BOX for info in infos], np.int32),
        digests=np.frombuffer(b"".join(file.digest for file in opened), np.uint8).reshape(-1, 32),
    )
