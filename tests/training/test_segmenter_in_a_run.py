"""A run whose identity reward cuts the subject out of the drawn images, and one that matches subjects."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny_segmenter
from customized_grpo.config import Config
from customized_grpo.training import trainer
from customized_grpo.training.parts import build_scorer

Recipe = Callable[..., Config]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("segmenter")
    tiny_segmenter.save_detector(folder / "detector")
    tiny_segmenter.save_cutter(folder / "cutter")
    return f"segmenter={{detector: {folder}/detector, cutter: {folder}/cutter, min_score: 0.5}}"


@pytest.mark.parametrize("how", ["segment: both", "options: {match: true}"])
def test_a_run_scores_what_the_segmenter_finds(
    how: str, tmp_path: Path, recipe: Recipe, segmenter: str
) -> None:
    config = recipe(
        f"run.dir={tmp_path / 'run'}",
        segmenter,
        f"rewards=[{{name: dino, path: toybox, {how}}}, {{name: clip_t, path: toybox, segment: none}}]",
        "train.iterations=1",
    )
    assert trainer.train(config) == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (trained,) = [line for line in lines if "score/dino/nan_share" in line]
    assert trained["score/dino/nan_share"] < 1 and trained["score/dino/std"] > 0
    with build_scorer(config) as scorer:
        first, second = scorer.fingerprints()
    assert set(first["masks"]) == {"detector", "cutter", "min_score"} and "masks" not in second
