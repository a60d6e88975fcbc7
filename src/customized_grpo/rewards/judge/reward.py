"""`judge`: a vision-language model behind any OpenAI-compatible endpoint (vLLM, SGLang, hosted).

Range 0 to the rubric's scale. A sample that could not be judged is NaN and counted by reason; a batch in
which none could be stops the step. Judges are rarely exactly repeatable: an image is asked about once per
process, but a resumed run asks again.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections import Counter
from typing import Annotated, Any
from urllib.parse import urlsplit

import torch
from cachetools import LRUCache
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from customized_grpo.errors import UserError
from customized_grpo.keys import read_key, why_not
from customized_grpo.pixels import encode_png, to_uint8
from customized_grpo.rewards.base import Kind, RewardError, ScoringBatch
from customized_grpo.rewards.features import content_key
from customized_grpo.rewards.judge.answers import Failure, read_score
from customized_grpo.rewards.judge.client import JudgeClient, check_url
from customized_grpo.rewards.judge.rubrics import RUBRICS, Rubric, RubricName
from customized_grpo.rewards.options import RewardOptions

NAME = "judge"
CACHED_SCORES = 65536
TOP_TOKENS = 20  # as many as OpenAI and vLLM give

logger = logging.getLogger(__name__)


class JudgeOptions(RewardOptions):
    """The endpoint of the judge and its rubric."""

    url: Annotated[str, AfterValidator(check_url)]
    """Address of the API, for example http://localhost:8000/v1, without user, password or query."""
    model: Annotated[str, Field(min_length=1)]
    """Name of the model, as the endpoint knows it."""
    rubric: RubricName | None = None
    """Built-in rubric from 0 to 4: identity, prompt, edit_identity or edit_prompt; null asks `text`."""
    text: Annotated[str, Field(min_length=1)] | None = None
    """Rubric of your own: what is judged and the meaning of each score."""
    kind: Kind | None = None
    """Kind of your own rubric: identity is shown the references too, prompt the prompt, quality neither."""
    scale: Annotated[int, Field(ge=1, le=100)] | None = None
    """Best score of your own rubric (the worst is 0); null means 4; log-probabilities are used up to 9."""
    log_probs: bool = True
    """Whether to ask for log-probabilities; false for an endpoint that refuses them, and then scores tie."""
    max_tokens: Annotated[int, Field(ge=8, le=2**20)] = 32
    """Most tokens of an answer; a model that thinks first needs some thousands."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed sent with each request; the temperature is 0."""
    concurrency: Annotated[int, Field(ge=1, le=256)] = 8
    """Requests under way at once."""
    timeout_s: Annotated[float, Field(gt=0, le=3600)] = 60.0
    """Longest time for one attempt, in seconds; an attempt that takes longer is not repeated."""
    retries: Annotated[int, Field(ge=0, le=10)] = 4
    """Further attempts after a connection error or status 408, 429 or 5xx."""
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Environment variable with the API key: CGRPO_..., or one in CGRPO_KEYS; null sends none."""
    use_proxy: bool = False
    """Whether HTTP_PROXY, HTTPS_PROXY and NO_PROXY are followed; a proxy of plain HTTP sees the key."""

    @model_validator(mode="after")
    def _check_rubric(self) -> JudgeOptions:
        if (self.rubric is None) == (self.text is None):
            raise ValueError("give either rubric or text")
        if self.rubric is not None and (self.kind is not None or self.scale is not None):
            raise ValueError(
                "kind and scale belong to a rubric of your own (text); a built-in one has its own"
            )
        if self.text is not None and self.kind is None:
            raise ValueError("text needs a kind: identity, prompt or quality")
        return self

    @model_validator(mode="after")
    def _check_key(self) -> JudgeOptions:
        problem = None if self.api_key_env is None else why_not(self.api_key_env, self.url)
        if problem is not None:
            raise ValueError(f"api_key_env: {self.api_key_env}: {problem}")
        return self

    def the_rubric(self) -> Rubric:
        """Return the built-in rubric or one's own."""
        if self.rubric is not None:
            return RUBRICS[self.rubric]
        assert self.text is not None and self.kind is not None, "checked above"
        return Rubric(self.kind, self.text, 4 if self.scale is None else self.scale)


