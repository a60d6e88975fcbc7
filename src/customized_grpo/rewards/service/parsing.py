"""From the body of a request to a batch of images; a request that is too large is refused before decoding."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from customized_grpo.rewards.base import ScoringBatch
from customized_grpo.rewards.service.png import PngError, decode_png, size
from customized_grpo.rewards.service.protocol import Message, Sample, ScoreRequest, from_base64

AnyMessage = TypeVar("AnyMessage", bound=Message)
MISTAKES_LISTED = 5
MENTIONED = 8
FEWER = "Ask about fewer at once (rollout.batch_size), or raise the service's --max-pixels."
MAX_VALUES = 1_000_000  # in the JSON of a request: 64 MiB of "[],[]," would be gigabytes of objects


class Refusal(Exception):
    """An HTTP error response.

    Args:
        status: HTTP status.
        detail: What is wrong.
        hint: What to do about it, if the detail does not say.
        missing: References that must be uploaded first.
        retry_after: Seconds after which to try again, if that helps.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        hint: str | None = None,
        missing: list[str] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.hint = hint
        self.missing = missing or []
        self.retry_after = retry_after


def parse(message: type[AnyMessage], body: bytes) -> AnyMessage:
    """Return the message in a body.

    Raises:
        Refusal: It is not JSON of that form; lists the first mistakes, without their values.
    """
    # a bound before anything is parsed; commas inside texts count too, but are few
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise Refusal(413, f"the request has more than {MAX_VALUES:,} values in its JSON")
    try:
        return message.model_validate_json(body)
    except ValidationError as error:
        mistakes = error.errors(include_url=False, include_input=False, include_context=False)
        first = []
        for mistake in mistakes[:MISTAKES_LISTED]:
            place = ".".join(str(part) for part in mistake["loc"]) or "body"
            first.append(f"{place}: {mistake['msg']}")
        raise Refusal(422, f"{len(mistakes)} mistakes in the request: {'; '.join(first)}") from error


def named_references(request: ScoreRequest) -> list[str]:
    """Return the references and masks that a request names, with repetitions."""
    references: list[str] = []
    masks: list[str] = []
    for sample in request.samples:
        references += sample.references
        masks += sample.reference_masks or ()
    return references + masks


@dataclass(frozen=True)
class Decoding:
    """Images of a request that have been measured by their headers, and are still compressed.

    Attributes:
        request: The request.
        pixels: How many its images have, each named reference once.
        images: The samples' images.
        image_masks: The samples' masks; empty: they have none.
        references: References by sha256.
        reference_masks: Masks of references by sha256.
    """

    request: ScoreRequest
    pixels: int
    images: list[_Image]
    image_masks: list[_Image]
    references: dict[str, _Image]
    reference_masks: dict[str, _Image]

    def batch(self) -> ScoringBatch:
        """Return the batch: 12 bytes of memory for a pixel.

        Raises:
            Refusal: An image is damaged, or the images differ in size.
        """
        samples = self.request.samples
        images = _stacked("image", self.images)
        references = {sha: image.decode() for sha, image in self.references.items()}
        masks = {sha: image.decode() for sha, image in self.reference_masks.items()}
        mask_rows = [s.reference_masks for s in samples if s.reference_masks is not None]
        return ScoringBatch(
            images=images,
            prompts=[s.prompt for s in samples],
            references=_looked_up([s.references for s in samples], references),
            reference_masks=_looked_up(mask_rows, masks) if mask_rows else None,
            image_masks=_stacked("image_mask", self.image_masks) if self.image_masks else None,
            meta=[dict(s.meta) for s in samples],
        )


