"""One low-rank adapter on a transformer, by diffusers and peft: y = W x + (alpha / rank) B A x.

The base stays frozen. B starts at zero, so that a fresh adapter changes nothing, bit for bit. With the
adapter off the model is the base, bit for bit: the reference of the KL term costs no memory.

Names of tensors are those of the published files without the prefix "transformer.", for example
"transformer_blocks.0.attn.to_q.lora_A.weight".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from customized_grpo.errors import UserError
from customized_grpo.files import write_tensors
from customized_grpo.libraries import quiet
from customized_grpo.policies.lora_file import EXAMPLES, FILE_NAME, LoraFile, examples
from customized_grpo.policies.lora_reader import read_lora_file
from customized_grpo.policies.lora_scale import FILE_PREFIX, METADATA_KEY
from customized_grpo.policies.other_programs import no_place
from customized_grpo.seeding import generator

ADAPTER = "default"
DOWN = ".lora_A.weight"
UP = ".lora_B.weight"


def add_adapter(transformer: Any, *, rank: int, alpha: float | None, target: str, seed: int) -> None:
    """Put a fresh adapter on the linear layers whose whole name the regular expression matches.

    The frozen base keeps its dtype, the adapter is fp32. A ~ N(0, 1 / rank^2), as in diffusers' own training
    scripts, drawn for each layer from (seed, layer name): the same on every device and in any order.

    Args:
        transformer: A diffusers model without an adapter; all its parameters get frozen.
        rank: Rank of A [rank, in] and B [out, rank].
        alpha: Scale times rank; None means rank, which programs that ignore alpha assume.
        target: Regular expression of layer names.
        seed: Seed of A.

    Raises:
        UserError: The expression matches no layer, or one that is not linear.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    if has_adapter(transformer):
        raise ValueError("the transformer already has an adapter")
    _check_target(transformer, target)
    # Before the adapter is added, whose parameters are then the only ones with a gradient.
    transformer.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=float(rank if alpha is None else alpha), target_modules=target)
    with quiet(), torch.random.fork_rng():  # peft draws its own A, which is replaced below
        transformer.add_adapter(config, adapter_name=ADAPTER)
    transformer.eval()  # the new layers come in training mode
    for module in transformer.modules():
        if isinstance(module, LoraLayer):
            # Autocast gives the products their type. peft would make fp32 of a bf16 input before, only for
            # autocast to make bf16 of it again: the same numbers, two copies a layer and call.
            module.cast_input_dtype_enabled = False
    with torch.no_grad():
        for name, parameter in adapter_parameters(transformer).items():
            parameter.data = parameter.data.float()
            if ".lora_A." in name and not parameter.is_meta:  # on "meta" there is nothing but shapes
                # B is zero from peft, so the fresh adapter changes nothing whatever A is.
                weights = torch.randn(parameter.shape, generator=generator(seed, "lora", name)) / rank
                parameter.copy_(weights)


def has_adapter(transformer: Any) -> bool:
    """Return whether `add_adapter` was called."""
    return bool(adapter_parameters(transformer))


