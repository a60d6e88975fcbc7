"""The generator of the world of two scales: a small network in the parts of a pipeline."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ConfigMixin, FlowMatchEulerDiscreteScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from torch import Tensor, nn

from customized_grpo.two_scale import world

SIZE = 2 * world.WIDTH
"""Numbers of a sample."""
SCENE_WIDTH = 32
FREQUENCIES = 16


class Block(nn.Module):
    """Residual block of two layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 2 * width)
        self.contract = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, width] to [B, width]."""
        change: Tensor = self.contract(nn.functional.gelu(self.expand(self.norm(x))))
        return x + change


class TwoScaleModel(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """The velocity of a noisy sample, given a reference and the scene that the prompt names.

    Args:
        width: Width of the layers.
        depth: Number of residual blocks.
    """

    @register_to_config
    def __init__(self, width: int = 96, depth: int = 2) -> None:
        super().__init__()
        self.scene = nn.Embedding(len(world.SCENES), SCENE_WIDTH)
        self.enter = nn.Linear(2 * SIZE + SCENE_WIDTH + 2 * FREQUENCIES + 1, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.leave = nn.Linear(width, SIZE)

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        reference: Tensor,
        scene: Tensor,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """Return the velocity [B, N, C] of tokens [B, N, C] at noise levels [B].

        Args:
            hidden_states: Noisy tokens [B, N, C] with N x C = 48.
            timestep: Noise levels [B].
            reference: Tokens of the reference [B, N, C].
            scene: Index of the prompted scene [B].
            return_dict: Of no effect, as diffusers' models have it.
        """
        # from 1 to about 55 radians over all noise levels, so that close levels differ too
        frequencies = torch.linspace(0, 4, FREQUENCIES, device=timestep.device).exp()
        angles = timestep[:, None] * frequencies
        features = [
            hidden_states.flatten(1),
            reference.flatten(1),
            self.scene(scene),
            angles.sin(),
            angles.cos(),
            timestep[:, None],
        ]
        x = self.enter(torch.cat(features, dim=1))
        for block in self.blocks:
            x = block(x)
        return (self.leave(x).view_as(hidden_states),)


class Enlarger(nn.Module):
    """What stands for an autoencoder: a latent pixel is a cell of an image, without loss."""

    config = SimpleNamespace(latent_channels=3)
    dtype = torch.float32

    def decode(self, latents: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """Return images [B, 3, 16, 16] in [-1, 1] of latent pixels [B, 3, 4, 4]."""
        return (world.enlarge(latents),)


class TwoScalePipeline:
    """The parts of the generator by the names that pipelines of diffusers give them.

    Args:
        transformer: The network.
    """

    vae_scale_factor = world.CELL_PIXELS

    def __init__(self, transformer: TwoScaleModel) -> None:
        self.transformer = transformer
        self.vae = Enlarger()
        self.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)  # equal steps of noise level

    @property
    def components(self) -> dict[str, Any]:
        """Return all parts."""
        return {"transformer": self.transformer, "vae": self.vae, "scheduler": self.scheduler}
