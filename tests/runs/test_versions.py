"""The versions that a run writes down."""

from __future__ import annotations

import subprocess

import pytest

from customized_grpo.runs.folder import versions


def test_git_is_asked_once_in_a_process_and_nobody_can_change_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = versions()
    assert first["torch"] and first["customized_grpo"]

    def no_more(*arguments: object, **options: object) -> None:
        raise AssertionError(f"{arguments} was run again")

    monkeypatch.setattr(subprocess, "run", no_more)
    first["torch"] = "0"
    if first["git"] is not None:
        first["git"]["commit"] = "0"
    again = versions()
    assert again["torch"] != "0"
    assert again["git"] is None or again["git"]["commit"] != "0"
