"""Messages to users end alike: what is wrong without a full stop, what to do with one."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src" / "customized_grpo"


def end_of(text: ast.expr | None) -> str | None:
    """Return how a text in the code ends; None where that is a value, known only when it runs."""
    while isinstance(text, ast.JoinedStr | ast.BinOp):
        text = text.values[-1] if isinstance(text, ast.JoinedStr) else text.right
    return text.value if isinstance(text, ast.Constant) and isinstance(text.value, str) else None


def errors() -> Iterator[tuple[str, ast.Call]]:
    """Yield the place of every error for the user, and its call."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) in ("UserError", "RewardError"):
                yield f"{file.relative_to(PACKAGE)}:{node.lineno}", node


def hint_of(call: ast.Call) -> ast.expr | None:
    named = [keyword.value for keyword in call.keywords if keyword.arg == "hint"]
    return named[0] if named else next(iter(call.args[1:]), None)


def test_what_is_wrong_ends_without_a_full_stop() -> None:
    places = [place for place, call in errors() if call.args and (end_of(call.args[0]) or "").endswith(".")]
    assert places == []


def test_what_to_do_is_a_sentence() -> None:
    hints = [(place, end_of(hint_of(call))) for place, call in errors()]
    assert len([end for _, end in hints if end]) > 200
    assert [place for place, end in hints if end and not end.endswith((".", "?"))] == []
