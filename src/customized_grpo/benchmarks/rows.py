"""The rows of a benchmark, read from its published files.

dreambench    DreamBooth's 30 subjects x 25 prompts; see `customized_grpo.data.dreambench`.
dreambenchpp  DreamBench++ (arXiv 2406.16855): 150 images x 9 prompts. `images/**/NN.jpg` and
              `captions/**/NN.txt` with equal paths; the first line of a caption names the subject, the others
              are its prompts (4 photorealistic, 3 of another style, 2 imaginative); the folder is the
              category: live_subject/animal, live_subject/human, object, style.
omnicontext   OmniContext (arXiv 2506.18871), 8 task types of 50 rows. A JSONL file, or a folder with
              data.jsonl, of {"key", "task_type", "instruction", "input_images": [path]}: the fields that its
              published scorer reads from the hub's rows, with paths in place of the images.
manifest      Rows of your own, as for training; `meta.category` and `meta.prompt_type` split the tables.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from customized_grpo.data.dreambench import dreambench_folder, read_dreambench
from customized_grpo.data.listing import a_few
from customized_grpo.data.manifest import load_manifest
from customized_grpo.data.row_checks import RowProblem, resolve_path
from customized_grpo.data.split import subject_of
from customized_grpo.data.subject_folder import is_clutter
from customized_grpo.errors import UserError

DREAMBENCHPP_GROUPS = ("photorealistic",) * 4 + ("stylised",) * 3 + ("imaginative",) * 2
OMNICONTEXT_TASKS = (
    "single_character", "single_object",
    "multi_character", "multi_object", "multi_character_object",
    "scene_character", "scene_object", "scene_character_object",
)  # fmt: skip


@dataclass(frozen=True)
class BenchmarkRow:
    """One prompt about one subject; paths are absolute.

    Attributes:
        id: Unique in the benchmark; part of the seed of its images and of their file names.
        prompt: The prompt.
        references: Images that the generator is given.
        photos: Every photo of the subject, references included; `--reference-mode all` compares with these.
        masks: Mask of the subject in each reference; may be empty.
        subject: Name of the subject, the cluster of every interval.
        category: Kind of subject.
        prompt_type: Kind of change that the prompt asks for.
    """

    id: str
    prompt: str
    references: tuple[Path, ...]
    photos: tuple[Path, ...]
    masks: tuple[Path, ...]
    subject: str
    category: str
    prompt_type: str


def list_rows(benchmark: str, data: Path) -> list[BenchmarkRow]:
    """Read all rows of a benchmark.

    Args:
        benchmark: A name in `BENCHMARKS`.
        data: Its folder or file.

    Raises:
        UserError: The data are missing or of another form.
    """
    return BENCHMARKS[benchmark](data)


def choose_rows(
    rows: Sequence[BenchmarkRow], *, subjects: Sequence[str] = (), limit: int | None = None
) -> list[BenchmarkRow]:
    """Return some of the rows, in their order.

    Args:
        rows: Rows of a benchmark.
        subjects: Names of the subjects; empty means all.
        limit: Largest number of rows, taken in turn from the subjects so that few rows still have many
            clusters; None means all.

    Raises:
        UserError: A subject is unknown.
    """
    names = {row.subject for row in rows}
    unknown = [name for name in subjects if name not in names]
    if unknown:
        raise UserError(
            f"--subject: there is no {', '.join(map(repr, unknown))}",
            hint=f"There is {', '.join(sorted(names))}.",
        )
    selected = [row for row in rows if not subjects or row.subject in subjects]
    return selected if limit is None else _spread(selected, limit)


def shard(rows: Sequence[BenchmarkRow], rank: int, world: int) -> list[BenchmarkRow]:
    """Return the rows that process `rank` of `world` generates: every world-th, so that all finish together.

    Raises:
        ValueError: There is no such process.
    """
    if not 0 <= rank < world:
        raise ValueError(f"there is no process {rank} among {world}")
    return list(rows[rank::world])


def _spread(rows: Sequence[BenchmarkRow], limit: int) -> list[BenchmarkRow]:
    """Return `limit` rows, the first of every subject before the second of any, in the benchmark's order.

    Subject number k starts at its k-th prompt, so that one row of each does not repeat one prompt.
    """
    by_subject: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        by_subject.setdefault(row.subject, []).append(number)
    rotated = []
    for k, numbers in enumerate(by_subject.values()):
        start = k % len(numbers)
        rotated.append(numbers[start:] + numbers[:start])
    taken: list[int] = []
    longest = max(map(len, rotated), default=0)
    for turn in range(longest):
        taken += [numbers[turn] for numbers in rotated if turn < len(numbers)]
    return [rows[number] for number in sorted(taken[:limit])]


def _dreambench(data: Path) -> list[BenchmarkRow]:
    bench = read_dreambench(data)
    folder = dreambench_folder(data)
    rows = []
    problems: list[tuple[str, str]] = []
    for subject in bench.subjects:
        problems += _file_problems(folder, f"subject {subject.name}", subject.photos)
        for number, (prompt, kind) in enumerate(bench.prompts(subject)):
            rows.append(
                BenchmarkRow(
                    id=f"{subject.name}-{number:02d}",
                    prompt=prompt,
                    references=subject.photos[:1],
                    photos=subject.photos,
                    masks=(),
                    subject=subject.name,
                    category="live" if subject.is_live else "object",
                    prompt_type=kind,
                )
            )
    if problems:
        raise UserError(f"{data} cannot be used:\n  " + "\n  ".join(a_few(problems)))
    return rows


def _dreambenchpp(data: Path) -> list[BenchmarkRow]:
    folder = data / "captions"
    captions = []
    # sorted: the hash of the data is over the rows in order, and file systems list in orders of their own
    for file in sorted(folder.rglob("*.txt")):
        if not any(is_clutter(Path(part)) for part in file.relative_to(folder).parts):
            captions.append(file)
    if not captions:
        raise UserError(
            f"{data} has no captions/**/*.txt, so it is not DreamBench++",
            hint="Name the unpacked folder `data`, with `captions` and `images` in it.",
        )
    rows: list[BenchmarkRow] = []
    problems: list[tuple[str, str]] = []
    for caption in captions:
        image = data / "images" / caption.relative_to(folder).with_suffix(".jpg")
        unusable = _file_problems(data, str(caption), (caption, image))
        problems += unusable
        if unusable:
            continue
        lines = _read_text(caption, "a caption is a text in UTF-8").split("\n")
        subject = lines[0].strip()
        prompts = [line.strip() for line in lines[1:] if line.strip()]
        if len(prompts) != len(DREAMBENCHPP_GROUPS):
            problems.append((str(caption), f"{len(prompts)} prompts, not {len(DREAMBENCHPP_GROUPS)}"))
            continue
        # with the category, because files are numbered anew in each
        name = "-".join((caption.parent.name, caption.stem, *subject.lower().split()))
        rows += [
            BenchmarkRow(
                id=f"{name}-{number}",
                prompt=prompt,
                references=(image.resolve(),),
                photos=(image.resolve(),),
                masks=(),
                subject=name,
                category=caption.parent.name,
                prompt_type=group,
            )
            for number, (prompt, group) in enumerate(zip(prompts, DREAMBENCHPP_GROUPS, strict=True))
        ]
    if problems:
        raise UserError("DreamBench++ is incomplete:\n  " + "\n  ".join(a_few(problems)))
    return rows


def _omnicontext(data: Path) -> list[BenchmarkRow]:
    file = data / "data.jsonl" if data.is_dir() else data
    text = _read_text(file, "OmniContext is a JSONL file of {key, task_type, instruction, input_images}")
    rows: list[BenchmarkRow] = []
    problems: list[tuple[str, str]] = []
    # not splitlines, which also cuts at U+2028: JSON may hold one inside of a text
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(_omnicontext_row(line, file.parent.resolve()))
        except ValueError as error:
            problems.append((f"line {number}", str(error)))
    if problems or not rows:
        raise UserError(
            f"{file} is not OmniContext:\n  " + "\n  ".join(a_few(problems) or ["it holds no rows"])
        )
    if len({row.id for row in rows}) != len(rows):
        raise UserError(f"{file}: two rows of one task type share a key")
    return rows


def _omnicontext_row(line: str, folder: Path) -> BenchmarkRow:
    """Return the row of a line.

    Raises:
        ValueError: Says what is wrong with it.
    """
    try:
        item: dict[str, Any] = json.loads(line)
        key = str(item["key"])
        task = item["task_type"]
        prompt = item["instruction"]
        names = item["input_images"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"not an object with key, task_type, instruction and input_images ({error!r})"
        ) from error
    if task not in OMNICONTEXT_TASKS:
        raise ValueError(f"unknown task_type {task!r}")
    if not isinstance(prompt, str) or not isinstance(names, list) or not names:
        raise ValueError("instruction must be text and input_images a list of paths")
    try:
        images = tuple(resolve_path(folder, "input_images", str(name)) for name in names)
    except RowProblem as problem:
        raise ValueError(str(problem)) from problem
    # such as "multi_object": the kind of the prompt, then that of the subjects
    kind, _, category = task.partition("_")
    # Every row has images of its own, so each is a cluster of its own.
    return BenchmarkRow(
        id=f"{task}-{key}",
        prompt=prompt,
        references=images,
        photos=images,
        masks=(),
        subject=f"{task}-{key}",
        category=category,
        prompt_type=kind,
    )


def _file_problems(folder: Path, name: str, files: Sequence[Path]) -> list[tuple[str, str]]:
    """Return (name, what is wrong) for each file that is missing or that a link leads out of the folder."""
    problems = []
    for file in files:
        try:
            resolve_path(folder.resolve(), "file", str(file.relative_to(folder)))
        except RowProblem as problem:
            problems.append((name, str(problem)))
    return problems


def _read_text(file: Path, form: str) -> str:
    """Return the text of a file, with or without a byte order mark.

    Raises:
        UserError: It cannot be read, or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError(f"{file}: cannot be read ({reason})", hint=f"{form[0].upper()}{form[1:]}.") from error


