"""Parameters of a chat request that some models refuse, and the request without them.

Models differ: newer ones of OpenAI want max_completion_tokens, refuse temperature 0 and log-probabilities;
some gateways give five alternatives of a token and no more. A refusal names the parameter, so the client asks
again without it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

REFUSALS = (400, 403, 422)
"""Statuses of an endpoint that does not take a parameter."""

FEWER_TOKENS = 5  # alternatives of a token that every endpoint gives, if it gives any

REFUSED: Mapping[str, str] = {
    "max_tokens": "max_tokens; it gets max_completion_tokens instead",
    "temperature": "temperature 0; it judges with its own, and scores repeat less exactly",
    "seed": "seed; scores repeat less exactly",
    "top_logprobs": f"so many log-probabilities; it is asked for {FEWER_TOKENS} of a token",
    "logprobs": "log-probabilities; scores are whole numbers, and images of a group tie more often",
}
"""What the log says about each parameter that a request can do without."""

_NAMES = re.compile(r"\b(?:" + "|".join(REFUSED) + r")\b")
_READ = 4096  # characters of a refusal that are searched


def refused_parameter(asked: Mapping[str, Any], refusal: str) -> str | None:
    """Return the parameter that a refusal names and that the request has; None if there is none.

    Args:
        asked: The request.
        refusal: The body of the answer.
    """
    for name in _NAMES.findall(_named(refusal)):
        # Fewer were refused as well: it takes none at all.
        if name == "top_logprobs" and asked.get(name, 0) <= FEWER_TOKENS:
            name = "logprobs"
        if name in asked:
            return str(name)
    return None


def without(body: Mapping[str, Any], refused: Iterable[str]) -> dict[str, Any]:
    """Return a request without refused parameters, or with what stands for them.

    Args:
        body: The request as it should be.
        refused: Keys of `REFUSED`, in the order in which they were refused.
    """
    changed = dict(body)
    for parameter in refused:
        value = changed.pop(parameter, None)
        if parameter == "max_tokens" and value is not None:
            changed["max_completion_tokens"] = value
        elif parameter == "top_logprobs" and value is not None:
            changed["top_logprobs"] = FEWER_TOKENS
        elif parameter == "logprobs":
            changed.pop("top_logprobs", None)
    return changed


def _named(refusal: str) -> str:
    """Return what an error says, its `param` first: a message may also name what to use instead."""
    try:
        error = json.loads(refusal)["error"]
        return f"{error.get('param')} {error.get('message')}"[:_READ]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return refusal[:_READ]
