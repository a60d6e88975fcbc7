"""Why a run ended before it was finished, as it wrote that down itself: `ended.json` of its folder.

A finished run has summary.json instead. A run that trains, or that was killed, has neither.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Literal

from customized_grpo.errors import UserError
from customized_grpo.files import write_json

ENDED = "ended.json"

How = Literal["interrupted", "stopped", "failed"]
"""interrupted: by a signal. stopped: by itself, with a reason. failed: by an error that nobody foresaw."""

_BEGINNINGS: dict[str, str] = {
    "interrupted": "The run was interrupted by",
    "stopped": "The run stopped itself:",
    "failed": "The run failed:",
}


def write_ending(run_dir: Path, how: How, reason: str) -> None:
    """Write down why a run ends.

    A disk that refuses is passed over: it must not hide the error that ends the run.

    Args:
        run_dir: The run folder.
        how: In which way.
        reason: The signal, or what happened; it is shown to whoever may read the report.
    """
    with contextlib.suppress(OSError):
        write_json(run_dir / ENDED, {"how": how, "reason": reason})


def forget_ending(run_dir: Path) -> None:
    """Remove what the session before has written, as the run goes on."""
    (run_dir / ENDED).unlink(missing_ok=True)


def ending_sentence(ended: dict[str, Any]) -> str:
    """Return why a run ended, in a sentence; empty where it has not written that down.

    Args:
        ended: The content of ended.json; empty without one.

    Raises:
        UserError: The content is not what `write_ending` writes.
    """
    if not ended:
        return ""
    beginning = _BEGINNINGS.get(str(ended.get("how")))
    reason = ended.get("reason")
    if beginning is None or not isinstance(reason, str):
        raise UserError(f"{ENDED} is damaged: how must be {', '.join(_BEGINNINGS)}, and reason a text")
    return f"{beginning} {reason.strip().rstrip('.')}."
