"""Whole runs of ToyBox on the GPU: the same as on the CPU to round-off, and resumed as they were stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.config import Config
from customized_grpo.reporting.metrics import Record, read_metrics
from customized_grpo.runs.checkpoints import CheckpointStore
from customized_grpo.training import trainer
from customized_grpo.training.trainer import Trainer

pytestmark = pytest.mark.gpu

Recipe = Callable[..., Config]


@pytest.fixture(autouse=True)
def full_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolutions in fp32; torch's default on CUDA keeps 10 bits of their factors."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def train(recipe: Recipe, run: Path, device: str, iterations: int) -> int:
    return trainer.train(recipe(f"run.dir={run}", f"model.device={device}", f"train.iterations={iterations}"))


def adapter(run: Path, step: int) -> Tensor:
    """Return the adapter of a checkpoint in one row."""
    tensors = CheckpointStore(run / "checkpoints", 0).load(step).tensors["adapter"]
    return torch.cat([tensors[name].flatten().float() for name in sorted(tensors)])


def line(run: Path, iteration: int) -> Record:
    """Return the numbers of one training iteration, without times."""
    (found,) = [
        one
        for one in read_metrics(run / "metrics.jsonl")
        if one["kind"] == "train" and one["iteration"] == iteration
    ]
    return {key: value for key, value in found.items() if not key.startswith(("time/", "wall_s"))}


def test_an_iteration_is_that_of_the_cpu(recipe: Recipe, device: torch.device, tmp_path: Path) -> None:
    here, there = tmp_path / "cpu", tmp_path / "gpu"
    assert train(recipe, here, "cpu", 1) == train(recipe, there, device.type, 1) == 0
    ours, theirs = line(there, 1), line(here, 1)
    assert ours["policy/ratio_max_deviation"] <= 1e-5
    for key in (
        "reward/prompt",
        "reward/identity",
        "advantage/rho",
        "policy/grad_norm",
        "diversity/in_group",
    ):
        # rewards see 8 bits a pixel, and three samples make a group: one step of a pixel can be some percent
        assert ours[key] == pytest.approx(theirs[key], rel=5e-2, abs=1e-3), key
    # Adam's first step is the sign of the gradient: where that is nearly zero, round-off decides
    before, after = adapter(here, 1), adapter(there, 1)
    assert float((after - before).abs().max()) <= 2.01 * 3e-4
    assert float(((after - before).abs() > 1e-5).float().mean()) < 0.02


@pytest.mark.parametrize("deterministic", [False, True])
def test_a_resumed_run_goes_on_from_the_same_bits(
    recipe: Recipe,
    device: torch.device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    deterministic: bool,
) -> None:
    """Samples are the same bit for bit; gradients are with run.deterministic, else to round-off."""

    def start(run: Path) -> int:
        settings = (f"run.dir={run}", f"model.device={device.type}", "train.iterations=2")
        return trainer.train(recipe(*settings, f"run.deterministic={str(deterministic).lower()}"))

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert start(whole) == 0
    record = Trainer.record

    def record_and_stop(self: Trainer, *args: Any) -> None:
        record(self, *args)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "record", record_and_stop)
        assert start(stopped) == 143
    left = adapter(stopped, 1)
    assert trainer.resume(stopped) == 0
    assert torch.equal(left, adapter(stopped, 1))
    same_policy = torch.equal(left, adapter(whole, 1))
    if same_policy:  # then the second rollout starts from the same policy
        for key in ("reward/prompt", "reward/identity", "diversity/in_group"):
            assert line(stopped, 2)[key] == line(whole, 2)[key], key
    difference = adapter(stopped, 2) - adapter(whole, 2)
    if deterministic:
        assert same_policy and not difference.any()
    assert float((difference.abs() > 1e-5).float().mean()) < 0.02
