"""Load a model of transformers or diffusers, and refuse one that is not what its checkpoint says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from customized_grpo.errors import UserError, is_out_of_memory
from customized_grpo.files import read_json
from customized_grpo.weights.files import AGAIN, check_weight_files

SHOWN = 3  # names in a message
MAX_LAYERS = 1000
_DEPTH = re.compile(r"(num_.*(layers|blocks)|layers_per_block|.*depth|num_hidden_groups)")
_LIST_OF_LAYERS = re.compile(r".*(layers|blocks|channels|types)")
_NUMBER = re.compile(r"\d+")


def load_model(model_class: Any, source: str, *, what: str, only_part: bool = False, **arguments: Any) -> Any:
    """Return a model with all of its weights from a folder or hub id, in safetensors.

    Args:
        model_class: Class of transformers or diffusers.
        source: The folder, or a hub id.
        what: What messages call the checkpoint.
        only_part: Whether the class may be a part of the model whose weights these are.
        arguments: Further ones of the class's `from_pretrained`.

    Raises:
        UserError: Files are missing or damaged, the config does not describe a model, or weights are missing,
            of other shapes, left over, or not finite.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        check_weight_files(folder)
        _check_config(model_class, folder / "config.json")
        source = str(folder)
    arguments |= {"use_safetensors": True, "output_loading_info": True}
    # wrong shapes are not ignored but refused below: the libraries' own message names no tensor
    arguments |= {"ignore_mismatched_sizes": True}
    with explained(f"{what} could not be loaded"):
        model, report = model_class.from_pretrained(source, **arguments)
    check_report(report, model, what, only_part=only_part)
    check_finite(model, what)
    return model


def check_report(report: Mapping[str, Any], model: nn.Module, what: str, *, only_part: bool = False) -> None:
    """Refuse a model by what the library reports of loading it, see `load_model`."""
    mismatched = sorted(str(entry[0]) for entry in report["mismatched_keys"])
    if mismatched:
        raise UserError(
            f"{what}: {len(mismatched)} weights have other shapes than its config says: {_some(mismatched)}",
            hint="Config and weights are of different checkpoints.",
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise UserError(f"{what}: {len(missing)} weights are missing: {_some(missing)}", hint=AGAIN)
    unexpected = sorted(report["unexpected_keys"])
    if only_part:
        # layers by form, not by number: one more layer of a stack that the part has is a mistake still
        stacks = {_NUMBER.sub("N", name) for name in model.state_dict()}
        unexpected = [name for name in unexpected if _NUMBER.sub("N", name) in stacks]
    if unexpected:
        raise UserError(
            f"{what}: its config has no place for {len(unexpected)} of its weights: {_some(unexpected)}",
            hint="Config and weights are of different checkpoints.",
        )


def check_finite(model: nn.Module, what: str) -> None:
    """Refuse weights that are NaN or infinite, in one pass over them.

    Raises:
        UserError: Names the first tensor.
    """
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.is_meta:
            continue
        # smallest and largest value: NaN spreads to both, and it is 40 times faster than isfinite()
        if not all(bool(limit.isfinite()) for limit in torch.aminmax(tensor)):
            raise UserError(f"{what}: {name} has values that are not finite", hint=AGAIN)


@contextmanager
def explained(problem: str) -> Iterator[None]:
    """Turn what the libraries raise of a damaged file into one message; memory errors pass.

    Args:
        problem: How the message begins.

    Raises:
        UserError: The problem and the library's own words.
    """
    try:
        yield
    except UserError:
        raise
    # a damaged file makes them raise OSError, ValueError, KeyError, TypeError, SafetensorError, ...
    except Exception as error:
        if is_out_of_memory(error):
            raise
        text = " ".join(str(error).split())
        raise UserError(f"{problem}: {text or type(error).__name__}", hint=AGAIN) from error


def _check_config(model_class: Any, file: Path) -> None:
    """Build the model without weights, so that a mistake of the config is told from one of the weights."""
    _check_depth(read_json(file), file)
    with explained(f"{file} describes no {model_class.__name__}"), torch.device("meta"):
        # transformers builds a model from an object of the class's own, diffusers from a dictionary
        if hasattr(model_class, "config_class"):
            model_class(model_class.config_class.from_pretrained(file.parent))
        else:
            model_class.from_config(model_class.load_config(file.parent))


def _check_depth(config: Mapping[str, Any], file: Path) -> None:
    """Refuse more layers than a model has: a fuzzed or hostile config would build them for hours.

    Counts may be lists, one for each stage of a network, and stand in configs of parts.
    """
    # by name: other numbers of a config, such as the size of a vocabulary, may be large
    for key, value in config.items():
        if isinstance(value, Mapping):
            _check_depth(value, file)
        counts = value if isinstance(value, list) else [value]
        too_many = len(counts) if _LIST_OF_LAYERS.fullmatch(key) else 0
        if _DEPTH.fullmatch(key):
            too_many = max([too_many, *[count for count in counts if isinstance(count, int)]])
        if too_many > MAX_LAYERS:
            raise UserError(
                f"{file}: {key} asks for {too_many:,} layers; a model of more than {MAX_LAYERS} is refused"
            )


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
