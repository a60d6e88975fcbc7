"""From the body of a request to a batch of images; a request that is too large is refused before decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from customized_grpo.rewards.base import ScoringBatch
from customized_grpo.rewards.service.png import PngError, decode_png, pixel_count
from customized_grpo.rewards.service.protocol import Message, Sample, ScoreRequest, from_base64

AnyMessage = TypeVar("AnyMessage", bound=Message)
MISTAKES_LISTED = 5


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


def to_batch(request: ScoreRequest, files: dict[str, bytes], max_pixels: int) -> ScoringBatch:
    """Decode the images of a request.

    Args:
        request: The request.
        files: Contents of the references and masks it names.
        max_pixels: Largest number of pixels in all: images, masks, and each named reference once.

    Raises:
        Refusal: An image is no acceptable PNG, the images differ in size, or they are too large.
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
    named = {sha: budget.take(f"reference {sha}", files[sha], 3) for sha in _distinct(rows)}
    named_masks = {sha: budget.take(f"mask {sha}", files[sha], 1) for sha in _distinct(mask_rows)}
    reference = {sha: decode() for sha, decode in named.items()}
    mask = {sha: decode() for sha, decode in named_masks.items()}
    return ScoringBatch(
        images=_stacked("image", images),
        prompts=[s.prompt for s in request.samples],
        references=_looked_up(rows, reference),
        reference_masks=_looked_up(mask_rows, mask) if mask_rows else None,
        image_masks=_stacked("image_mask", masks) if masks else None,
        meta=[dict(s.meta) for s in request.samples],
    )


def _check_masks_are_alike(samples: list[Sample]) -> None:
    for field in ("reference_masks", "image_mask"):
        if len({getattr(sample, field) is None for sample in samples}) > 1:
            raise Refusal(422, f"{field} must be given for all samples of a request or for none")


def _looked_up(rows: list[list[str]], tensors: dict[str, Tensor]) -> list[list[Tensor]]:
    return [list(map(tensors.__getitem__, row)) for row in rows]


def _distinct(rows: list[list[str]]) -> set[str]:
    return set().union(*rows)


class _Budget:
    """A bound of pixels: counts images by their headers, and returns functions that decode them later.

    Args:
        pixels: How many there may be in all.
    """

    def __init__(self, pixels: int) -> None:
        self.limit = self.left = pixels

    def open(self, what: str, text: str, channels: int) -> Callable[[], Tensor]:
        """Take an image in base64."""
        try:
            return self.take(what, from_base64(text), channels)
        except ValueError as error:
            raise Refusal(422, f"{what}: {error}") from error

    def take(self, what: str, png: bytes, channels: int) -> Callable[[], Tensor]:
        """Count an image's pixels; return the function that decodes it to fp32 [channels, H, W] in [0, 1]."""
        try:
            self.left -= pixel_count(png, channels)
        except PngError as error:
            raise Refusal(422, f"{what}: {error}") from error
        if self.left < 0:
            raise Refusal(
                413,
                f"the images of a request have more than {self.limit:,} pixels in all",
                "Ask about fewer at once (rollout.batch_size), or raise the service's --max-pixels.",
            )

        def decode() -> Tensor:
            try:
                return decode_png(png, channels).float() / 255
            except PngError as error:
                raise Refusal(422, f"{what}: {error}") from error

        return decode


def _stacked(field: str, decoders: list[Callable[[], Tensor]]) -> Tensor:
    tensors = [decode() for decode in decoders]
    if len({tensor.shape for tensor in tensors}) > 1:
        sizes = ", ".join(sorted({f"{tensor.shape[2]} x {tensor.shape[1]}" for tensor in tensors}))
        raise Refusal(422, f"the images of a request must have one size; {field} has {sizes}")
    return torch.stack(tensors)
