"""From the body of a request to a batch of pictures, refusing what is too large before decoding any of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from customized_grpo.rewards.base import ScoringBatch
from customized_grpo.rewards.service.pictures import PictureError, decode_png, pixel_count
from customized_grpo.rewards.service.wire import Message, Sample, ScoreRequest, from_base64

AnyMessage = TypeVar("AnyMessage", bound=Message)


class Refusal(Exception):
    """An answer other than the one that was asked for.

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
        self.status, self.detail, self.hint = status, detail, hint
        self.missing, self.retry_after = missing or [], retry_after


def parse(message: type[AnyMessage], body: bytes) -> AnyMessage:
    """Read a body.

    Raises:
        Refusal: It is not JSON of that form; lists the first mistakes, without their values.
    """
    try:
        return message.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)
        shown = "; ".join(f"{'.'.join(map(str, one['loc'])) or 'body'}: {one['msg']}" for one in found[:5])
        raise Refusal(422, f"{len(found)} mistakes in the request: {shown}") from error


def named_references(request: ScoreRequest) -> list[str]:
    """Return the references and masks a request names, with repetitions."""
    masks = [sha256 for sample in request.samples for sha256 in sample.reference_masks or ()]
    return [sha256 for sample in request.samples for sha256 in sample.references] + masks


def to_batch(request: ScoreRequest, files: dict[str, bytes], max_pixels: int) -> ScoringBatch:
    """Decode the pictures of a request.

    Args:
        request: The request.
        files: Contents of the references and masks it names.
        max_pixels: Largest number of pixels in all: pictures, masks, and each named reference once.

    Raises:
        Refusal: A picture is no acceptable PNG, the pictures differ in size, or they are too large.
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
        references=[[reference[sha] for sha in row] for row in rows],
        reference_masks=[[mask[sha] for sha in row] for row in mask_rows] if mask_rows else None,
        image_masks=_stacked("image_mask", masks) if masks else None,
        meta=[dict(s.meta) for s in request.samples],
    )


def _check_masks_are_alike(samples: list[Sample]) -> None:
    for field in ("reference_masks", "image_mask"):
        if len({getattr(sample, field) is None for sample in samples}) > 1:
            raise Refusal(422, f"{field} must be given for all samples of a request or for none")


def _distinct(rows: list[list[str]]) -> set[str]:
    return {sha256 for row in rows for sha256 in row}


class _Budget:
    """Checks headers against a number of pixels; decoding is left to the functions it returns.

    Args:
        pixels: How many there may be in all.
    """

    def __init__(self, pixels: int) -> None:
        self.limit = self.left = pixels

    def open(self, what: str, text: str, channels: int) -> Callable[[], Tensor]:
        """Take a picture in base64."""
        try:
            return self.take(what, from_base64(text), channels)
        except ValueError as error:
            raise Refusal(422, f"{what}: {error}") from error

    def take(self, what: str, png: bytes, channels: int) -> Callable[[], Tensor]:
        """Count a picture's pixels; returns what decodes it to fp32 [channels, H, W] in [0, 1]."""
        try:
            self.left -= pixel_count(png, channels)
        except PictureError as error:
            raise Refusal(422, f"{what}: {error}") from error
        if self.left < 0:
            raise Refusal(
                413,
                f"the pictures of a request have more than {self.limit:,} pixels in all",
                "Ask about fewer at once (rollout.batch_size), or raise the service's --max-pixels.",
            )

        def decode() -> Tensor:
            try:
                return decode_png(png, channels).float() / 255
            except PictureError as error:
                raise Refusal(422, f"{what}: {error}") from error

        return decode


def _stacked(field: str, pictures: list[Callable[[], Tensor]]) -> Tensor:
    tensors = [decode() for decode in pictures]
    if len({tensor.shape for tensor in tensors}) > 1:
        sizes = ", ".join(sorted({f"{tensor.shape[2]} x {tensor.shape[1]}" for tensor in tensors}))
        raise Refusal(422, f"the pictures of a request must have one size; {field} has {sizes}")
    return torch.stack(tensors)
