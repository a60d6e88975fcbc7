"""The list of SynCD pairs that the Customized-GRPO paper trains on, beside SynCD's images.

Layout, from `datasets/train_1w_syncd_embedding.json` in github.com/Safeoffellow/Customized-GRPO (6,924 rows,
read 2026-11): a list of `{"id", "category", "category_description", "ref_img", "img", "ref_prompt", "text"}`
with paths such as `14551/0.png` relative to a folder of images, and two paths of text embeddings that are
not needed here. The folder of the paths is the object. Their loader also accepts a list as `ref_img`.
The list has no masks; where SynCD's own lie beside the images (`14551/masks/0.jpg`), they are taken.
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
from customized_grpo.data.adapters.syncd import mask_of
from customized_grpo.data.row_checks import RowProblem

KEPT = ("category", "category_description", "ref_prompt")


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield the rows of the list.

    Raises:
        UserError: The list cannot be read, or the folder of its images is none.
    """
    items = read_json_list(source)
    folder = source_folder(options.images or source.parent)
    for number, item in enumerate(items, 1):
        yield attempt(number, partial(_draft, folder, number, item))


def _draft(folder: Path, number: int, raw: object) -> Draft:
    item = an_object(raw)
    names = item["ref_img"] if isinstance(item.get("ref_img"), list) else [text_of(item, "ref_img")]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise RowProblem("`ref_img` must be a path or a list of paths")
    references = tuple(source_image(folder, "ref_img", name) for name in names)
    target = source_image(folder, "img", text_of(item, "img"))
    masks = tuple(filter(None, [mask_of(folder, reference) for reference in references]))
    return Draft(
        number=number,
        id=text_of(item, "id"),
        prompt=text_of(item, "text"),
        references=references,
        subject=PurePosixPath(target.name).parent.as_posix(),
        masks=masks if len(masks) == len(references) else (),
        target=target,
        meta={key: item[key] for key in KEPT if item.get(key)},
    )


LAYOUT = Layout(
    name="syncd-pairs",
    title="the paper's JSON list of SynCD pairs; --images is the folder of the images",
    licence="images: as syncd; the list's repository names no licence",
    takes=frozenset({"images"}),
    read=read,
)
