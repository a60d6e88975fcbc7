"""The messages between a trainer and a reward service: JSON with lossless PNG in base64.

Nothing here is a path, a URL or a pickle. References and their masks are sent once and then named by the
sha256 of their PNG. A sample that could not be scored is null.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from customized_grpo.rewards.base import Kind

PROTOCOL = 2
PROBLEM_TYPE = "application/problem+json"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Message(BaseModel):
    """Strict types and no unknown keys."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class RewardInfo(Message):
    """One reward of a service."""

    name: str
    """Name in the service's recipe, which requests use."""
    label: str
    """The reward's own name, in metrics and messages."""
    kind: Kind
    fingerprint: dict[str, Any]
    digest: Sha256
    """`digest_of(fingerprint)`; a request repeats it, so that it is never scored by another reward."""
    groupwise: bool = False
    """Whether a request must be the whole group of one prompt."""
    settings: dict[str, str] = {}
    """`registry.scoring_settings` of the service's recipe, which must be those of the client's."""


class Info(Message):
    """Answer of GET /v1/info."""

    protocol: int
    rewards: list[RewardInfo]
    merge: int
    """Samples of several requests that may be scored together; 0: none, so scores are exactly repeatable."""


class References(Message):
    """Body of POST /v1/references/missing, and its response: the requested hashes that are not stored."""

    sha256: Annotated[list[Sha256], Field(max_length=10_000)]


class Sample(Message):
    """One image to score."""

    image: str
    """RGB PNG, base64."""
    prompt: str
    references: list[Sha256]
    """Of RGB PNGs uploaded before."""
    reference_masks: list[Sha256] | None
    """Of grey PNGs uploaded before, one for each reference."""
    image_mask: str | None
    """Grey PNG, base64."""
    meta: dict[str, JsonValue]


class ScoreRequest(Message):
    """Body of POST /v1/score."""

    reward: str
    digest: Sha256
    samples: Annotated[list[Sample], Field(min_length=1)]


class ScoreAnswer(Message):
    """Answer of POST /v1/score: a number for each sample, null where it could not be scored."""

    scores: list[float | None]


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    title: str
    status: int
    detail: str
    hint: str | None = None
    missing: list[Sha256] = []
    """References that must be uploaded first."""


def digest_of(fingerprint: dict[str, Any]) -> str:
    """Return the sha256 of a fingerprint."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()


def to_base64(data: bytes) -> str:
    """Return bytes as base64."""
    return base64.b64encode(data).decode("ascii")


def from_base64(text: str) -> bytes:
    """Return the bytes of a base64 text.

    Raises:
        ValueError: It is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64: {error}") from error
