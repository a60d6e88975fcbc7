"""Secrets that a recipe holds in clear text, which would be stored with the run and sent to trackers."""

from __future__ import annotations

import re
from typing import Any

from customized_grpo.config.checks import Mistake
from customized_grpo.keys import REFERENCE

# so that apiKey, api_key and API-KEY are the same two words
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_SECRETS = {
    "apikey",
    "bearer",
    "credential",
    "credentials",
    "passphrase",
    "passwd",
    "password",
    "pwd",
    "secret",
}
_SECRETS_AT_THE_END = {"auth", "key", "token"}  # as in api_key; a token_count is none
_ABOUT_A_SECRET = {"env", "file", "id", "name", "path"}  # api_key_env holds the name of a variable

_SECRET_VALUE = re.compile(
    r"(?:sk|pk|rk)[-_][\w-]{20,}|hf_\w{20,}|gh[opsu]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|"
    r"xox[abprs]-[\w-]{16,}|AKIA[0-9A-Z]{12,}|AIza[\w-]{20,}|eyJ[\w-]+\.[\w-]+\.[\w-]+|"
    r"[a-z][a-z+.-]*://[^/\s:@]*:[^/\s@]+@.*"
)
"""Keys of well-known services, tokens with a signature, and addresses with a password."""

_TEXT = (
    "looks like a secret in clear text, which would be stored with the run; put it into an environment "
    f"variable and write {REFERENCE}NAME here (for a reward of your own), or give the option another name"
)


def secret_mistakes(data: Any) -> list[Mistake]:
    """Return the places of a recipe, not yet checked, that hold a secret; what they hold is not repeated."""
    mistakes = []
    pending: list[tuple[tuple[str, ...], str, Any]] = [((), "", data)]
    while pending:
        path, name, value = pending.pop()
        if isinstance(value, dict):
            pending += [((*path, str(key)), str(key), item) for key, item in value.items()]
        elif isinstance(value, list):
            # an item has no name of its own, so that of its list counts
            pending += [((*path, str(index)), name, item) for index, item in enumerate(value)]
        elif _is_secret(name, value):
            mistakes.append(Mistake(".".join(path), _TEXT))
    # the stack was worked off from its end
    return mistakes[::-1]


def may_hold_a_secret(name: str) -> bool:
    """Return whether what is written under a name should not be repeated, also where it is wrong."""
    return not (_SECRETS | _SECRETS_AT_THE_END).isdisjoint(_words(name))


def _is_secret(name: str, value: Any) -> bool:
    # a switch such as `use_token: true` holds nothing secret
    if value is None or value == "" or isinstance(value, bool):
        return False
    # A reference to a variable is what is asked for; a known form of key is one under any name.
    if isinstance(value, str) and (value.startswith(REFERENCE) or _SECRET_VALUE.fullmatch(value)):
        return not value.startswith(REFERENCE)
    words = _words(name)
    if not words or words[-1] in _ABOUT_A_SECRET:
        return False
    return words[-1] in _SECRETS_AT_THE_END or not _SECRETS.isdisjoint(words)


def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORDS.findall(name)]