class JudgeReward:
    """Reward in [0, scale] by a model that is asked about each image.

    Args:
        options: The endpoint and the rubric.

    Raises:
        UserError: The environment variable with the key is not set, or cannot be a key.
    """

    name = NAME

    def __init__(self, options: JudgeOptions) -> None:
        self.options = options
        self.rubric = options.the_rubric()
        self.kind: Kind = self.rubric.kind
        self.needs_references = self.rubric.is_edit
        self._client = JudgeClient(
            options.url,
            key=_read_key(options),
            concurrency=options.concurrency,
            timeout_s=options.timeout_s,
            retries=options.retries,
            use_proxy=options.use_proxy,
        )
        self._scores: LRUCache[bytes, float] = LRUCache(CACHED_SCORES)

    def score(self, batch: ScoringBatch) -> Tensor:
        """Return scores [B], fp32, on the CPU; NaN where the judge gave none.

        Raises:
            UserError: A reference that the rubric needs is missing.
            RewardError: No sample of the batch could be scored.
        """
        # before anything is asked: an answer may cost money
        if self.rubric.shows_references:
            for row, references in enumerate(batch.references):
                if not references:
                    raise UserError(
                        f"reward {self.name!r}: {batch.label(row)} has no reference",
                        hint="Name an image of the subject in the row's references, or leave the row out.",
                    )
        keys = [self._key(batch, row) for row in range(len(batch))]
        # Equal images with equal questions are one entry, also over iterations.
        scores = {key: self._scores[key] for key in keys if key in self._scores}
        # by key, so that equal samples are asked about once
        new_rows = {key: row for row, key in enumerate(keys) if key not in scores}
        answers = self._ask(batch, list(new_rows.values()))
        failures = [answer for answer in answers if isinstance(answer, Failure)]
        for key, answer in zip(new_rows, answers, strict=True):
            # failures are not stored, so that the next call asks again
            if not isinstance(answer, Failure):
                scores[key] = answer
                self._scores[key] = answer
        self._report(len(batch), len(new_rows), failures)
        if not scores:
            raise self._error(failures)
        return torch.tensor([scores.get(key, float("nan")) for key in keys], dtype=torch.float32)

    def fingerprint(self) -> dict[str, Any]:
        """Return the address, the model's name and the rubric; the model behind the endpoint is unknown."""
        parts = urlsplit(self.options.url)
        return {
            "name": self.name,
            "kind": self.kind,
            "url": parts.netloc + parts.path,
            "model": self.options.model,
            "rubric": self.rubric.hash(),
            "scale": self.rubric.scale,
            "log_probs": self.options.log_probs,
            "seed": self.options.seed,
        }

    def _key(self, batch: ScoringBatch, row: int) -> bytes:
        """Return the hash of everything that the judge sees of a sample."""
        digest = hashlib.sha256(content_key(to_uint8(batch.images[row])))
        if self.rubric.shows_prompt:
            digest.update(batch.prompts[row].encode())
        if self.rubric.shows_references:
            digest.update(b"".join(content_key(to_uint8(image)) for image in batch.references[row]))
        return digest.digest()

    def _ask(self, batch: ScoringBatch, rows: list[int]) -> list[float | Failure]:
        bodies = [self._body(batch, row) for row in rows]
        answers = [
            answer if isinstance(answer, Failure) else read_score(answer, self.rubric.scale)
            for answer in self._client.ask(bodies)
        ]
        return [
            Failure(answer.reason, self._client.redact(answer.excerpt))
            if isinstance(answer, Failure)
            else answer
            for answer in answers
        ]

    def _body(self, batch: ScoringBatch, row: int) -> dict[str, Any]:
        references = batch.references[row] if self.rubric.shows_references else []
        log_probs = {"logprobs": True, "top_logprobs": TOP_TOKENS} if self.options.log_probs else {}
        return {
            "model": self.options.model,
            "messages": self.rubric.messages(
                data_url(batch.images[row]), [data_url(image) for image in references], batch.prompts[row]
            ),
            "response_format": self.rubric.response_format(),
            "temperature": 0,
            "seed": self.options.seed,
            "max_tokens": self.options.max_tokens,
            **log_probs,
        }

    def _report(self, samples: int, asked: int, failures: list[Failure]) -> None:
        counts = Counter(failure.reason for failure in failures)
        reasons = "".join(f"; {count} x {reason}" for reason, count in sorted(counts.items()))
        level = logging.WARNING if failures else logging.INFO
        logger.log(
            level,
            "judge (%s): %d samples, %d asked, %d failed%s",
            self.kind,
            samples,
            asked,
            len(failures),
            reasons,
        )

    def _error(self, failures: list[Failure]) -> RewardError:
        counts = Counter(failure.reason for failure in failures)
        reasons = ", ".join(f"{reason} ({count})" for reason, count in counts.most_common())
        said = next((failure.excerpt for failure in failures if failure.excerpt), "")
        quoted = f"\n  it said: {json.dumps(said, ensure_ascii=False)}" if said else ""
        return RewardError(
            f"reward {self.name!r}: {self._client.endpoint} scored none of {len(failures)} samples: "
            f"{reasons}{quoted}",
            hint="Check that it runs, serves the model in `model`, takes images and follows JSON schemas; "
            "a key is read from the variable named by `api_key_env`.",
        )


def data_url(image: Tensor) -> str:
    """Return an image [3, H, W] in [0, 1] as a data URL of a PNG: no loss, and little time spent on size."""
    return "data:image/png;base64," + base64.b64encode(encode_png(to_uint8(image))).decode("ascii")


def _read_key(options: JudgeOptions) -> str | None:
    if options.api_key_env is None:
        return None
    return read_key(options.api_key_env, options.url, f"reward {NAME!r}: api_key_env")
