from __future__ import annotations

import sys

import pytest

from customized_grpo.reporting.lines import fitted


def test_sentences_break_between_words_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "a  row\n\n" + "word " * 20 + "end"
    assert fitted(text) == text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "22")
    lines = fitted(text).split("\n")
    assert lines[:2] == ["a  row", ""] and set(lines[2:-1]) == {"word word word word"}
    assert fitted("a-very-long-name-of-a-path/that/stays") == "a-very-long-name-of-a-path/that/stays"
