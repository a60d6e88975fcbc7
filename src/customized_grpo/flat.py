"""A recipe as plain data with one dotted key for each value."""

from __future__ import annotations

from typing import Any


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return a nested recipe by dotted keys; rewards by their names, other lists whole."""
    if isinstance(config, list) and config and all(isinstance(entry, dict) for entry in config):
        # A list of tables by name, so that a reward that moved is no difference.
        config = {str(entry.get("name", number)): entry for number, entry in enumerate(config)}
    if not isinstance(config, dict) or not config:
        return {prefix.removesuffix("."): config}
    flattened: dict[str, Any] = {}
    for key, value in config.items():
        flattened |= flat(value, f"{prefix}{key}.")
    return flattened