def adapter_parameters(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """Return the adapter's parameters (not copies) by name, in the order of the model's layers."""
    infix = f".{ADAPTER}."  # peft puts the adapter's name into that of the parameter; files leave it out
    # name in the model -> name in files and checkpoints
    return {
        name.replace(infix, "."): parameter
        for name, parameter in transformer.named_parameters()
        if infix in name and ".lora_" in name
    }


def adapter_tensors(transformer: nn.Module) -> dict[str, Tensor]:
    """Return detached copies of the adapter's tensors by name, on their device."""
    return {name: parameter.detach().clone() for name, parameter in adapter_parameters(transformer).items()}


def load_adapter_tensors(transformer: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Overwrite the adapter in place, so that an optimizer keeps its parameters.

    Args:
        transformer: A model with an adapter.
        tensors: Tensors by name, as from `adapter_tensors`.
        source: Where the tensors come from, for the message.

    Raises:
        UserError: Names or shapes differ from the adapter's; nothing has been changed then.
    """
    parameters = adapter_parameters(transformer)
    if not parameters:
        raise ValueError("add an adapter first")
    # all checks come first, so that an adapter is never half overwritten
    _check_names(parameters, tensors, source)
    _check_shapes(parameters, tensors, source)
    with torch.no_grad():
        for name, parameter in parameters.items():
            # in place: the optimizer holds these very parameters
            parameter.copy_(tensors[name])


@contextmanager
def adapter_off(transformer: Any) -> Iterator[None]:
    """Switch the adapter off inside the block; without an adapter there is nothing to do."""
    if not has_adapter(transformer):
        yield
        return
    transformer.disable_adapters()
    try:
        yield
    finally:
        transformer.enable_adapters()


def save_file(transformer: Any, folder: Path, header: Mapping[str, str]) -> Path:
    """Write the adapter as diffusers' pipelines do, rank and alpha in the file's header; return the file.

    Args:
        transformer: A model with an adapter.
        folder: Where to write pytorch_lora_weights.safetensors; created when missing.
        header: Further entries of the header.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {FILE_PREFIX + name: tensor.cpu() for name, tensor in adapter_tensors(transformer).items()}
    config = transformer.peft_config[ADAPTER].to_dict()
    for_diffusers = {FILE_PREFIX + key: value for key, value in config.items()}
    adapter = json.dumps(for_diffusers, indent=2, sort_keys=True, default=sorted)  # sets have no JSON
    return write_tensors(folder / FILE_NAME, tensors, {"format": "pt", METADATA_KEY: adapter, **header})


def load_file(transformer: Any, path: Path) -> None:
    """Overwrite the adapter with a saved one: a file with diffusers' names of layers, or its folder.

    Raises:
        UserError: See `read_lora_file`; or an adapter of other layers, rank or scale.
    """
    file = read_lora_file(path, transformer, no_place)
    source = str(file.path)
    if not file.is_uniform:
        raise UserError(
            f"{source}: its layers have several ranks or scales, and the adapter of this model has one",
            hint="Make it part of the base instead: model.fuse_lora=FILE.",
        )
    tensors = file.adapter_tensors()
    _check_names(adapter_parameters(transformer), tensors, source)
    _check_shapes(adapter_parameters(transformer), tensors, source)
    ours = transformer.peft_config[ADAPTER].lora_alpha
    if file.alpha != ours:
        raise UserError(
            f"{source}: an adapter of alpha {file.alpha:g}, this model's has alpha {ours:g}",
            hint=f"Set model.lora.alpha to {file.alpha:g}.",
        )
    load_adapter_tensors(transformer, tensors, source)


def take_file(transformer: Any, file: LoraFile) -> None:
    """Make a fresh adapter that of a file, each layer with its own scale.

    Args:
        transformer: A model with an adapter of the file's rank, on its layers.
        file: From `read_lora_file`.
    """
    load_adapter_tensors(transformer, file.adapter_tensors(), str(file.path))
    scales = file.scales()
    for name, scale in scales.items():
        # peft's own scale of a layer; the adapter was added with one for all.
        transformer.get_submodule(name).scaling[ADAPTER] = scale
    # what `save_file` writes: layers of a lower rank have been filled up to the file's
    transformer.peft_config[ADAPTER].alpha_pattern = {
        name: scale * file.rank for name, scale in scales.items() if scale * file.rank != file.alpha
    }


@contextmanager
def adapter_exchanged(transformer: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Have other tensors as the adapter inside the block, without gradients.

    Parameters change their storage, not their values: autograd refuses a backward pass through parameters
    that were written to after the forward pass, and graphs of the own adapter may be waiting for theirs.

    Args:
        transformer: A model with an adapter.
        tensors: By name, as from `adapter_tensors`, in the adapter's shapes and on its device.
    """
    parameters = adapter_parameters(transformer)
    own = {name: parameter.data for name, parameter in parameters.items()}
    # The data alone: the parameters stay those that an optimizer knows.
    for name, parameter in parameters.items():
        parameter.data = tensors[name]
    try:
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]


def _check_target(transformer: nn.Module, target: str) -> None:
    matching = {name: module for name, module in transformer.named_modules() if re.fullmatch(target, name)}
    if not matching:
        linears = [name for name, module in transformer.named_modules() if isinstance(module, nn.Linear)]
        raise UserError(
            f"model.lora.target {target!r} matches no layer",
            hint=f"It must match whole names, such as {', '.join(linears[-EXAMPLES:])}.",
        )
    for name, module in matching.items():
        if not isinstance(module, nn.Linear):
            raise UserError(
                f"model.lora.target {target!r} matches {name}: a {type(module).__name__}, not a linear layer",
                hint="Make the expression narrower, so that it matches linear layers alone.",
            )


def _check_names(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    unknown = [name for name in tensors if name not in parameters]
    missing = [name for name in parameters if name not in tensors]
    if not unknown and not missing:
        return
    lines = [f"{source}: an adapter for another base model or other layers:"]
    if unknown:
        lines.append(f"  {len(unknown)} tensors that this model has no place for: {examples(unknown)}")
    if missing:
        lines.append(f"  {len(missing)} tensors are missing: {examples(missing)}")
    raise UserError("\n".join(lines), hint="Use the base model and model.lora.target it was trained with.")


def _check_shapes(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    wrong = [name for name, parameter in parameters.items() if tensors[name].shape != parameter.shape]
    if not wrong:
        return
    shapes = {name: (list(tensors[name].shape), list(parameters[name].shape)) for name in wrong[:EXAMPLES]}
    first = "; ".join(f"{name} is {theirs}, not {ours}" for name, (theirs, ours) in shapes.items())
    sample = next(name for name in parameters if ".lora_A." in name)
    ours = parameters[sample].shape[0]
    # A is [rank, in]: of all shapes the first of A tells another rank from another base.
    theirs = tensors[sample].shape[0]
    if ours != theirs:
        raise UserError(
            f"{source}: an adapter of rank {theirs}, this model's has rank {ours}: {first}",
            hint=f"Set model.lora.rank to {theirs}.",
        )
    raise UserError(
        f"{source}: an adapter for another base model: {first}",
        hint="Set model.path to the base that it was trained on.",
    )


def name_average(average: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return a moving average by its names in checkpoints: numbers, in the order of the parameters."""
    # Four digits, so that sorted names are in the order of the parameters.
    return {f"{i:04d}": value for i, value in enumerate(average)}


@torch.no_grad()
def load_average(target: Sequence[Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy a saved average into tensors in the order of the policy's trainable parameters."""
    for name, value in name_average(target).items():
        value.copy_(saved[name])
