"""The parts of a generator's checkpoint: which classes they may have, their weights, their tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from customized_grpo.errors import UserError
from customized_grpo.hub import index_of, read_json
from customized_grpo.weights.files import check_json_files
from customized_grpo.weights.models import check_finite, explained, load_model
from customized_grpo.weights.tokenizers import check_tokenizer, check_tokenizer_files

if TYPE_CHECKING:
    import torch

LIBRARIES = ("diffusers", "transformers")


def class_names(index: Mapping[str, Any], source: str) -> dict[str, tuple[str, str]]:
    """Return library and class of every part that an index names; those that are null are left out.

    diffusers would import any module that the index names, also one beside it: only classes of diffusers and
    transformers are allowed.

    Args:
        index: Content of a model_index.json, or of a modular one, whose parts in other repositories are left
            out.
        source: What messages call it.

    Raises:
        UserError: A part is of another library, or its entry is no [library, class].
    """
    names = {}
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or value == [None, None]:
            continue
        if len(value) == 3 and isinstance(value[2], dict):  # with where it is: a modular index
            if value[2].get("subfolder") != name:
                continue
            value = value[:2] if value[0] else value[2].get("type_hint") or value
        library, class_name = value if len(value) == 2 else (None, None)
        if library not in LIBRARIES or not isinstance(class_name, str):
            raise UserError(
                f"{source}: {name} is of {value}: only classes of {' and '.join(LIBRARIES)} are loaded",
                hint="Code that comes with a checkpoint is never run.",
            )
        names[name] = (library, class_name)
    return names


def find_class(library: str, class_name: str, what: str) -> type:
    """Return a class of diffusers or transformers.

    Raises:
        UserError: The installed version does not have it.
    """
    import diffusers
    import transformers

    module = diffusers if library == "diffusers" else transformers
    # By name from two libraries only: an index cannot name any code of its own.
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        raise UserError(
            f"{what} is a {class_name}, which {library} {module.__version__} does not have",
            hint=f"Correct the name, or install a version of {library} that has it.",
        )
    return found


def load_parts(
    folder: Path, dtype: torch.dtype | Mapping[str, torch.dtype], extra: Callable[[str], dict[str, Any]]
) -> dict[str, Any]:
    """Load all parts of a pipeline that have weights, and those that only the family can load.

    Everything cheap is checked first: classes, JSON, vocabularies, headers of weights.

    Args:
        folder: The checkpoint, in diffusers' layout.
        dtype: Type of the weights, or types by part, with "default" for the others.
        extra: The family's `Policy.extra_parts`.

    Returns:
        The parts by name, for the pipeline's `from_pretrained`.

    Raises:
        UserError: A part is missing, damaged, or of a class that is not allowed.
    """
    index = index_of(folder)
    classes = {
        name: find_class(library, class_name, f"{index}: {name}")
        for name, (library, class_name) in class_names(read_json(index), str(index)).items()
    }
    for name in classes:
        if not (folder / name).is_dir():
            raise UserError(f"{folder / name}: no such folder, but {index.name} names it")
        check_json_files(folder / name)
        if name.startswith("tokenizer"):
            check_tokenizer_files(folder / name)
            read_json(folder / name / "tokenizer_config.json")  # without it texts have no greatest length
    with explained(f"{folder}: a part could not be loaded"):
        # First: a fault in them is found before the large weights are read.
        parts = extra(str(folder))
    for name, part_class in classes.items():
        if issubclass(part_class, nn.Module):
            of_part = dtype if not isinstance(dtype, Mapping) else dtype.get(name, dtype["default"])
            key = "torch_dtype" if part_class.__module__.startswith("diffusers") else "dtype"
            what = str(folder / name)
            is_encoder = name.startswith("text_encoder")
            parts[name] = load_model(part_class, what, what=what, only_part=is_encoder, **{key: of_part})
    return parts


def check_pipeline(pipe: Any, source: str) -> None:
    """Refuse a loaded pipeline with weights that are not finite, or with a tokenizer of another encoder."""
    for name, part in pipe.components.items():
        if isinstance(part, nn.Module):
            check_finite(part, f"{source}, {name}")
    check_tokenizers(pipe, source)


def check_tokenizers(pipe: Any, source: str) -> None:
    """Refuse a tokenizer whose vocabulary is not that of the text encoder of the same number."""
    from transformers import PreTrainedTokenizerBase

    for name, part in pipe.components.items():
        if not name.startswith("tokenizer") or part is None:
            continue
        encoder = pipe.components[name.replace("tokenizer", "text_encoder")]
        # FLUX.2-dev's is a processor, which has a tokenizer
        tokenizer = part if isinstance(part, PreTrainedTokenizerBase) else part.tokenizer
        check_tokenizer(tokenizer, f"{source}, {name}", encoder)
