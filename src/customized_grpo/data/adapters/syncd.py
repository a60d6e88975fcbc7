"""SynCD as its authors publish it: groups of generated views of one object, with masks.

Layout, from the loader and the generator in github.com/nupurkmr9/syncd (`method/data/data.py`,
`dataset/gen_deformable.py`, read 2026-11): the folder holds `*metadata*.json`, each a list of
`{"filenames": [path, ...], "prompts": [text, ...], "category": "rigid" | "deformable", "objaverse_id"}`,
one prompt per file; the mask of `a/b.jpg` is `a/masks/b.jpg`, in which every value above 0 is the object, and
which may be smaller than the image (the loader scales it up). Each view becomes a row: the view is the
target, its prompt the prompt, the next view of the group the reference.

How the published archives spell `filenames` could not be verified: the generator writes its own output folder
in front. A path is therefore looked up from its end: the longest tail that exists in the folder is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from customized_grpo.data.adapters.base import (
    Bad,
    Draft,
    Item,
    Layout,
    MaskFile,
    Options,
    SourceImage,
    an_object,
    attempt,
    read_json_list,
    source_folder,
    source_image,
)
from customized_grpo.data.row_checks import RowProblem
from customized_grpo.errors import UserError


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield a row per view; a group that is bad as a whole is one bad row.

    Raises:
        UserError: The folder has no metadata, or a file of it is not a list.
    """
    folder = source_folder(source)
    files = sorted(folder.glob("*metadata*.json"))
    if not files:
        raise UserError(
            f"{source} has no *metadata*.json",
            hint="SOURCE is the unpacked folder of nupurkmr9/syncd; the authors' paper list is syncd-pairs.",
        )
    number = 0
    for file in files:
        for group, item in enumerate(read_json_list(file)):
            subject = f"{file.stem}-{group:06d}"
            try:
                views = _views(an_object(item))
            except RowProblem as problem:
                number += 1
                yield Bad(number, f"{file.name}, group {group + 1}: {problem}")
                continue
            for view in range(len(views)):
                number += 1
                yield attempt(number, partial(_draft, folder, number, subject, views, view, item))


def _views(item: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return file and prompt of every view."""
    names = item.get("filenames")
    prompts = item.get("prompts")
    for key, value in (("filenames", names), ("prompts", prompts)):
        if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
            raise RowProblem(f"`{key}` must be a list of texts")
    # for mypy only: the loop above refuses anything else
    assert isinstance(names, list) and isinstance(prompts, list)
    if len(names) != len(prompts):
        raise RowProblem(f"has {len(names)} filenames for {len(prompts)} prompts")
    if len(names) < 2:
        raise RowProblem("has one view only, so there is no reference for it")
    return list(zip(names, prompts, strict=True))


def _draft(
    folder: Path, number: int, subject: str, views: list[tuple[str, str]], view: int, item: Mapping[str, Any]
) -> Draft:
    name, prompt = views[view]
    reference = find(folder, "filenames", views[(view + 1) % len(views)][0])
    mask = mask_of(folder, reference)
    return Draft(
        number=number,
        id=f"{subject}-{view}",
        prompt=prompt.strip(),
        references=(reference,),
        subject=subject,
        masks=() if mask is None else (mask,),
        target=find(folder, "filenames", name),
        meta={key: item[key] for key in ("category", "objaverse_id") if item.get(key)},
    )


def find(folder: Path, key: str, name: str) -> SourceImage:
    """Return the image at the longest tail of a recorded path that exists in the folder.

    Raises:
        RowProblem: No tail does.
    """
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", ".")]
    for start in range(len(parts)):
        tail = "/".join(parts[start:])
        if (folder / tail).is_file():
            return source_image(folder, key, tail)
    raise RowProblem(f"`{key}`: {name!r} is not in the folder")


def mask_of(folder: Path, reference: SourceImage) -> MaskFile | None:
    """Return the mask that SynCD keeps for an image, or None if that file is missing."""
    place = PurePosixPath(reference.name)
    path = folder / place.parent / "masks" / f"{place.stem}.jpg"
    if not path.is_file():
        return None
    return MaskFile(place.with_suffix(".png").as_posix(), path, nonzero=True)


LAYOUT = Layout(
    name="syncd",
    title="SynCD: groups of views with metadata*.json and masks/",
    licence="see huggingface.co/datasets/nupurkmr9/syncd; made with FLUX.1-dev, whose licence bounds its use",
    takes=frozenset(),
    read=read,
)
