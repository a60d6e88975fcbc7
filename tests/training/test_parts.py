"""What is said before a run begins: its device, ignored variables, and rows held out in name only."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from customized_grpo.config import Config
from customized_grpo.data.overlap import Overlap
from customized_grpo.errors import UserError
from customized_grpo.generation import open_generator
from customized_grpo.toybox.export import export_manifest
from customized_grpo.training import parts
from customized_grpo.training.parts import build_data, build_engine, open_parts

Recipe = Callable[..., Config]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_manifest(tmp_path_factory.mktemp("parts") / "tb", 3, 0)


def test_training_rows_given_as_held_out_rows_are_said_to_be_so(recipe: Recipe, manifest: Path) -> None:
    same = build_data(recipe(f"data={{kind: manifest, train: {manifest}, held_out: {manifest}}}"))
    assert len(same.overlap.subjects) == 3 and len(same.overlap.images) == 12
    assert "3 subjects (toy-0000, toy-0001, toy-0002) and 12 images" in same.notes[-1]
    alone = build_data(recipe(f"data={{kind: manifest, train: {manifest}}}"))
    assert alone.overlap == Overlap()


def test_rows_of_unequal_work_are_counted_and_only_a_few_are_listed(recipe: Recipe, manifest: Path) -> None:
    """With a sharded model; the held-out rows have the ids of the training rows."""
    items = [json.loads(line) for line in manifest.read_text().splitlines()]
    twice = [item | {key: 2 * item[key] for key in ("references", "masks")} for item in items]
    unequal = manifest.with_name("unequal.jsonl")
    unequal.write_text("".join(json.dumps(item) + "\n" for item in [items[0], *twice[1:]]))
    data = f"data={{kind: manifest, train: {unequal}, held_out: {manifest}}}"
    with pytest.raises(UserError) as refused:
        build_data(recipe(data, "model.shard=true"))
    lines = refused.value.message.splitlines()
    assert lines[0].endswith(f"has 1 references, and {len(items) - 1} rows have another number:")
    assert len(lines) == 5 and "more like row" in lines[-1]


def test_toys_of_the_two_splits_are_different_ones(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    assert build_data(recipe()).overlap == Overlap()
    monkeypatch.setattr("customized_grpo.toybox.source.derive_seed", lambda *_: 7)  # one seed for both
    assert len(build_data(recipe()).overlap.subjects) == recipe().data.held_out_subjects  # type: ignore[union-attr]


def test_the_device_and_ignored_variables_are_said_before_anything_loads(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Loaded(Exception):
        pass

    def load(*_: object) -> None:
        raise Loaded

    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setattr(parts, "build_scorer", load)
    config = recipe()
    with pytest.raises(Loaded), open_parts(config, build_engine(config)):
        pass
    said = capsys.readouterr().err
    assert f"torch {torch.__version__}" in said and said.startswith("device: ")
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4" in said


def test_a_generator_says_its_device(capsys: pytest.CaptureFixture[str]) -> None:
    open_generator("toybox", settings=["model.precision=fp32"])
    assert capsys.readouterr().err.startswith("device: ")
