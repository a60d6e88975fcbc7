"""Whole runs on an accelerator: nothing mixes devices, and what goes there and back is counted.

The device is that of tests/helpers/second_device.py; what only a real one can tell is in tests/gpu.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from customized_grpo.config import Config
from customized_grpo.engine.engine import Engine
from customized_grpo.export.run import export_run
from customized_grpo.runs.checkpoints import CheckpointStore
from customized_grpo.runs.folder import RunFolder
from customized_grpo.training import trainer
from customized_grpo.training.metrics import Clock
from customized_grpo.training.parts import build_policy, open_parts
from customized_grpo.training.trainer import Trainer
from second_device import SecondDevice, second_device

pytestmark = pytest.mark.slow

Recipe = Callable[..., Config]
EVERYTHING = (
    "model.text_encoders=offload",
    "model.offload_vae=true",
    "model.gradient_checkpointing=true",
    "train.kl_weight=0.01",
    "train.ema_decay=0.9",
    "evaluation.use_ema=true",
)
WAITS_OF_A_TRAINED_STEP = 11
COPIES_OF_A_TRAINED_STEP = 2
"""For the numbers of a loss that are checked and reported; a step of the rollout has no wait at all."""


@pytest.fixture
def second(recipe: Recipe) -> Iterator[SecondDevice]:
    build_policy(recipe())  # transformers leaves buffers empty in classes that it first loads under a mode
    with second_device() as mode:
        yield mode


def test_a_whole_run_with_offload_cache_kl_and_average_is_resumed_and_exported(
    recipe: Recipe, second: SecondDevice, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    config = recipe(
        *EVERYTHING,
        f"run.dir={run}",
        f"model.cache={tmp_path / 'cache'}",
        "model.device=cuda",
        "train.iterations=1",
    )
    assert trainer.train(config) == 0
    assert trainer.resume(run, overrides=["train.iterations=2"]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["device"] == "cuda" and summary["iterations"] == 2
    saved = CheckpointStore(run / "checkpoints", 0).load(2).tensors
    assert {"adapter", "average", "optimizer"} <= set(saved)
    assert all(not tensor.is_cuda for tensors in saved.values() for tensor in tensors.values())
    assert export_run(run, "diffusers", average=True).is_file()


@dataclass(frozen=True)
class Costs:
    """Waits and copies of an iteration's phases, the steps that are trained, and whether kernels repeat."""

    rollout_waits: int
    rollout_copies: int
    update_waits: int
    update_copies: int
    trained: int
    repeats: frozenset[bool]


def costs(config: Config, second: SecondDevice, folder: Path) -> Costs:
    """Count what the first iteration of a recipe sends to the device and back."""
    traffic = second.traffic
    with open_parts(config, Engine(torch.device("cuda"))) as parts:
        iteration = Trainer(RunFolder(folder), parts)
        with iteration.log.open():
            traffic.clear()
            groups = iteration.drawing.draw(Clock())
            rollout = (traffic.n_waits, traffic.n_copies)
            signal = iteration.signal(groups.scores)
            repeats: list[bool] = []
            parts.policy.trainable_parameters()[0].register_hook(
                lambda _: repeats.append(torch.are_deterministic_algorithms_enabled())
            )
            traffic.clear()
            iteration.update(groups, signal)
            update = (traffic.n_waits, traffic.n_copies)
            return Costs(*rollout, *update, groups.samples.n_trained, frozenset(repeats))


def test_backward_passes_repeat_where_the_recipe_asks_for_it(
    recipe: Recipe, second: SecondDevice, tmp_path: Path
) -> None:
    for asked in (True, False):
        config = recipe("model.device=cuda", f"run.deterministic={str(asked).lower()}")
        assert costs(config, second, tmp_path).repeats == {asked}
        assert not torch.are_deterministic_algorithms_enabled()


def test_a_step_neither_waits_for_the_device_nor_sends_it_much(
    recipe: Recipe, second: SecondDevice, tmp_path: Path
) -> None:
    """Noise is drawn on the CPU, so that it is the same on every device: a copy for each step."""
    settings = ("model.device=cuda", "train.trained_fraction=1", "data.subjects=2")
    short = costs(recipe(*settings, "rollout.steps=4"), second, tmp_path)
    long = costs(recipe(*settings, "rollout.steps=8"), second, tmp_path)
    steps = 4
    assert long.rollout_waits == short.rollout_waits, (short, long)
    assert long.rollout_copies - short.rollout_copies <= steps, (short, long)
    trained = long.trained - short.trained
    assert trained == steps
    assert long.update_waits - short.update_waits <= WAITS_OF_A_TRAINED_STEP * trained, (short, long)
    assert long.update_copies - short.update_copies <= COPIES_OF_A_TRAINED_STEP * trained, (short, long)
