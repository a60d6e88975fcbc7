"""What a checkpoint consists of, without its weights: classes and configs, enough to count and to rebuild."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from customized_grpo.libraries import quiet

if TYPE_CHECKING:
    pass


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
