"""The parts of a checkpoint without weights: classes and configs, enough to count and to rebuild them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from customized_grpo.libraries import quiet
from customized_grpo.policies.parts import find_class
from customized_grpo.policies.tokens import Grid
from customized_grpo.weights.models import explained


@dataclass(frozen=True)
class Part:
    """One model of a pipeline.

    Attributes:
        library: Package of its class, "diffusers" or "transformers".
        name: The class.
        config: Entries of its config that decide sizes; the others keep the class's defaults.
    """

    library: str
    name: str
    config: Mapping[str, Any]

    def build(self, *, device: torch.device | str = "meta", dtype: torch.dtype = torch.float32) -> Any:
        """Return the model with fresh weights on a device; on "meta" they take no memory.

        Raises:
            UserError: The library has no such class, or the config describes no model of it.
        """
        with quiet(), torch.device(device), _default_dtype(dtype):
            model_class: Any = find_class(self.library, self.name, "a part of the checkpoint")
            with explained(f"the config of a part describes no {self.name}"):
                if self.library == "diffusers":
                    return model_class.from_config(dict(self.config))
                # transformers builds a model from an object of its config, diffusers from the dictionary.
                return model_class(model_class.config_class.from_dict(dict(self.config)))


@dataclass(frozen=True)
class Architecture:
    """The models of a checkpoint.

    Attributes:
        transformer: The model that is tuned.
        vae: The autoencoder.
        text_encoders: Encoders of prompts, and for Qwen-Image-Edit of references as well.
        distilled: Whether it takes no guidance, as its model_index.json says; only FLUX.2-klein's does.
        source: Where these facts are from, for the output of `cgrpo plan`.
    """

    transformer: Part
    vae: Part
    text_encoders: tuple[Part, ...]
    distilled: bool
    source: str


@dataclass(frozen=True)
class CallShape:
    """Sizes of one call of a transformer, of B samples with N image, R reference and T text tokens.

    Attributes:
        config: The transformer's config.
        batch: B.
        grid: Rows and columns of an image's tokens.
        references: Rows and columns of the tokens of each of a sample's references.
        text_tokens: T.
        text_channels: D.
        dtype: Type of the text embeddings.
    """

    config: Any
    batch: int
    grid: Grid
    references: tuple[Grid, ...]
    text_tokens: int
    text_channels: int
    dtype: torch.dtype

    @property
    def n_tokens(self) -> int:
        """Return N + R."""
        return sum(rows * columns for rows, columns in (self.grid, *self.references))

    def hidden_states(self) -> Tensor:
        """Return image and reference tokens [B, N + R, C], fp32, of any content."""
        return torch.empty(self.batch, self.n_tokens, self.config.in_channels)

    def text(self) -> Tensor:
        """Return text embeddings [B, T, D] of any content."""
        return torch.empty(self.batch, self.text_tokens, self.text_channels, dtype=self.dtype)


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def n_parameters(module: nn.Module) -> int:
    """Return the number of parameters of a module; one that several layers share counts once."""
    # `parameters` yields a shared one once.
    return sum(parameter.numel() for parameter in module.parameters())
