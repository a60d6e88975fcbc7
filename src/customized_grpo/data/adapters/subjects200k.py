"""Subjects200K: two images of one object side by side in one image, with ratings.

Layout, from the cards of huggingface.co/datasets/Yuanshi/Subjects200K (Apache-2.0) and the authors' reader
(`dataset.py` in github.com/Yuanshi9815/Subjects200K), read 2026-11: parquet files `data/train-*.parquet` with
the columns `image` {bytes, path}, `collection`, `quality_assessment` {compositeStructure, objectConsistency,
imageQuality: 0..5, or null} and `description` {item, description_0, description_1, category,
description_valid}. The authors keep rows that are rated 5 three times.

Each image is 1056 x 528 pixels; their reader cuts two squares of 512 pixels, at (8, 8) and (528, 8), which is
what is done here: the left one becomes the reference, the right one the target with its description as the
prompt, `item` the subject. Another size is refused: the geometry of the third collection (1024 pixels) could
not be verified.

A folder export is read as well: the images with a `metadata.jsonl` whose rows have `file_name` and the other
columns, as the library `datasets` lays out folders of images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from customized_grpo.data.adapters.base import (
    Cut,
    Draft,
    Dropped,
    Item,
    Layout,
    Options,
    SourceImage,
    an_object,
    attempt,
    number_of,
    source_folder,
    text_of,
)
from customized_grpo.data.row_checks import RowProblem, resolve_path
from customized_grpo.errors import UserError

MIN_QUALITY = 5
RATINGS = ("compositeStructure", "objectConsistency", "imageQuality")
COMPOSITE = (1056, 528)
LEFT = Cut((8, 8, 520, 520), COMPOSITE)
RIGHT = Cut((528, 8, 1040, 520), COMPOSITE)

_COLUMNS = ["image", "collection", "quality_assessment", "description"]
_BATCH = 64  # rows of a parquet file in memory at a time, about 0.1 MB each


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield the pairs whose ratings pass.

    Raises:
        UserError: There is neither a metadata.jsonl nor a parquet file, or pyarrow is missing for the latter.
    """
    folder = source_folder(source)
    minimum = MIN_QUALITY if options.min_quality is None else options.min_quality
    rows = _folder_rows(folder) if (folder / "metadata.jsonl").is_file() else _parquet_rows(folder)
    for number, row in enumerate(rows, 1):
        yield attempt(number, partial(_draft, folder, number, row, minimum))


def _draft(folder: Path, number: int, raw: object, minimum: int) -> Draft | Dropped:
    if isinstance(raw, RowProblem):
        raise raw
    row = an_object(raw)
    ratings = row.get("quality_assessment")
    if not isinstance(ratings, dict):
        return Dropped(number, "no quality_assessment")
    # a rating that is missing or null counts as 0, the worst
    if any((number_of(ratings.get(key)) or 0) < minimum for key in RATINGS):
        return Dropped(number, f"quality_assessment < {minimum}")
    description = row.get("description")
    if not isinstance(description, dict) or description.get("description_valid") is False:
        return Dropped(number, "no valid description")
    source = _composite(folder, row)
    # the published rows have no id; their place is stable, because files are read in sorted order
    row_id = f"pair-{number:06d}"
    return Draft(
        number=number,
        id=row_id,
        prompt=text_of(description, "description_1"),
        references=(SourceImage(f"{row_id}-left.jpg", source, LEFT),),
        subject=text_of(description, "item"),
        target=SourceImage(f"{row_id}-right.jpg", source, RIGHT),
        meta={
            "category": description.get("category"),
            "collection": row.get("collection"),
            "reference_prompt": description.get("description_0"),
        },
    )


def _composite(folder: Path, row: Mapping[str, Any]) -> Path | bytes:
    if "file_name" in row:
        return resolve_path(folder, "file_name", text_of(row, "file_name"))
    cell = row.get("image")
    if not isinstance(cell, dict) or not isinstance(cell.get("bytes"), bytes):
        raise RowProblem("`image` holds no bytes")
    content: bytes = cell["bytes"]
    return content


def _folder_rows(folder: Path) -> Iterator[object]:
    with (folder / "metadata.jsonl").open("rb") as file:
        for line in file:
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    # yielded: an exception inside a generator would end it, and no later row would be read
                    yield RowProblem(f"is not JSON: {error}")


def _parquet_rows(folder: Path) -> Iterator[object]:
    files = sorted(folder.glob("*.parquet")) or sorted((folder / "data").glob("*.parquet"))
    if not files:
        raise UserError(
            f"{folder} has neither metadata.jsonl nor *.parquet",
            hint="SOURCE is the downloaded folder of Yuanshi/Subjects200K, or an export of it.",
        )
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(
            "reading parquet files needs pyarrow, which is not installed",
            hint="Install it with: pip install 'customized-grpo[parquet]'.",
        ) from error
    for file in files:
        try:
            with pyarrow.parquet.ParquetFile(file) as table:
                for batch in table.iter_batches(batch_size=_BATCH, columns=_COLUMNS):
                    yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{file} cannot be read as Subjects200K: {error}") from error


LAYOUT = Layout(
    name="subjects200k",
    title="Subjects200K: parquet files, or images with metadata.jsonl",
    licence="Apache-2.0",
    takes=frozenset({"min_quality"}),
    read=read,
)
