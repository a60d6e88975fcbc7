"""From a chat completion to a score.

Whole numbers tie: a group of twelve images that all get a 3 has no spread, so there is nothing to learn. If
the endpoint sends the log-probabilities of its tokens, the score is therefore the expectation over the digits
that it could have written, renormalised to those on the scale; otherwise it is the digit it wrote.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

LogProb = Annotated[float, Field(le=0, allow_inf_nan=False)]
_SCORE = re.compile(r'"score"\s*:\s*([0-9])')
LAST_DIGIT = 9  # beyond it, a first digit could be that of 1 or of 10


@dataclass(frozen=True)
class Failure:
    """Why a sample has no score.

    Attributes:
        reason: In a few words that repeat, so that they can be counted.
        excerpt: What the endpoint said; may be empty.
    """

    reason: str
    excerpt: str = ""


class _Candidate(BaseModel):
    token: str
    logprob: LogProb


class _Token(_Candidate):
    top_logprobs: list[_Candidate] = []


class _LogProbs(BaseModel):
    content: list[_Token] | None = None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    logprobs: _LogProbs | None = None


class _Completion(BaseModel):
    """The parts of a chat completion that matter here; others are ignored, every vendor adds some."""

    choices: Annotated[list[_Choice], Field(min_length=1)]


class _Verdict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    score: int


def read_score(body: bytes, scale: int) -> float | Failure:
    """Return the score in [0, scale] of a chat completion, or why there is none.

    Args:
        body: The answer of the endpoint.
        scale: The best score.
    """
    try:
        choice = _Completion.model_validate_json(body).choices[0]
    except ValidationError as error:
        wrong = error.errors()[0]
        reason = "not JSON" if wrong["type"] == "json_invalid" else "not a chat completion"
        return Failure(reason, body.decode("utf-8", "replace"))
    content = choice.message.content
    if content is None:
        return Failure("refused", choice.message.refusal or "")
    try:
        score = _Verdict.model_validate_json(content).score
    except ValidationError:
        return Failure("no whole number as score", content)
    if not 0 <= score <= scale:
        return Failure(f"score outside 0 to {scale}", content)
    tokens = choice.logprobs.content if choice.logprobs is not None else None
    expected = expected_score(content, tokens, scale) if tokens and scale <= LAST_DIGIT else None
    return float(score) if expected is None else expected


def expected_score(content: str, tokens: Sequence[_Token], scale: int) -> float | None:
    """Return the mean score over the token that holds the digit; None if it cannot be found.

    Args:
        content: The answer's text, '{"score": 3}' in some spacing.
        tokens: The tokens of the answer; a reasoning model's include what it thought before.
        scale: The best score, at most 9.
    """
    start = "".join(token.token for token in tokens).rfind(content)
    match = _SCORE.search(content)
    if start < 0 or match is None:
        return None
    position = start + match.start(1)
    for token in tokens:
        if position < len(token.token):
            # Tokenizers differ in what shares a token with the digit: a space or colon before, a brace after.
            same = re.compile(re.escape(token.token[:position]) + r"([0-9])\s*}?\s*")
            return _mean([token, *token.top_logprobs], same, scale)
        position -= len(token.token)
    return None


def _mean(candidates: Iterable[_Candidate], same: re.Pattern[str], scale: int) -> float | None:
    by_token = {candidate.token: math.exp(candidate.logprob) for candidate in candidates}
    weights = []
    for token, weight in by_token.items():
        match = same.fullmatch(token)
        if match is not None and int(match.group(1)) <= scale:
            weights.append((int(match.group(1)), weight))
    total = sum(weight for _, weight in weights)
    return sum(score * weight for score, weight in weights) / total if total > 0 else None
