"""What a checkpoint consists of, without its weights: classes and configs, enough to count and to rebuild."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from customized_grpo.errors import UserError
from customized_grpo.policies.families import FAMILIES
from customized_grpo.policies.loading import INDEX, TOYBOX, download, read_json
from customized_grpo.quiet import quiet

if TYPE_CHECKING:
    from customized_grpo.config.schema import ModelConfig


@dataclass(frozen=True)
class Part:
    """One model of a pipeline.

    Attributes:
        library: The package its class is from.
        name: The class.
        config: The arguments of its config that decide about sizes; others keep the class's defaults.
    """

    library: Literal["diffusers", "transformers"]
    name: str
    config: Mapping[str, Any]

    def build(self, *, device: torch.device | str = "meta", dtype: torch.dtype = torch.float32) -> Any:
        """Return the model with fresh weights, made where they stay: on "meta" they take no memory."""
        with quiet(), torch.device(device), _default_dtype(dtype):
            if self.library == "diffusers":
                import diffusers

                return getattr(diffusers, self.name).from_config(dict(self.config))
            import transformers

            model_class = getattr(transformers, self.name)
            return model_class(model_class.config_class.from_dict(dict(self.config)))


@dataclass(frozen=True)
class Architecture:
    """The models of a checkpoint.

    Attributes:
        family: Name in `FAMILIES`.
        transformer: What is tuned.
        vae: The autoencoder.
        text_encoders: What encodes prompts, and for qwen_edit references, too.
        distilled: Whether a FLUX.2-klein takes no guidance; False for everything else.
        source: Where this is known from, for the reader.
    """

    family: str
    transformer: Part
    vae: Part
    text_encoders: tuple[Part, ...]
    distilled: bool
    source: str


def read_architecture(model: ModelConfig) -> Architecture:
    """Return what the checkpoint of a recipe consists of; reads small JSON files at most.

    Published checkpoints are known by their hub id (`published.CHECKPOINTS`), so that neither the hub nor the
    permission to download a gated one is needed.

    Raises:
        UserError: The checkpoint is missing, unreachable, or of another family.
    """
    from customized_grpo.policies.published import CHECKPOINTS

    if (known := CHECKPOINTS.get(model.path)) is not None:
        return _of_family(known, model)
    if model.path == TOYBOX:
        from customized_grpo.toybox import assets

        folder, source = assets.ASSETS / "base", "the weights that come with the package"
    else:
        folder, source = Path(model.path).expanduser(), f"the configs in {model.path}"
    if folder.is_dir():
        return _of_family(_read(lambda name: folder / name, model, source), model)
    return _of_family(
        _read(lambda name: download(model.path, name), model, f"the configs of {model.path}"), model
    )


def _read(locate: Callable[[str], Path], model: ModelConfig, source: str) -> Architecture:
    """Read model_index.json and the configs it points to."""
    index = read_json(locate(INDEX))
    pipeline = str(index.get("_class_name"))
    family = next((name for name, family in FAMILIES.items() if pipeline in family.classes), pipeline)

    def part(name: str) -> Part:
        library, class_name = index[name]
        return Part(library, class_name, read_json(locate(f"{name}/config.json")))

    if family not in FAMILIES or not {"transformer", "vae"} <= index.keys():
        raise UserError(
            f"model.path {model.path!r}: {INDEX} says {pipeline}, which is of no known family",
            hint=f"Known families: {', '.join(FAMILIES)}.",
        )
    encoders = [name for name in index if name.startswith("text_encoder") and index[name][0] is not None]
    return Architecture(
        family=family,
        transformer=part("transformer"),
        vae=part("vae"),
        text_encoders=tuple(part(name) for name in encoders),
        distilled=bool(index.get("is_distilled", False)),
        source=source,
    )


def _of_family(found: Architecture, model: ModelConfig) -> Architecture:
    if found.family != model.family:
        raise UserError(
            f"model.path {model.path!r} is of family {found.family}, model.family says {model.family}",
            hint=f"Set model.family={found.family}, or name a checkpoint of {model.family}.",
        )
    return found


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def n_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module, those shared by several layers once."""
    return sum(parameter.numel() for parameter in module.parameters())
