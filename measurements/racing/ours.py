"""Customized-GRPO's own loop: `customized_grpo.training.trainer.train`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest.mock import patch

from diffusers import FluxTransformer2DModel
from torch import Tensor

from customized_grpo.config import load_config
from customized_grpo.extensions import TRUST
from customized_grpo.rewards.base import FunctionReward, ScoringBatch
from customized_grpo.training.drawing import Drawing
from customized_grpo.training.metrics import Clock
from customized_grpo.training.trainer import train
from racing.gate import Gate
from racing.work import Work, brightness


def bright(*_: object) -> FunctionReward:
    """Return the reward of the race; a recipe names it by this function."""
    return FunctionReward("brightness", "prompt", _score)


def _score(batch: ScoringBatch) -> Tensor:
    return brightness(batch.images)


def run(gate: Gate, work: Work, files: Path, out: Path, checkout: Path | None) -> None:
    """Train until the race is over."""
    os.environ[TRUST] = __name__
    gate.count(FluxTransformer2DModel, "hidden_states", "encoder_hidden_states")
    noisy = work.steps - 1
    # What one sets on a CPU; gradients differ in rounding, see docs/performance.md.
    fast = ["model.last_block=image", "train.attention_gradients=fp32"][: 1 + (work.precision == "bf16")]
    config = load_config(
        "toybox",
        [
            *fast,
            f"run.dir={out / 'run'}", f"model.path={files / 'model'}", f"model.lora.rank={work.lora_rank}",
            f"model.lora.target={json.dumps(work.lora_target)}",
            f"model.precision={work.precision}", f"model.max_text_tokens={work.text_tokens}",
            f"model.gradient_checkpointing={str(work.checkpointing).lower()}",
            "data.kind=manifest", f"data.train={files / 'toybox' / 'manifest.jsonl'}",
            f"rollout.steps={work.steps}", f"rollout.batch_size={work.batch_size}",
            f"rewards=[{{name: '{__name__}:bright'}}]",
            "train.iterations=100000", f"train.prompts_per_iteration={work.prompts}",
            f"train.group_size={work.group_size}", f"train.micro_batch_size={work.batch_size}",
            f"train.trained_fraction={(work.trained + 0.01) / noisy}",
            "evaluation.every=0", "checkpoint.every=100000", *work.settings,
        ],
    )  # fmt: skip
    draw = Drawing.draw

    def at_the_gate(drawing: Drawing, clock: Clock) -> object:
        gate.wait()
        return draw(drawing, clock)

    with patch.object(Drawing, "draw", at_the_gate):
        train(config)
