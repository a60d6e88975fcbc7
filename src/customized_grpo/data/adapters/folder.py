"""Your own photos: a folder per subject, and a file of prompts.

    photos/red_backpack/01.jpg, 02.jpg, 01.mask.png     prompts.txt:  a {} on the beach
    photos/my_dog/a.png, class.txt                                    a red {}

Every subject meets every prompt. `{}` in a prompt becomes the subject's class: the line in its `class.txt`,
or the name of its folder with digits at the end left out and underscores as spaces. `01.mask.png` beside
`01.jpg` is its mask, 255 on the subject. By default the photos take turns as the reference, and the target is
the next photo: it does not show what is asked for, but the subject from another side, which is what the copy
score and the identity judges compare with (see `subject_photos.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from customized_grpo.data.adapters.base import (
    Bad,
    Draft,
    Ignored,
    Item,
    Layout,
    Options,
    read_lines,
    source_folder,
)
from customized_grpo.data.adapters.subject_photos import SubjectPhotos
from customized_grpo.data.row_checks import RowProblem
from customized_grpo.data.subject_folder import CLASS_FILE, PHOTO_ENDINGS, is_clutter, read_subject_folder
from customized_grpo.errors import UserError


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
    subjects, ignored = _sort_folders(folder)
    yield from ignored
    if not subjects:
        raise UserError(f"{source} has no folder with images", hint="Make one folder per subject.")
    number = 1
    for subject in subjects:
        photos = SubjectPhotos(folder, subject)
        for note in photos.notes(number):
            # a bad file is reported like a row and takes a number; an ignored file is only counted
            number += isinstance(note, Bad)
            yield note
        for index, prompt in enumerate(prompts):
            try:
                name = _class_of(subject)
                views = photos.views(index, options.reference or "turns")
            except RowProblem as problem:
                yield Bad(number, str(problem))
                number += 1
                break  # it is the same for every prompt
            yield Draft(
                number=number,
                id=f"{subject.name}-{index:03d}",
                prompt=prompt.replace("{}", name),
                references=views.references,
                subject=subject.name,
                masks=views.masks,
                target=views.target,
                meta={"class": name, "prompt_index": index},
            )
            number += 1


def _sort_folders(folder: Path) -> tuple[list[Path], list[Ignored]]:
    """Return the subjects, and what else lies in the folder."""
    subjects = []
    ignored = []
    for path in sorted(folder.iterdir()):
        if is_clutter(path):
            ignored.append(Ignored("files of systems and tools (hidden, Thumbs.db, ...)"))
        elif path.is_dir():
            content = read_subject_folder(path)
            # a folder whose only photos are unreadable is a subject with a mistake, not a folder to ignore
            if content.photos or content.problems:
                subjects.append(path)
            else:
                ignored.append(Ignored("folders without an image"))
        elif path.suffix.lower() in PHOTO_ENDINGS:
            ignored.append(Ignored("images outside of a subject's folder"))
    return subjects, ignored


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
    file = subject / CLASS_FILE
    if not file.is_file():
        return re.sub(r"[\d_]+$", "", subject.name).replace("_", " ") or subject.name
    try:
        lines = read_lines(file)
    except UserError as error:
        raise RowProblem(error.message) from error
    if len(lines) > 1:
        raise RowProblem(f"{file} must hold one line, not {len(lines)}")
    return lines[0]


LAYOUT = Layout(
    name="folder",
    title="your own: a folder per subject, and --prompts",
    licence="your own",
    takes=frozenset({"prompts", "reference"}),
    read=read,
)
