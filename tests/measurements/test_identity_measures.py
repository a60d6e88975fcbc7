"""The ordering in docs/evaluation.md holds on the photos: copy, honest view, other subject, other class."""

from __future__ import annotations

from pathlib import Path

import pytest

import identity_measures
from customized_grpo.config.schema import RewardConfig
from customized_grpo.data.dreambench import read_dreambench
from customized_grpo.rewards import build_reward
from dreambooth import save_dreambooth


@pytest.mark.slow
def test_an_encoder_of_toys_can_be_measured_on_any_photos(tmp_path: Path) -> None:
    dino = build_reward(RewardConfig(name="dino", path="toybox", segment="none"))
    found = identity_measures.measure(read_dreambench(save_dreambooth(tmp_path)), dino)
    assert found["literal copy"]["identity"].mean == pytest.approx(1.0, abs=1e-5)
    assert found["literal copy"]["background similarity"].mean == pytest.approx(1.0)
    assert list(found) == ["literal copy", "honest other photo", "another class"]
    assert "| literal copy | 9 | 1.00 [1.00, 1.00]" in identity_measures.table(found, "dino")


def test_the_measures_tell_copies_from_honest_photos_and_subjects_apart(dreambooth_photos: Path) -> None:
    lite = build_reward(RewardConfig(name="lite", segment="none"))
    found = identity_measures.measure(read_dreambench(dreambooth_photos), lite)
    cases = [found[case] for case in identity_measures.CASES]
    for better, worse in zip(cases, cases[1:], strict=False):
        assert better["identity"].low > worse["identity"].high
    copy, honest, *others = cases
    assert copy["copy score"].mean == pytest.approx(1.0, abs=1e-4)
    assert all(-0.1 < case["copy score"].mean < 0.1 for case in (honest, *others))
    assert all(case["background similarity"].high < 0.5 for case in (honest, *others))
