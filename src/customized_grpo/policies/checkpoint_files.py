"""What a checkpoint's small files say: its pipeline class, its architecture, the names of its layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from customized_grpo.embedded import EMBEDDED, embedded_folder
from customized_grpo.errors import UserError
from customized_grpo.hub import INDEX, MODULAR_INDEX, download, index_of, read_json
from customized_grpo.policies.architecture import Architecture, Part
from customized_grpo.policies.checkpoints import CHECKPOINTS
from customized_grpo.policies.families import FAMILIES, get_family
from customized_grpo.policies.parts import class_names

if TYPE_CHECKING:
    from torch import nn

    from customized_grpo.config.schema import ModelConfig

Locate = Callable[[str], Path]
"""Maps the name of a file in a checkpoint to where it is on this machine."""


def read_index(path: str) -> dict[str, Any]:
    """Return the model_index.json of a folder or hub id: a small file that says what the checkpoint is.

    Raises:
        UserError: There is none, it cannot be fetched, or it is not JSON.
    """
    return _read_index(_locator(path))


def _read_index(locate: Locate) -> dict[str, Any]:
    """Return the index of a pipeline, or else that of a modular one.

    Raises:
        UserError: See `read_index`.
    """
    try:
        # The usual index first, whose error is the better one if both are missing.
        return read_json(locate(INDEX))
    except UserError as error:
        try:
            return read_json(locate(MODULAR_INDEX))
        except UserError:
            raise error from None


def find_pipeline_class(path: str, family: str) -> str:
    """Return the name of the diffusers class that loads a checkpoint.

    Only the index is read, a small file, so that a wrong or unreachable checkpoint is refused at once.

    Raises:
        UserError: See `read_index`; or the checkpoint is of another family.
    """
    pipelines = get_family(family).pipelines
    pipeline = str(read_index(path).get("_class_name"))
    if pipeline not in pipelines:
        expected = " or ".join(pipelines)
        raise UserError(
            f"model.path {path!r}: {INDEX} says {pipeline}, model.family {family} needs {expected}",
            hint="Name a checkpoint of the family, or another family.",
        )
    return pipelines[pipeline]


def empty_transformer(model: ModelConfig) -> nn.Module:
    """Return a model's transformer without its weights, from its config alone.

    Raises:
        UserError: The checkpoint is unreachable or of another family.
    """
    transformer: nn.Module = read_architecture(model).transformer.build()
    return transformer


def transformer_layers(model: ModelConfig) -> list[str]:
    """Return the names of all modules of a model's transformer, in their order, from its config alone.

    Raises:
        UserError: See `empty_transformer`.
    """
    return [name for name, _ in empty_transformer(model).named_modules()]


def read_architecture(model: ModelConfig) -> Architecture:
    """Return what the checkpoint of a recipe consists of; reads small JSON files at most.

    Published checkpoints are known by their hub id, so that neither the hub nor the permission to download a
    gated one is needed.

    Raises:
        UserError: The checkpoint is missing, unreachable, or of another family.
    """
    checkpoint = CHECKPOINTS.get(model.path)  # gated ones can be planned without a licence this way
    if checkpoint is not None:
        _check_family(checkpoint.pipeline, model)
        return checkpoint.architecture
    if model.path in EMBEDDED:
        folder = embedded_folder(model.path)
        if not index_of(folder).is_file():
            raise UserError(
                f"model.path {model.path!r} is no pipeline of diffusers: memory and exports are not for it",
                hint="It trains in seconds on a core; see the README of customized_grpo/two_scale.",
            )
        return _read_architecture(_in_folder(folder), model, "the weights that come with the package")
    return _read_architecture(_locator(model.path), model, f"the configs of {model.path}")


def _read_architecture(locate: Locate, model: ModelConfig, source: str) -> Architecture:
    """Read model_index.json and the configs it points to."""
    index = _read_index(locate)
    _check_family(str(index.get("_class_name")), model)

    names = class_names(index, f"model.path {model.path!r}: {INDEX}")

    def part(name: str) -> Part:
        library, class_name = names[name]
        return Part(library, class_name, read_json(locate(f"{name}/config.json")))

    for name in ("transformer", "vae"):
        if name not in names:
            raise UserError(f"model.path {model.path!r}: {INDEX} names no {name}")
    # One or two of them, by the family.
    encoders = [name for name in names if name.startswith("text_encoder")]
    return Architecture(
        transformer=part("transformer"),
        vae=part("vae"),
        text_encoders=tuple(part(name) for name in encoders),
        distilled=bool(index.get("is_distilled", False)),
        source=source,
    )


def _check_family(pipeline: str, model: ModelConfig) -> None:
    if pipeline in get_family(model.family).pipelines:
        return
    for name, family in FAMILIES.items():
        if pipeline in family.pipelines:
            raise UserError(
                f"model.path {model.path!r} is of family {name}, model.family says {model.family}",
                hint=f"Set model.family={name}, or name a checkpoint of {model.family}.",
            )
    raise UserError(
        f"model.path {model.path!r}: {INDEX} says {pipeline}, which is of no known family",
        hint=f"Known families: {', '.join(FAMILIES)}.",
    )


def _locator(path: str) -> Locate:
    """Return where the files of a folder are, or fetch those of a hub id when they are asked for."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return _in_folder(folder)
    return lambda name: download(path, name)


def _in_folder(folder: Path) -> Locate:
    return lambda name: folder / name