def _manifest(data: Path) -> list[BenchmarkRow]:
    file = data / "manifest.jsonl" if data.is_dir() else data
    rows = load_manifest(file, require_masks=False)
    bare = [(f"row {row.id!r}", "has no references") for row in rows if not row.references]
    if bare:
        lines = "".join(f"\n  {line}" for line in a_few(bare))
        raise UserError(f"{file}: a benchmark compares images with photos of their subject:{lines}")
    photos: dict[str, dict[Path, None]] = {}  # by subject; a dict is a set that keeps the order
    for row in rows:
        # a target is a photo of the subject as well
        files = [*row.references] if row.target is None else [*row.references, row.target]
        photos.setdefault(subject_of(row), {}).update(dict.fromkeys(files))
    return [
        BenchmarkRow(
            id=row.id,
            prompt=row.prompt,
            references=row.references,
            photos=tuple(photos[subject_of(row)]),
            masks=row.masks,
            subject=subject_of(row),
            category=str(row.meta.get("category", "all")),
            prompt_type=str(row.meta.get("prompt_type", "all")),
        )
        for row in rows
    ]


BENCHMARKS: dict[str, Callable[[Path], list[BenchmarkRow]]] = {
    "dreambench": _dreambench,
    "dreambenchpp": _dreambenchpp,
    "omnicontext": _omnicontext,
    "manifest": _manifest,
}
"""The reader of each benchmark, by name."""
