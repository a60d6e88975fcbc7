"""Your own photos: a folder per subject, and a file of prompts.

    photos/red_backpack/01.jpg, 02.jpg, 01.mask.png     prompts.txt:  a {} on the beach
    photos/my_dog/a.png, class.txt                                    a red {}

Every subject meets every prompt. `{}` in a prompt becomes the subject's class: the line in its `class.txt`,
or the name of its folder with digits at the end left out and underscores as spaces. `01.mask.png` beside
`01.jpg` is its mask, 255 on the subject. There is no target: nobody photographed what is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from customized_grpo.data.adapters.base import (
    Bad,
    Draft,
    Item,
    Layout,
    MaskFile,
    Options,
    Picture,
    picture,
    read_lines,
    source_folder,
)
from customized_grpo.data.manifest import RowProblem
from customized_grpo.errors import UserError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
MASK_ENDING = ".mask.png"


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield a row per subject and prompt.

    Raises:
        UserError: There is no subject or no prompt, or a prompt has other braces than `{}`.
    """
    folder = source_folder(source)
    if options.prompts is None:
        raise UserError(
            "--prompts is missing", hint="It names a file with a prompt a line, such as: a {} on the beach."
        )
    prompts = _prompts(options.prompts)
    subjects = sorted(path for path in folder.iterdir() if path.is_dir() and photos(path))
    if not subjects:
        raise UserError(f"{source} has no folder with images", hint="Make one folder per subject.")
    number = 0
    for subject in subjects:
        try:
            references = choose_references(folder, subject, options.reference or "first")
            name = _class_of(subject)
        except RowProblem as problem:
            number += 1
            yield Bad(number, str(problem))
            continue
        masks = _masks(folder, references)
        for index, prompt in enumerate(prompts):
            number += 1
            yield Draft(
                number=number,
                id=f"{subject.name}-{index:03d}",
                prompt=prompt.replace("{}", name),
                references=references,
                subject=subject.name,
                masks=masks,
                meta={"class": name, "prompt_index": index},
            )


def photos(subject: Path) -> list[Path]:
    """Return the images of a subject by name, its masks left out."""
    return sorted(
        path
        for path in subject.iterdir()
        if path.suffix.lower() in ENDINGS and not path.name.endswith(MASK_ENDING)
    )


def choose_references(folder: Path, subject: Path, choice: str) -> tuple[Picture, ...]:
    """Return the chosen photos of a subject: "first" by name, "all", or the one of that name without ending.

    Raises:
        RowProblem: The subject has no such photo, or it is no file of the folder.
    """
    found = photos(subject)
    if choice == "first":
        found = found[:1]
    elif choice != "all":
        found = [path for path in found if path.stem == choice]
    if not found:
        raise RowProblem(f"subject {subject.name!r} has no photo {choice!r}")
    return tuple(picture(folder, "reference", path.relative_to(folder).as_posix()) for path in found)


def _prompts(file: Path) -> Sequence[str]:
    prompts = read_lines(file)
    wrong = [prompt for prompt in prompts if re.search(r"[{}]", prompt.replace("{}", ""))]
    if wrong:
        raise UserError(
            f"{file}: {len(wrong)} of the prompts have braces other than {{}}, the first: {wrong[0]}",
            hint="{} stands for the subject's class; nothing else is replaced.",
        )
    return prompts


def _class_of(subject: Path) -> str:
    file = subject / "class.txt"
    if not file.is_file():
        return re.sub(r"[\d_]+$", "", subject.name).replace("_", " ") or subject.name
    lines = read_lines(file)
    if len(lines) > 1:
        raise RowProblem(f"{file} must hold one line, not {len(lines)}")
    return lines[0]


def _masks(folder: Path, references: Sequence[Picture]) -> tuple[MaskFile, ...]:
    """Return a mask per reference, or none if one of them is missing."""
    masks = []
    for reference in references:
        name = Path(reference.name).with_suffix(MASK_ENDING).as_posix()
        if (folder / name).is_file():
            masks.append(MaskFile(name, folder / name))
    return tuple(masks) if len(masks) == len(references) else ()


LAYOUT = Layout(
    name="folder",
    title="your own: a folder per subject, and --prompts",
    licence="your own",
    takes=frozenset({"prompts", "reference"}),
    read=read,
)
