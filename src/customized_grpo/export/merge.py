"""All that a run has put on its base as one: one adapter for the plain base, or the base's own weights.

A base with LoRAs merged into it (`model.fuse_lora`) and the trained adapter add up per layer:

    sum_i s_i B_i A_i = [s_1 B_1, ..., s_n B_n] [A_1; ...; A_n],

an adapter whose rank is the sum of theirs. That is exact; a smaller rank is the best approximation of the sum
in the least-squares sense (Eckart and Young), by a singular value decomposition.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from customized_grpo.config.schema import ModelConfig
from customized_grpo.errors import UserError
from customized_grpo.export.adapter import Layer, RunAdapter
from customized_grpo.policies.checkpoint_files import empty_transformer
from customized_grpo.policies.families import get_family
from customized_grpo.policies.fuse import SETTING
from customized_grpo.policies.lora_sources import read_lora

if TYPE_CHECKING:
    from customized_grpo.policies.lora_file import LoraFile


def merged_adapter(adapter: RunAdapter) -> RunAdapter:
    """Return the run's adapter and the LoRAs that were merged into its base as one adapter of alpha = rank.

    Layers of a lower rank than others get rows and columns of zeros.

    Raises:
        UserError: The file of a merged LoRA is missing or is not of this base.
    """
    parts: dict[str, list[Layer]] = {}
    for name, layer in _fused_layers(adapter.config.model):
        parts.setdefault(name, []).append(layer)
    scale = adapter.alpha / adapter.rank
    for name, layer in adapter.layers.items():
        parts.setdefault(name, []).append(Layer(layer.down, layer.up * scale))
    layers = {name: _sum(parts[name]) for name in sorted(parts)}
    return _of_plain_base(adapter, layers)


def truncated_adapter(adapter: RunAdapter, rank: int) -> tuple[RunAdapter, float]:
    """Return the nearest adapter of a lower rank, and the share of the update that it lacks.

    Args:
        adapter: One of alpha = rank.
        rank: The rank to cut to, the same for all layers.

    Returns:
        The adapter, and the largest share of a layer's squared update that it lacks, in [0, 1].

    Raises:
        UserError: The adapter has no larger rank.
    """
    if rank >= adapter.rank:
        raise UserError(
            f"--rank {rank}: the merged adapter has rank {adapter.rank}, so there is nothing to cut",
            hint="Leave --rank out, or name a lower one.",
        )
    layers = {}
    lost = 0.0
    for name, layer in adapter.layers.items():
        layers[name], lost_here = _truncated(layer, rank)
        lost = max(lost, lost_here)
    return replace(adapter, rank=rank, alpha=float(rank), layers=layers), lost


@torch.no_grad()
def merge_into(transformer: nn.Module, adapter: RunAdapter) -> None:
    """Add an adapter to a transformer's weights, computed in fp32 and rounded once to their type.

    Args:
        transformer: The plain base, whose weights change.
        adapter: From `merged_adapter`.

    Raises:
        UserError: A weight's type cannot hold a sum.
    """
    for name, layer in adapter.layers.items():
        weight = transformer.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight.copy_(weight.float() + layer.up.float() @ layer.down.float())
        if not torch.isfinite(weight).all():
            raise UserError(
                f"{name} has numbers that {weight.dtype} cannot hold", hint="Use --precision bf16 or fp32."
            )


def _fused_layers(model: ModelConfig) -> Iterator[tuple[str, Layer]]:
    """Yield name and update, scale included, of every layer of every merged LoRA."""
    if not model.fuse_lora:
        return
    transformer = empty_transformer(model)
    place = get_family(model.family).other_programs.place
    for lora in model.fuse_lora:
        file: LoraFile = read_lora(lora.path, SETTING, transformer, place)
        for name, update in file.updates():
            yield name, Layer(update.down.float(), update.up.float() * (lora.scale * update.scale))


def _sum(parts: list[Layer]) -> Layer:
    # Stacked factors add their products: [U1 U2] [D1; D2] = U1 D1 + U2 D2.
    return Layer(torch.cat([part.down for part in parts]), torch.cat([part.up for part in parts], dim=1))


def _of_plain_base(adapter: RunAdapter, layers: dict[str, Layer]) -> RunAdapter:
    """Return the adapter with other layers, filled up to one rank, for the base without its LoRAs."""
    rank = max(len(layer.down) for layer in layers.values())
    filled = {}
    for name, layer in layers.items():
        # Zeros change nothing, and a file states one rank for all of its layers.
        missing = rank - len(layer.down)
        down = nn.functional.pad(layer.down, (0, 0, 0, missing))
        filled[name] = Layer(down, nn.functional.pad(layer.up, (0, missing)))
    fused = adapter.config.model.fuse_lora
    model = adapter.config.model.model_copy(update={"fuse_lora": ()})
    config = adapter.config.model_copy(update={"model": model})
    return replace(adapter, config=config, rank=rank, alpha=float(rank), layers=filled, merged=fused)


def _truncated(layer: Layer, rank: int) -> tuple[Layer, float]:
    """Return the nearest product of a lower rank, and the share of the squared one that it lacks.

    With up = Q R and down^T = P S the singular values of up down are those of R S^T, a small matrix.
    """
    # Both factors by QR first: the SVD is then of rank x rank numbers, not of the whole weight.
    q, r = torch.linalg.qr(layer.up.double())
    p, s = torch.linalg.qr(layer.down.double().T)
    left, values, right = torch.linalg.svd(r @ s.T, full_matrices=False)
    # Each factor takes one root of the singular values, so that neither is far larger.
    root = values[:rank].sqrt()
    up = q @ left[:, :rank] * root
    down = root[:, None] * (right[:rank] @ p.T)
    missing = rank - len(root)  # a layer of few inputs or outputs has no such rank
    if missing > 0:
        up = nn.functional.pad(up, (0, missing))
        down = nn.functional.pad(down, (0, 0, 0, missing))
    squares = values.square()
    total = float(squares.sum())
    lost = float(squares[rank:].sum()) / total if total else 0.0
    return Layer(down.to(layer.down.dtype), up.to(layer.up.dtype)), lost
