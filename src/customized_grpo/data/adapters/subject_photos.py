"""The photos of a subject's folder as the references and targets of rows.

    turns  (of `folder`)      row k has photo k as its reference, counted in a circle
    first  (of `dreambench`)  every row has the first photo by name
    NAME                      every row has the photo of that name, without ending
    all                       every row has all photos as references, and no target

The target is the photo after the reference, in a circle; a subject with one photo has none. If some of the
photos have masks, only these take turns as references. Every file is opened once here, so that a damaged one
is left out by itself and not with every row of its subject.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from customized_grpo.data.adapters.base import Bad, Ignored, MaskFile, SourceImage, source_image
from customized_grpo.data.image_info import mask_size_problem
from customized_grpo.data.images import open_image, open_mask
from customized_grpo.data.row_checks import RowProblem
from customized_grpo.data.subject_folder import next_of, read_subject_folder
from customized_grpo.errors import UserError


@dataclass(frozen=True)
class Views:
    """The images of one row.

    Attributes:
        references: Its references.
        masks: Their masks; none if one of them is missing.
        target: Another photo of the subject.
    """

    references: tuple[SourceImage, ...]
    masks: tuple[MaskFile, ...]
    target: SourceImage | None


class SubjectPhotos:
    """The photos of a subject that can be used.

    Args:
        source: The resolved folder of all subjects.
        subject: The folder of this one.
        beside: Ending of files that belong to the photos and are read elsewhere, such as captions.
    """

    def __init__(self, source: Path, subject: Path, beside: str | None = None) -> None:
        self.name = subject.name
        self.source = source
        content = read_subject_folder(subject, beside)
        self.problems = list(content.problems)
        self.ignored = content.ignored
        self._images: dict[Path, SourceImage] = {}
        self._masks: dict[Path, MaskFile] = {}
        for photo in content.photos:
            self._open(photo, content.masks.get(photo))

    @property
    def files(self) -> list[Path]:
        """Return the photos that can be used, in the order of their names."""
        return list(self._images)

    def views_of_target(self, target: Path, choice: str) -> Views:
        """Return the images of a row that shows a photo: its references are other photos.

        Args:
            target: The photo.
            choice: turns: the next photo in a circle, of those with masks if there are any; all: all others.

        Raises:
            RowProblem: The subject has no other photo.
        """
        others = [photo for photo in self._images if photo != target]
        if choice == "turns":
            ring = [photo for photo in others if photo in self._masks] or others
            following = next_of(self._images, target, [photo for photo in self._images if photo not in ring])
            others = [] if following is None else [following]
        if not others:
            raise RowProblem(
                f"subject {self.name!r} has no photo besides {target.name!r} to be the reference"
            )
        return replace(self.views_of(others), target=self._images[target])

    def views(self, number: int, choice: str) -> Views:
        """Return the images of row `number` of the subject, counted from 0.

        Args:
            number: Of the row.
            choice: turns, first, all, or the name of a photo without its ending.

        Raises:
            RowProblem: The subject has no such photo.
        """
        photos = list(self._images)
        if choice == "turns":
            ring = [photo for photo in photos if photo in self._masks] or photos
            chosen = [ring[number % len(ring)]] if ring else []
        elif choice == "first":
            chosen = photos[:1]
        elif choice == "all":
            chosen = photos
        else:
            chosen = [photo for photo in photos if photo.stem == choice]
        if not chosen:
            which = "" if choice in ("turns", "first", "all") else f" {choice!r}"
            raise RowProblem(f"subject {self.name!r} has no photo{which}")
        return self.views_of(chosen)

    def views_of(self, chosen: list[Path]) -> Views:
        """Return the images of a row with these photos as its references.

        Raises:
            RowProblem: One of them is not there, or cannot be used.
        """
        missing = [photo for photo in chosen if photo not in self._images]
        if missing:
            raise RowProblem(f"subject {self.name!r} has no photo {missing[0].name!r} that can be used")
        # a target among the references would reward copying
        other = next_of(self._images, chosen[-1], chosen)
        masks = tuple(self._masks[photo] for photo in chosen if photo in self._masks)
        return Views(
            references=tuple(self._images[photo] for photo in chosen),
            # a row has a mask for every reference or none
            masks=masks if len(masks) == len(chosen) else (),
            target=None if other is None else self._images[other],
        )

    def notes(self, number: int) -> list[Bad | Ignored]:
        """Return what is left out of the folder; bad files are numbered from `number` on."""
        bad = [Bad(number + place, problem) for place, problem in enumerate(self.problems)]
        return [*bad, *(Ignored(kind) for kind in self.ignored)]

    def _open(self, photo: Path, mask: Path | None) -> None:
        try:
            # the path is checked before anything is opened, because a link may lead out of the source
            image = source_image(self.source, "reference", photo.relative_to(self.source).as_posix())
            size = open_image(photo).size
        except (RowProblem, UserError) as error:
            self.problems.append(error.message if isinstance(error, UserError) else str(error))
            return
        self._images[photo] = image
        if mask is None:
            return
        try:
            mask_size = open_mask(mask).size
        except UserError as error:
            self.problems.append(error.message)
            return
        if mask_size == size:
            self._masks[photo] = MaskFile(mask.relative_to(self.source).as_posix(), mask)
        else:
            self.problems.append(mask_size_problem(mask, mask_size, size))
