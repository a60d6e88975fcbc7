"""NFT and AWM in two processes train what they train in one, and dynamic sampling draws the same prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from close_runs import assert_close_tensors, assert_same_numbers, last_checkpoint, lines
from customized_grpo import extensions
from forked import cgrpo

pytestmark = pytest.mark.slow

# What depends on the whole batch: whitening over it, two updates of two groups, an average, another model.
RECIPE = (
    "train.iterations=2",
    "train.prompts_per_iteration=4",
    "train.updates_per_iteration=2",
    "train.group_size=4",
    "train.ema_decay=0.5",
    "train.kl_weight=0.01",
    "rollout.steps=4",
    "rollout.batch_size=6",
    "train.micro_batch_size=6",
    "evaluation.every=1",
    "evaluation.samples_per_prompt=1",
)
FORWARD = ("train.forward.levels=2", "train.forward.old_growth=0.3", "advantage.name=gdpo")
CASES = {
    "nft": (*FORWARD, "train.algorithm=nft", "train.kl_reference=old"),
    "awm": (*FORWARD, "train.algorithm=awm", "advantage.std=global"),
    "dynamic": ("run.seed=3", "rewards=[{name: 'own_rewards:sometimes'}]", "train.dynamic_sampling.budget=3"),
    "nft-dynamic": (
        *("run.seed=3", "train.algorithm=nft", "train.forward.old_growth=0.3"),
        *("rewards=[{name: 'own_rewards:sometimes'}]", "train.dynamic_sampling.budget=50"),
    ),
}


def train(processes: int, folder: Path, *overrides: str) -> Path:
    status, printed = cgrpo(processes, "train", "two-scale", f"run.dir={folder}", *RECIPE, *overrides)
    assert status == 0, printed
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.setenv(extensions.TRUST, "own_rewards")
    one = train(1, tmp_path / "one", *CASES[case])
    two = train(2, tmp_path / "two", *CASES[case])
    assert_same_numbers(lines(two), lines(one))
    ours, theirs = last_checkpoint(two), last_checkpoint(one)
    assert_close_tensors(ours, theirs, [entry for entry in theirs.tensors if entry != "optimizer"])
    for name, tensor in theirs.tensors["optimizer"].items():
        if name.endswith("exp_avg_sq"):  # Adam divides by the size of gradients, which show here as they were
            assert (ours.tensors["optimizer"][name] - tensor).abs().max() <= 1e-3 * tensor.abs().max(), name
    assert any(bool(tensor.abs().max() > 0) for tensor in theirs.tensors["optimizer"].values())
    if "dynamic" in case:
        assert ours.state["further_prompts"] == theirs.state["further_prompts"] > 0
        trained = [line for line in lines(two) if line["kind"] == "train"]
        assert sum(line["sampling/dropped"] for line in trained) == ours.state["further_prompts"]
    elif case in ("nft", "awm"):
        adapter, old = theirs.tensors["adapter"], theirs.tensors["old"]
        assert any(not torch.equal(old[name], adapter[name]) for name in adapter)
