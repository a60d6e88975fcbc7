"""One training or evaluation row with its images in memory, and where such rows come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol

from customized_grpo.data.fitting import Fitting
from customized_grpo.data.images import image_size, open_image, open_mask, to_tensor
from customized_grpo.data.manifest import Row
from customized_grpo.data.split import subject_of
from customized_grpo.data.stored_rows import StoredRows

if TYPE_CHECKING:
    import torch

Bucket = tuple[tuple[int, ...], ...]
"""Shapes (3, height, width) of the references of an example."""


@dataclass(frozen=True)
class Example:
    """A prompt with the subject it is about.

    Attributes:
        id: Unique name of the row; part of every random seed that concerns it.
        prompt: What the image should show.
        references: Images of the subject, fp32 [3, height, width] in [0, 1].
        masks: The subject in each reference, fp32 [1, height, width] in [0, 1]; None if unknown.
        target: A true image of the subject as prompted, fp32 [3, height, width] in [0, 1], if there is one.
        subject: Name of the subject; rows of one subject are one cluster of every interval.
        meta: Whatever else the source knows.
    """

    id: str
    prompt: str
    references: tuple[torch.Tensor, ...]
    masks: tuple[torch.Tensor, ...] | None
    target: torch.Tensor | None
    subject: str
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def bucket(self) -> Bucket:
        """Return the shapes of the references: only examples that agree can be in one call of a policy."""
        return tuple(tuple(image.shape) for image in self.references)

    @property
    def has_target(self) -> bool:
        """Return whether there is a target; none is opened."""
        return self.target is not None


class StoredExample(Example):
    """An example of files, which are opened when its images are asked for.

    Args:
        row: The row.
        bucket: Returns the shapes of its references; called when they are asked for first.
        load: Opens all images of the row, or has them from before.
    """

    def __init__(self, row: Row, bucket: Callable[[], Bucket], load: Callable[[], Example]) -> None:
        # the dataclass's own __init__ would assign the images as well, which are properties here
        plain = {
            "id": row.id,
            "prompt": row.prompt,
            "subject": subject_of(row),
            "meta": dict(row.meta),
            "_find_bucket": cache(bucket),
            "_has_target": row.target is not None,
            "_load": load,
        }
        for name, value in plain.items():
            object.__setattr__(self, name, value)  # the dataclass is frozen

    @property
    def references(self) -> tuple[torch.Tensor, ...]:
        """Open the references."""
        return self._load().references

    @property
    def masks(self) -> tuple[torch.Tensor, ...] | None:
        """Open the masks."""
        return self._load().masks

    @property
    def target(self) -> torch.Tensor | None:
        """Open the target."""
        return self._load().target

    @property
    def bucket(self) -> Bucket:
        """Return the shapes of the references; of their files the headers are read at most."""
        return self._find_bucket()

    @property
    def has_target(self) -> bool:
        """Return whether there is a target; none is opened."""
        return self._has_target

    _find_bucket: Callable[[], Bucket]
    _has_target: bool
    _load: Callable[[], Example]


class ExampleSource(Protocol):
    """An indexable set of examples that makes each one on demand."""

    def __len__(self) -> int:
        """Return the number of examples."""
        ...

    def __getitem__(self, index: int) -> Example:
        """Return one example; always the same for the same index."""
        ...


class ManifestSource:
    """Examples of a manifest; images are opened on demand.

    Args:
        rows: Checked rows.
        fitting: The size and shape that references, masks and targets get.
    """

    def __init__(self, rows: Sequence[Row], fitting: Fitting) -> None:
        self.rows = rows
        self.fitting = fitting

    def __len__(self) -> int:
        return len(self.rows)

    def texts(self) -> list[tuple[str, str]]:
        """Return (id, prompt) of all rows, without a look at their files."""
        if isinstance(self.rows, StoredRows):
            return self.rows.texts()
        return [(row.id, row.prompt) for row in self.rows]

    def on_demand(self, keep: int) -> list[Example]:
        """Return all examples without their images, which are opened when they are asked for.

        Args:
            keep: Rows whose images stay in memory, those used last.
        """
        # references, masks and target are asked for one by one; the cache opens a row's files once for all
        load = lru_cache(maxsize=keep)(self.__getitem__)
        return [
            StoredExample(row, partial(self._bucket, row), partial(load, index))
            for index, row in enumerate(self.rows)
        ]

    def _bucket(self, row: Row) -> Bucket:
        n_references = len(row.references)
        if self.fitting.fit != "whole":  # known without a look at the files
            return ((3, self.fitting.height, self.fitting.width),) * n_references
        shapes = []
        for file in row.references:
            # Pillow counts (width, height), tensors [3, height, width].
            width, height = self.fitting.size_of(image_size(file), n_references)
            shapes.append((3, height, width))
        return tuple(shapes)

    def __getitem__(self, index: int) -> Example:
        """Open the images of row `index`."""
        row = self.rows[index]
        n_references = len(row.references)

        def load(images: Sequence[Any]) -> tuple[torch.Tensor, ...]:
            fitted = [self.fitting.apply(image, n_references) for image in images]
            return tuple(map(to_tensor, fitted))

        return Example(
            id=row.id,
            prompt=row.prompt,
            references=load([open_image(path) for path in row.references]),
            masks=load([open_mask(path) for path in row.masks]) if row.masks else None,
            target=None if row.target is None else load([open_image(row.target)])[0],
            subject=subject_of(row),
            meta=dict(row.meta),
        )
