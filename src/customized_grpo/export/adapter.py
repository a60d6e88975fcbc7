"""The adapter of a run as plain tensors, read from a checkpoint; no weights of the base are needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from customized_grpo.config import Config
from customized_grpo.config.schema import FusedLora, ModelConfig
from customized_grpo.errors import UserError
from customized_grpo.policies.checkpoint_files import transformer_layers
from customized_grpo.policies.lora import DOWN, UP
from customized_grpo.runs.reading import Step, run_checkpoint, run_config


@dataclass(frozen=True)
class Layer:
    """The adapter of one linear layer: W' = W + (alpha / rank) up down.

    Attributes:
        down: A [rank, in].
        up: B [out, rank].
    """

    down: Tensor
    up: Tensor


@dataclass(frozen=True)
class RunAdapter:
    """The adapter that a run has trained.

    Attributes:
        config: The run's recipe.
        iteration: The iteration after which it was saved.
        is_average: Whether it is the moving average.
        rank: Of every layer.
        alpha: Scale times rank.
        layers: By name, such as "transformer_blocks.0.attn.to_q".
        state: State of the checkpoint, with counters and versions.
        merged: LoRAs that were part of the run's base, and are part of these layers.
    """

    config: Config
    iteration: int
    is_average: bool
    rank: int
    alpha: float
    layers: Mapping[str, Layer]
    state: Mapping[str, Any]
    merged: tuple[FusedLora, ...] = ()


def read_adapter(run_dir: Path, *, step: Step = None, average: bool | None = None) -> RunAdapter:
    """Read the adapter of a run.

    Args:
        run_dir: Folder of the run.
        step: Iteration of the checkpoint, or "best"; None means the newest.
        average: Whether to take the moving average; None means as the run's evaluation does.

    Raises:
        UserError: There is no such run, checkpoint or average, or a file is damaged.
    """
    config = run_config(run_dir)
    if average and config.train.ema_decay is None:
        raise UserError(
            f"{run_dir} keeps no moving average: train.ema_decay is null", hint="Leave out --ema."
        )
    # By default what the evaluation judged.
    is_average = config.evaluation.use_ema if average is None else average
    checkpoint = run_checkpoint(run_dir, step)
    tensors = checkpoint.tensors["adapter"]
    if is_average:
        tensors = _named_average(config.model, tensors, checkpoint.tensors["average"])
    lora = config.model.lora
    return RunAdapter(
        config=config,
        iteration=checkpoint.step,
        is_average=is_average,
        rank=lora.rank,
        # Without an alpha the scale is 1.
        alpha=float(lora.rank if lora.alpha is None else lora.alpha),
        layers=_layers(tensors),
        state=checkpoint.state,
    )


def _layers(tensors: Mapping[str, Tensor]) -> dict[str, Layer]:
    names = sorted(name.removesuffix(DOWN) for name in tensors if name.endswith(DOWN))
    return {name: Layer(tensors[name + DOWN], tensors[name + UP]) for name in names}


def _named_average(
    model: ModelConfig, adapter: Mapping[str, Tensor], average: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the average under the adapter's names.

    Checkpoints number the averaged tensors in the order of the model's layers, A before B; a safetensors
    file sorts its names, so the order comes from the model's architecture, without its weights.
    """
    names = _in_order(adapter, transformer_layers(model))
    numbered = [average[key] for key in sorted(average)]
    named = dict(zip(names, numbered, strict=True))
    for name, tensor in named.items():
        assert tensor.shape == adapter[name].shape, "the average is not in the order of the layers"
    return named


def _in_order(adapter: Mapping[str, Tensor], layers: Sequence[str]) -> list[str]:
    names = []
    for layer in layers:
        if layer + DOWN in adapter:
            names += [layer + DOWN, layer + UP]
    if set(names) != set(adapter):
        strange = sorted(set(adapter) - set(names))
        raise UserError(
            f"the checkpoint adapts layers that the base model does not have: {', '.join(strange[:3])}",
            hint="Is model.path still the base that the run was trained on?",
        )
    return names