def measure(request: ScoreRequest, files: dict[str, bytes], max_pixels: int) -> Decoding:
    """Measure the images of a request by their headers.

    Args:
        request: The request.
        files: Contents of the references and masks it names.
        max_pixels: Largest number of pixels in all: images, masks, and each named reference once. Mentions of
            references, which cost a reward time and not memory, may have `MENTIONED` times as many.

    Raises:
        Refusal: An image is no acceptable PNG, or they are too large.
    """
    _check_masks_are_alike(request.samples)
    budget = _Budget(max_pixels)
    images = [budget.open(f"samples.{i}.image", s.image, 3) for i, s in enumerate(request.samples)]
    masks = [
        budget.open(f"samples.{i}.image_mask", s.image_mask, 1)
        for i, s in enumerate(request.samples)
        if s.image_mask is not None
    ]
    rows = [s.references for s in request.samples]
    mask_rows = [s.reference_masks for s in request.samples if s.reference_masks is not None]
    references = {sha: budget.take(f"reference {sha}", files[sha], 3) for sha in _distinct(rows)}
    reference_masks = {sha: budget.take(f"mask {sha}", files[sha], 1) for sha in _distinct(mask_rows)}
    # A file may be small and named a thousand times: every mention becomes pixels of a batch.
    mentioned = sum(references[sha].pixels for sha in itertools.chain.from_iterable(rows))
    if mentioned > MENTIONED * max_pixels:
        raise Refusal(413, f"the references of a request have {mentioned:,} pixels in all", FEWER)
    return Decoding(request, budget.limit - budget.left, images, masks, references, reference_masks)


def _check_masks_are_alike(samples: list[Sample]) -> None:
    for field in ("reference_masks", "image_mask"):
        if len({getattr(sample, field) is None for sample in samples}) > 1:
            raise Refusal(422, f"{field} must be given for all samples of a request or for none")


def _looked_up(rows: list[list[str]], tensors: dict[str, Tensor]) -> list[list[Tensor]]:
    return [list(map(tensors.__getitem__, row)) for row in rows]


def _distinct(rows: list[list[str]]) -> set[str]:
    return set().union(*rows)


@dataclass(frozen=True)
class _Image:
    """A PNG whose header is acceptable.

    Attributes:
        what: What it is, for messages.
        png: The file.
        channels: 3 or 1.
        size: Width and height in pixels.
    """

    what: str
    png: bytes
    channels: int
    size: tuple[int, int]

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1]

    def decode(self) -> Tensor:
        """Return fp32 [channels, H, W] in [0, 1]."""
        try:
            return decode_png(self.png, self.channels).float() / 255
        except PngError as error:
            raise Refusal(422, f"{self.what}: {error}") from error


class _Budget:
    """A bound of pixels that counts images by their headers.

    Args:
        pixels: How many there may be in all.
    """

    def __init__(self, pixels: int) -> None:
        self.limit = self.left = pixels

    def open(self, what: str, text: str, channels: int) -> _Image:
        """Take an image in base64."""
        try:
            return self.take(what, from_base64(text), channels)
        except ValueError as error:
            raise Refusal(422, f"{what}: {error}") from error

    def take(self, what: str, png: bytes, channels: int) -> _Image:
        """Count an image's pixels."""
        try:
            image = _Image(what, png, channels, size(png, channels))
        except PngError as error:
            raise Refusal(422, f"{what}: {error}") from error
        # Counted by headers, before one pixel is decoded.
        self.left -= image.pixels
        if self.left < 0:
            raise Refusal(413, f"the images of a request have more than {self.limit:,} pixels in all", FEWER)
        return image


def _stacked(field: str, images: list[_Image]) -> Tensor:
    """Return [N, channels, H, W], without a second copy of all."""
    if len({image.size for image in images}) > 1:
        sizes = ", ".join(sorted({f"{image.size[0]} x {image.size[1]}" for image in images}))
        raise Refusal(422, f"the images of a request must have one size; {field} has {sizes}")
    width, height = images[0].size
    stacked = torch.empty(len(images), images[0].channels, height, width)
    for target, image in zip(stacked, images, strict=True):
        target.copy_(image.decode())
    return stacked
