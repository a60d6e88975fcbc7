"""Whether the processes that a launcher has started are of one mind: the same recipe, files and versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from customized_grpo.engine.engine import Engine
from customized_grpo.errors import UserError

SHOWN = 60  # characters of a value in a message


def check_processes(engine: Engine, values: Mapping[str, Any]) -> None:
    """Refuse to go on if the processes do not have the same values.

    Args:
        engine: Exchanges them.
        values: Those of this process, JSON, by dotted key.

    Raises:
        UserError: Lists every key that differs, with the process.
    """
    everyone = engine.gather_json(dict(values))
    lines = []
    for rank, theirs in enumerate(everyone):
        for key in dict.fromkeys((*everyone[0], *theirs)):
            first, other = everyone[0].get(key), theirs.get(key)
            if first != other:
                lines.append(f"{key}: {shown(first)} in process 0, {shown(other)} in process {rank}")
    if not lines:
        return

    def refuse() -> None:
        raise UserError(
            "the processes of this run are not the same:\n  " + "\n  ".join(lines),
            hint="Start all of them with one recipe or command, the same files and one installation.",
        )

    engine.from_main(refuse)


def shown(value: Any) -> str:
    """Return a value for a message, cut if it is long."""
    if value is None:
        return "nothing"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."
