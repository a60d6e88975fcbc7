"""From the header of any program's LoRA file to the layers that it updates.

Names and shapes are in the header, so that a file which does not fit is refused before gigabytes are read.
Nothing is left out in silence: every tensor is used, or the file is refused with the tensor's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from customized_grpo.errors import UserError
from customized_grpo.files import open_tensors
from customized_grpo.policies.lora_file import Entry, LoraFile, examples, find_file
from customized_grpo.policies.lora_names import PEFT_PREFIX, LayerNames, Role, refusal_of, split_key
from customized_grpo.policies.lora_scale import PeftScale, read_scale
from customized_grpo.policies.other_programs import Place


def read_lora_file(
    path: Path, transformer: nn.Module, place: Callable[[str], Place | None], source: str | None = None
) -> LoraFile:
    """Read names, shapes and scales of a LoRA file, or of the one in a folder.

    Args:
        path: The file or folder.
        transformer: The model it is for; its weights are not looked at, and may be on "meta".
        place: Where a layer is in the original model, see `OtherPrograms`.
        source: What messages call the file; None means its path.

    Raises:
        UserError: No such file, not safetensors, or a tensor that the model has no place for, for one reason
            or another.
    """
    file = find_file(path)
    source = source or str(file)
    with open_tensors(file) as opened:
        reader = _Reader(opened, source)
        scale = read_scale(file, opened.metadata() or {}, by_peft=reader.by_peft)
        return LoraFile(file, opened.metadata() or {}, reader.entries(transformer, place, scale))


Matrices = dict[Role, str]
"""The keys of what a file has of one matrix."""


class _Reader:
    """From the keys of an opened file to its entries."""

    def __init__(self, opened: Any, source: str) -> None:
        self._opened = opened
        self._source = source
        keys = list(opened.keys())
        self.by_peft = any(key.startswith(PEFT_PREFIX) for key in keys)
        self._refuse(keys)
        self._matrices = self._by_matrix(keys)

    def entries(
        self,
        transformer: nn.Module,
        place: Callable[[str], Place | None],
        scale: PeftScale | None,
    ) -> dict[str, Entry]:
        """Return the entries by layer."""
        linears = _linear_layers(transformer)
        names = LayerNames(linears, place)
        # name in the file -> layers of this transformer, one or the several of a fused matrix
        layers_of = {name: names.find(name) for name in self._matrices}
        strange = [next(iter(self._matrices[name].values())) for name in layers_of if not layers_of[name]]
        if strange or not layers_of:
            raise self._misfit(strange or ["it has no tensors"])
        # After the names fit: a missing half of an unknown matrix would be the wrong message.
        self._check_whole()
        misfits = []
        entries: dict[str, Entry] = {}
        for name, matrices in self._matrices.items():
            layers = {layer: linears[layer] for layer in layers_of[name]}
            misfit = _misfit(self._shape(matrices["down"]), self._shape(matrices["up"]), layers)
            if misfit is None:
                self._add(entries, matrices, layers, scale)
            else:
                misfits.append(f"{matrices['down']} {misfit}")
        if misfits:
            raise self._misfit(misfits)
        return entries

    def _add(
        self,
        entries: dict[str, Entry],
        matrices: Matrices,
        layers: Mapping[str, nn.Linear],
        scale: PeftScale | None,
    ) -> None:
        """Add an entry for each of the layers whose rows, one below the other, a matrix has."""
        down = matrices["down"]
        rank = self._shape(down)[0]
        row = 0
        for layer, linear in layers.items():
            if layer in entries:
                other = entries[layer].down
                raise UserError(f"{self._source}: {down} and {other} are of one layer, {layer}")
            # In the order of the original matrix, q over k over v: `LayerNames` has sorted them.
            rows = slice(row, row + linear.out_features)
            row = rows.stop
            alpha = self._alpha(matrices.get("alpha"), layer, rank, scale)
            entries[layer] = Entry(down, matrices["up"], rows, rank, alpha)

    def _refuse(self, keys: list[str]) -> None:
        """Refuse what is no low-rank update of linear layers."""
        refused: dict[str, list[str]] = {}
        hint = ""
        for key in keys:
            refusal = refusal_of(key)
            if refusal is not None:
                refused.setdefault(refusal.reason, []).append(key)
                hint = refusal.hint
        if refused:
            parts = [f"{reason}: {examples(found)}" for reason, found in refused.items()]
            raise UserError(f"{self._source}: {'; '.join(parts)}", hint=hint)

    def _by_matrix(self, keys: list[str]) -> dict[str, Matrices]:
        matrices: dict[str, Matrices] = {}
        strange = []
        for key in keys:
            found = split_key(key)
            if found is None:
                strange.append(key)
                continue
            name, role = found
            one = matrices.setdefault(name, {})
            if role in one:
                raise UserError(f"{self._source}: {key} and {one[role]} are of one matrix")
            one[role] = key
        if strange:
            raise UserError(
                f"{self._source}: not a LoRA: {len(strange)} tensors have other names: {examples(strange)}",
                hint="A LoRA's end with .lora_A.weight and .lora_B.weight, or .lora_down.weight and "
                ".lora_up.weight.",
            )
        return matrices

    def _check_whole(self) -> None:
        for name, one in self._matrices.items():
            for role in ("down", "up"):
                if role not in one:
                    present = ", ".join(one.values())
                    raise UserError(
                        f"{self._source}: {name} has no {role} matrix, only {present}",
                        hint="The file is incomplete; save or download it again.",
                    )

    def _alpha(self, key: str | None, layer: str, rank: int, scale: PeftScale | None) -> float:
        """Return scale times rank of a layer: by its alpha tensor, by peft's configuration, or rank."""
        # Two places may say it: a tensor, as kohya's files, or peft's configuration.
        of_config = None if scale is None else scale.alpha(layer, rank)
        of_tensor = None if key is None else self._number(key)
        if of_config is not None and of_tensor is not None and not math.isclose(of_config, of_tensor):
            raise UserError(
                f"{self._source}: {key} is {of_tensor:g}, but peft's configuration says {of_config:g}",
                hint="Remove the wrong one.",
            )
        alpha = of_config if of_config is not None else of_tensor
        if alpha is None:
            # Nobody says an alpha: then the scale is 1.
            return float(rank)
        if alpha == 0 or not math.isfinite(alpha):
            raise UserError(f"{self._source}: alpha of {layer} is {alpha:g}: the layer would have no effect")
        return alpha

    def _number(self, key: str) -> float:
        tensor = self._opened.get_tensor(key)
        if tensor.numel() != 1:
            raise UserError(f"{self._source}: {key} must be one number, not {list(tensor.shape)}")
        return float(tensor)

    def _shape(self, key: str) -> list[int]:
        part = self._opened.get_slice(key)
        if not part.get_dtype().startswith(("F", "BF")):
            raise UserError(f"{self._source}: {key} is of type {part.get_dtype()}, not of real numbers")
        shape: list[int] = part.get_shape()
        return shape

    def _misfit(self, names: list[str]) -> UserError:
        return UserError(
            f"{self._source}: a LoRA of another base or of other parts than the transformer: "
            f"{examples(names)}",
            hint="Name the checkpoint it was made for as model.path.",
        )


def _linear_layers(transformer: nn.Module) -> dict[str, nn.Linear]:
    """Return a model's linear layers by name; where one has an adapter, the layer under it."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = {}
    for name, module in transformer.named_modules():
        # The name stays that of the wrapper, as it was before the adapter.
        layer = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if isinstance(layer, nn.Linear):
            layers[name] = layer
    return layers


def _misfit(down: list[int], up: list[int], layers: Mapping[str, nn.Linear]) -> str | None:
    """Return how the shapes of A [rank, in] and B [out, rank] disagree with the layers they are for."""
    # Layers of one original matrix have one input.
    width = next(iter(layers.values())).in_features
    height = sum(layer.out_features for layer in layers.values())
    if len(down) != 2 or len(up) != 2 or down[0] != up[1]:
        return f"{down} and {up} are no [rank, in] and [out, rank]"
    if down[1] != width or up[0] != height or down[0] == 0:
        return f"{down} and {up} on {[height, width]}"
    return None
