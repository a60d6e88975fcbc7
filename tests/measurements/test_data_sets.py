"""The measurements of large data sets run, on small ones."""

from __future__ import annotations

import sys

import pytest

import data_sets

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("words", "cases"),
    [
        (["start", "--rows", "12"], ["first start", "second start", "one image changed"]),
        (["start", "--rows", "12", "--images", "4"], ["first start", "second start", "one image changed"]),
        (["held-out", "--rows", "12", "--size", "32"], ["12 rows of 32 px"]),
    ],
)
def test_a_case_is_measured(
    words: list[str], cases: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["data_sets.py", *words])
    data_sets.main()
    printed = capfd.readouterr().out
    assert all(case in printed for case in cases) and "'cpu_s'" in printed
