"""UNO's JSON list of prompts and images, for training and for evaluation.

Layout, from `uno/dataset/uno.py` and `datasets/dreambench_singleip.json` in github.com/bytedance/UNO (read
2026-11): a list of `{"prompt", "image_paths": [path] (or "image_path": path), "image_tgt_path": path}`, the
target optional, paths relative to the folder of the list. Subjects are not named: by default rows with the
same references are about the same subject; `--subject folder` takes the folder of the first reference, as it
is right for lists of DreamBench.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from customized_grpo.data.adapters.base import (
    Draft,
    Item,
    Layout,
    Options,
    an_object,
    attempt,
    read_json_list,
    source_folder,
    source_image,
    text_of,
)
from customized_grpo.data.adapters.names import SubjectChoice
from customized_grpo.data.row_checks import RowProblem


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield the rows of the list.

    Raises:
        UserError: The list cannot be read, or the folder of its images is none.
    """
    items = read_json_list(source)
    folder = source_folder(options.images or source.parent)
    for number, item in enumerate(items, 1):
        yield attempt(number, partial(_draft, folder, number, item, options.subject))


def _draft(folder: Path, number: int, raw: object, choice: SubjectChoice | None) -> Draft:
    item = an_object(raw)
    names = reference_paths(item)
    references = tuple(source_image(folder, "image_paths", name) for name in names)
    target = item.get("image_tgt_path")
    if choice is SubjectChoice.folder:
        # an image right beside the list has no folder, so its name is empty
        subject = PurePosixPath(names[0]).parent.name or "."
    else:
        subject = " + ".join(reference.name for reference in references)
    return Draft(
        number=number,
        id=f"row-{number:06d}",
        prompt=text_of(item, "prompt"),
        references=references,
        subject=subject,
        target=None
        if target is None
        else source_image(folder, "image_tgt_path", text_of(item, "image_tgt_path")),
    )


def reference_paths(item: object) -> list[str]:
    """Return the references of a row; raises RowProblem if they are not paths."""
    row = an_object(item)
    names = [row["image_path"]] if "image_path" in row else row.get("image_paths")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise RowProblem("`image_paths` must be a list of paths")
    return names


LAYOUT = Layout(
    name="uno",
    title="UNO's JSON list of {prompt, image_paths, image_tgt_path}",
    licence="that of its images",
    takes=frozenset({"images", "subject"}),
    read=read,
)
