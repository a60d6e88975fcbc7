"""A short slice of `make fuzz`, and that it sees what it is there to see."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

import pytest

import fuzz
from customized_grpo.errors import UserError
from fuzzing import targets
from fuzzing.mutations import ODD_VALUES, mutate_tree
from fuzzing.targets import Comparisons, Images, Manifests, Overrides, Recipes, RunFolders, Target

LIMITS = {"seconds": 60.0, "grow": 1024.0}
CHEAP = (Recipes, Overrides, Manifests, Images, Comparisons)


@pytest.mark.parametrize("kind", CHEAP, ids=lambda kind: kind.name)
def test_damaged_inputs_are_taken_or_refused_by_a_message(kind: type[Target], tmp_path: Path) -> None:
    figures = fuzz.fuzz(kind, 40, 20261128, keep=tmp_path, **LIMITS)
    assert figures.failures == 0, figures.first_failures
    assert figures.outcomes.total() == 40 and figures.outcomes["refused"] > 0


@pytest.mark.slow
def test_damaged_run_folders_are_read_or_refused_by_a_message(tmp_path: Path) -> None:
    figures = fuzz.fuzz(RunFolders, 25, 20261128, keep=tmp_path, **LIMITS)
    assert figures.failures == 0, figures.first_failures


@pytest.mark.parametrize("kind", CHEAP, ids=lambda kind: kind.name)
def test_inputs_without_a_change_are_taken(
    kind: type[Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mutate_tree", "mutate_bytes", "mutate_text"):
        monkeypatch.setattr(targets, name, lambda _, value: value)
    monkeypatch.setattr(Overrides, "VALUES", {"train.iterations": (5,)})
    target = kind(tmp_path / "work")
    outcomes = [fuzz.attempt(target.make(number, 0), 60.0) for number in range(10)]
    assert outcomes == [("taken", "")] * 10


def test_an_input_does_not_depend_on_those_before_it() -> None:
    before = repr(ODD_VALUES)
    for number in range(300):
        mutate_tree(random.Random(number), [[], {}, [1]])
    assert repr(ODD_VALUES) == before


def call(action: str) -> int:
    if action == "silent":
        return 2
    if action == "hang":
        time.sleep(60)
    while action == "busy":
        pass
    if action == "message":
        raise UserError("the file is odd")
    if action == "leaves":
        print("error: odd", file=sys.stderr)
        sys.exit(2)
    return {}[action]


@pytest.mark.parametrize(
    ("action", "outcome"),
    [
        ("message", "refused"),
        ("leaves", "refused"),
        ("silent", "no message"),
        ("hang", "hang"),
        ("busy", "hang"),
        ("bug", "traceback"),
    ],
)
def test_every_end_of_an_input_has_its_name(action: str, outcome: str) -> None:
    assert fuzz.attempt(lambda: call(action), 0.1)[0] == outcome
