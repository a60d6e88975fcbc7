"""NFT and AWM are seen to learn: with honest rewards both held-out qualities of two-scale rise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from customized_grpo.config import load_config
from customized_grpo.training import trainer

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("algorithm", ["nft", "awm"])
def test_both_held_out_qualities_rise(tmp_path: Path, algorithm: str) -> None:
    config = load_config(
        "two-scale",
        [
            f"train.algorithm={algorithm}",
            "train.iterations=60",
            "train.learning_rate=3e-4",
            "rollout.sampler=ode",
            "rollout.eta=0",
            "rollout.shared_noise=false",
            "advantage.std=global",
            "rewards.0.options.leak=0",
            "rewards.1.options.leak=0",
            "evaluation.every=0",
            f"run.dir={tmp_path / 'run'}",
        ],
    )
    assert trainer.train(config) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["difference"]["judge/identity"]["low"] > 0.2
    assert summary["difference"]["judge/prompt"]["low"] > 0.05
