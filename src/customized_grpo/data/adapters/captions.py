"""Photos with a caption beside each, as trainers of LoRAs take them: a photo is the target of its caption.

    photos/my_dog/01.jpg   01.txt: my dog sleeping on a red sofa
    photos/my_dog/02.jpg   02.txt: my dog in the snow          02.mask.png
    photos/my_dog/03.jpg   without a caption: a reference alone

A folder per subject, or the photos of one subject alone. A row's prompt is the caption of a photo, its target
that photo, and its references other photos of the subject: the next one in a circle (`turns`, the default; of
those with masks, if some have one), or all others (`all`). So every photo is used, and no row shows its own
target.
"""

from __future__ import annotations

from collections.abc import Iterator
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
from customized_grpo.data.subject_folder import CLASS_FILE, find_photos, is_clutter
from customized_grpo.errors import UserError

CAPTION = ".txt"


def read(source: Path, options: Options) -> Iterator[Item]:
    """Yield a row per captioned photo.

    Raises:
        UserError: There is no photo, none has a caption, or --reference is neither turns nor all.
    """
    folder = source_folder(source)
    choice = options.reference or "turns"
    if choice not in ("turns", "all"):
        raise UserError(f"--reference {choice}: captions takes turns or all", hint="Leave it out for turns.")
    subjects = _subjects(folder)
    if not subjects:
        raise UserError(f"{source} has no photos", hint="Make one folder per subject, or name that of one.")
    number = 1
    n_captions = 0
    for subject in subjects:
        photos = SubjectPhotos(folder, subject, beside=CAPTION)
        for note in photos.notes(number):
            number += isinstance(note, Bad)
            yield note
        captions = _captions(subject)
        stems = {photo.stem for photo in photos.files}
        yield from [Ignored("captions without a photo of their name")] * len(captions.keys() - stems)
        for photo in photos.files:
            caption = captions.get(photo.stem)
            if caption is None:
                yield Ignored("photos without a caption, which are references alone")
                continue
            n_captions += 1
            yield _row(number, photos, photo, caption, choice)
            number += 1
    if not n_captions:
        raise UserError(
            f"no photo of {source} has a caption",
            hint=f"The caption of 01.jpg is the text of 01{CAPTION} beside it; the layout `folder` "
            "takes --prompts instead.",
        )


def _subjects(folder: Path) -> list[Path]:
    """Return the folders with photos: those inside, or the folder itself."""
    if find_photos(folder):
        return [folder]
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not is_clutter(path)]
    return [path for path in inside if find_photos(path)]


def _captions(subject: Path) -> dict[str, Path]:
    """Return the captions of a subject by the name of their photo, without its ending."""
    captions = {}
    for path in sorted(subject.iterdir()):
        if path.suffix.lower() == CAPTION and path.name != CLASS_FILE and not is_clutter(path):
            captions[path.stem] = path
    return captions


def _row(number: int, photos: SubjectPhotos, photo: Path, caption: Path, choice: str) -> Draft | Bad:
    try:
        prompt = " ".join(read_lines(caption))
        views = photos.views_of_target(photo, choice)
    except UserError as error:
        return Bad(number, error.message)
    except RowProblem as problem:
        return Bad(number, str(problem))
    return Draft(
        number=number,
        id=f"{photos.name}-{photo.stem}",
        prompt=prompt,
        references=views.references,
        subject=photos.name,
        masks=views.masks,
        target=views.target,
    )


LAYOUT = Layout(
    name="captions",
    title="your own: a caption file beside each photo",
    licence="your own",
    takes=frozenset({"reference"}),
    read=read,
)
