"""From a chat completion to a score.

Whole numbers tie: a group of twelve images that all get a 3 has no spread, so there is nothing to learn. If
the endpoint sends the log-probabilities of its tokens, the score is therefore the expectation over the digits
that it could have written, renormalised to those on the scale; otherwise it is the digit it wrote. Gateways
write log-probabilities in odd ways: one that cannot be read never costs a score that is there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

CUT_OFF = "answer cut off (raise max_tokens)"
ROUNDING = 1e-3  # a log-probability this far above 0 is still one: fp16 sums round
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


def _log_prob(value: object) -> float | None:
    """Return a log-probability, -1e300 for -infinity; None for what is none, NaN among them."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= ROUNDING:
        return None
    return min(float(max(value, -1e300)), 0.0)  # an int may be too large for a float


class _Candidate(BaseModel):
    token: str
    logprob: Annotated[float | None, BeforeValidator(_log_prob)] = None


class _Token(_Candidate):
    top_logprobs: list[_Candidate] | None = None


class _LogProbs(BaseModel):
    content: list[_Token] | None = None


def _text(content: object) -> object:
    """Return the text of an answer that comes in parts, as some gateways send it."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text", "") for part in content if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


class _Message(BaseModel):
    content: Annotated[str | None, BeforeValidator(_text)] = None
    refusal: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: Any = None
    logprobs: Any = None


class _Completion(BaseModel):
    """The parts of a chat completion that matter here; others are ignored, every vendor adds some."""

    choices: Annotated[list[_Choice], Field(min_length=1)]


def _whole(score: object) -> object:
    """Return 3 for 3.0, which is the same number in JSON."""
    return int(score) if isinstance(score, float) and score.is_integer() else score


class _Verdict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    score: Annotated[int, BeforeValidator(_whole)]


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
    cut_off = choice.finish_reason == "length"
    if content is None:
        return Failure(CUT_OFF) if cut_off else Failure("refused", choice.message.refusal or "")
    try:
        score = _Verdict.model_validate_json(content).score
    except ValidationError:
        return Failure(CUT_OFF if cut_off else "no whole number as score", content)
    # An endpoint may ignore the schema that it was given.
    if not 0 <= score <= scale:
        return Failure(f"score outside 0 to {scale}", content)
    tokens = _tokens(choice.logprobs)
    # The mean over the digit's alternatives: whole numbers tie, and ties teach nothing.
    expected = expected_score(content, tokens, scale) if tokens and scale <= LAST_DIGIT else None
    return float(score) if expected is None else expected


def _tokens(logprobs: object) -> list[_Token]:
    """Return the tokens of an answer; none if they cannot be read."""
    try:
        return _LogProbs.model_validate(logprobs).content or []
    except ValidationError:
        return []


def expected_score(content: str, tokens: Sequence[_Token], scale: int) -> float | None:
    """Return the mean score over the token that holds the digit; None if it cannot be found.

    Args:
        content: The answer's text, '{"score": 3}' in some spacing.
        tokens: The tokens of the answer; a reasoning model's include what it thought before.
        scale: The best score, at most 9.
    """
    content = content.strip()
    # The last place, because a model that thinks may have quoted its answer before.
    start = "".join(token.token for token in tokens).rfind(content)
    match = _SCORE.search(content)
    if start < 0 or match is None:
        return None
    position = start + match.start(1)
    for token in tokens:
        if position < len(token.token):
            # Tokenizers differ in what shares a token with the digit: a space or colon before, a brace after.
            before = re.escape(_without_spaces(token.token[:position]))
            return _mean([token, *(token.top_logprobs or [])], re.compile(before + "([0-9])}?"), scale)
        position -= len(token.token)
    return None


def _mean(candidates: Iterable[_Candidate], same: re.Pattern[str], scale: int) -> float | None:
    """Return the mean of the digits on the scale, weighted by probability; None if one is not known."""
    by_token: dict[str, float | None] = {}
    for candidate in candidates:
        if by_token.get(candidate.token) is None:  # the written token stands among its alternatives as well
            by_token[candidate.token] = candidate.logprob
    weights = []
    for token, log_prob in by_token.items():
        match = same.fullmatch(_without_spaces(token))
        if match is None or int(match.group(1)) > scale:
            continue
        if log_prob is None:
            return None
        weights.append((int(match.group(1)), math.exp(log_prob)))
    total = sum(weight for _, weight in weights)
    # Divided by what the digits have in all: other tokens have the rest.
    return sum(score * weight for score, weight in weights) / total if total > 0 else None


def _without_spaces(token: str) -> str:
    """Return a token without white space: `3` and ` 3` are the same score."""
    return "".join(token.split())
