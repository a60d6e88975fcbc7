"""A run of NFT that is killed in the middle of an iteration goes on as if nothing had happened."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from children import in_child
from customized_grpo.config import load_config
from customized_grpo.errors import UserError
from customized_grpo.runs.checkpoints import CheckpointStore
from customized_grpo.training import trainer
from customized_grpo.training.old_policy import OldPolicy
from same_run import assert_same_run

OVERRIDES = (
    "train.algorithm=nft",
    "train.iterations=4",
    "train.prompts_per_iteration=2",
    "train.group_size=4",
    "train.forward.levels=2",
    "train.forward.old_growth=0.3",
    "rollout.steps=3",
    "evaluation.every=4",
    "evaluation.samples_per_prompt=1",
    "checkpoint.every=1",
    "checkpoint.keep=4",
)


def killed_in_iteration(number: int, folder: Path) -> None:
    """Train in a child that is killed when the old policy of that iteration is about to follow."""
    config = load_config("two-scale", [*OVERRIDES, f"run.dir={folder}"])
    follow = OldPolicy.follow

    def kill(self: OldPolicy, iteration: int) -> None:
        if iteration == number:
            os.kill(os.getpid(), signal.SIGKILL)
        follow(self, iteration)

    def train() -> int:
        OldPolicy.follow = kill  # type: ignore[method-assign]
        return trainer.train(config)

    assert os.WTERMSIG(in_child(train)) == signal.SIGKILL


def test_a_killed_run_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert trainer.train(load_config("two-scale", [*OVERRIDES, f"run.dir={whole}"])) == 0
    cut = tmp_path / "cut"
    killed_in_iteration(3, cut)
    assert CheckpointStore(cut / "checkpoints", 4).steps()[-1] == 3
    assert trainer.resume(cut) == 0
    assert_same_run(cut, whole)
    saved = CheckpointStore(cut / "checkpoints", 4).load(4).tensors
    assert saved["old"].keys() == saved["adapter"].keys()
    different = [name for name in saved["old"] if not torch.equal(saved["old"][name], saved["adapter"][name])]
    assert different, "the old policy is one of its own by now"
    with pytest.raises(UserError, match=r"train\.algorithm: nft in the checkpoint, awm now"):
        trainer.resume(cut, overrides=["train.algorithm=awm", "train.iterations=5"])
