"""Optimizer state as tensors and JSON, so that nothing has to be pickled.

Parameters are numbered by group, then by position within the group, as in `Optimizer.state_dict`. The numbers
are the only names, so a restore checks the number of parameters of each group and every shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from customized_grpo.errors import UserError

Options = dict[str, Any]


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Take an optimizer's state apart, exactly.

    Returns:
        Tensors named "<parameter number>.<state name>", for example "3.exp_avg" (not copied); and JSON with
        the options of each group (learning rate, betas, ...), the shape of each parameter, and whole numbers
        of the state under the same names (bitsandbytes counts its steps so).

    Raises:
        ValueError: A state value is neither a tensor nor a whole number, or an option is not JSON (such as a
            tensor learning rate).
    """
    state_dict = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, int] = {}
    for number, values in state_dict["state"].items():
        for name, value in _plain(values).items():
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.{name}"] = value
            elif type(value) is int:
                numbers[f"{number}.{name}"] = value
            else:
                raise ValueError(f"optimizer state {name!r} is a {type(value).__name__}, not a tensor")
    groups = []
    for saved, live in zip(state_dict["param_groups"], optimizer.param_groups, strict=True):
        options = {name: _to_json(name, value) for name, value in saved.items() if name != "params"}
        shapes = [list(parameter.shape) for parameter in live["params"]]
        groups.append({"options": options, "shapes": shapes})
    return tensors, {"groups": groups, "numbers": numbers}


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]
) -> None:
    """Restore the state that `flatten_optimizer` took apart, into a fresh optimizer over the same parameters.

    Options are restored as well, so the saved learning rate replaces that of the fresh optimizer. The tensors
    are copied: further training never writes into a checkpoint's memory.

    Raises:
        UserError: The parameters differ in number or shape from those that were saved.
    """
    _check_parameters(optimizer, state)
    groups = []
    count = 0  # parameters of the groups so far
    for saved, live in zip(state["groups"], optimizer.param_groups, strict=True):
        options = {name: _from_json(value, live.get(name)) for name, value in saved["options"].items()}
        numbers = list(range(count, count + len(live["params"])))
        count += len(numbers)
        groups.append(options | {"params": numbers})
    by_number: dict[int, dict[str, torch.Tensor | int]] = {}
    for key, tensor in tensors.items():
        number, name = key.split(".", 1)
        by_number.setdefault(int(number), {})[name] = tensor.clone()  # the optimizer would keep the original
    for key, value in state.get("numbers", {}).items():  # a checkpoint of an older version has none
        number, name = key.split(".", 1)
        by_number.setdefault(int(number), {})[name] = value
    if any(number >= count for number in by_number):
        raise UserError(f"the checkpoint's optimizer state names parameter {max(by_number)} of only {count}")
    optimizer.load_state_dict({"state": by_number, "param_groups": groups})


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of a parameter without the mapping that bitsandbytes wraps its 8-bit tensors in.

    It does so for the sake of FSDP, and loads them unwrapped as well.
    """
    plain: dict[str, Any] = {}
    for name, value in values.items():
        plain |= value if isinstance(value, dict) else {name: value}
    return plain


def _check_parameters(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    hint = "It was saved for another model, adapter rank or set of target modules: resume with the same ones."
    saved_groups = state["groups"]
    live_groups = optimizer.param_groups
    if len(saved_groups) != len(live_groups):
        raise UserError(
            f"the checkpoint's optimizer has {len(saved_groups)} groups, this one {len(live_groups)}",
            hint=hint,
        )
    for index, (saved, live) in enumerate(zip(saved_groups, live_groups, strict=True)):
        shapes = [list(parameter.shape) for parameter in live["params"]]
        if len(saved["shapes"]) != len(shapes):
            raise UserError(
                f"optimizer group {index}: the checkpoint has {len(saved['shapes'])} parameters, "
                f"the model {len(shapes)}",
                hint=hint,
            )
        for position, (old, new) in enumerate(zip(saved["shapes"], shapes, strict=True)):
            if old != new:
                raise UserError(
                    f"optimizer group {index}, parameter {position}: shape {old} in the checkpoint, "
                    f"{new} in the model",
                    hint=hint,
                )


def _to_json(name: str, value: Any) -> Any:
    if isinstance(value, tuple) and all(isinstance(item, int | float) for item in value):
        return list(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"optimizer option {name!r} is a {type(value).__name__}, which cannot be saved")


def _from_json(value: Any, live: Any) -> Any:
    return tuple(value) if isinstance(live, tuple) else value
