"""Sizes of a family's models, from configs alone, for a plan without weights."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from customized_grpo.errors import UserError
from customized_grpo.policies.tokens import PATCH, Grid

if TYPE_CHECKING:
    from customized_grpo.policies.architecture import Architecture, CallShape


class PolicySizes:
    """What a policy's class says before there is a policy; the defaults suit a pipeline like FLUX.1's."""

    PATCH: ClassVar[int] = PATCH
    """Side of a token, in latent pixels."""

    SIDE_IN_TOKENS: ClassVar[int] = 1
    """The sides of an image are multiples of so many tokens."""

    VAE_MEMORY_FORMAT: ClassVar[torch.memory_format] = torch.channels_last
    """Convolutions are twice as fast in this layout, on CPUs as well."""

    VAE_FRAMES: ClassVar[tuple[int, ...]] = ()
    """Axes that the autoencoder has between channels and rows: (1,) for one of videos."""

    VAE_CHANNELS: ClassVar[int] = 3
    """Channels of the images that the autoencoder takes: 4 with opacity."""

    TEXT_TO_IMAGE: ClassVar[bool] = False
    """Whether it draws from a prompt alone, without references, as well."""

    CALLS_BY_TEXT: ClassVar[bool] = False
    """Whether a batch takes a call of the transformer for each length of its texts, see `text_lengths`."""

    LEAST_BLOCKS: ClassVar[Mapping[str, int]] = MappingProxyType({})
    """Blocks of a stack, by its key in the transformer's config, without which others' outputs go nowhere."""

    @classmethod
    def grid_of(cls, height: int, width: int, pixels_per_latent: int) -> Grid:
        """Return the rows and columns of tokens of an image.

        Args:
            height: Of the image, in pixels.
            width: Of the image, in pixels.
            pixels_per_latent: Pixels that are one latent pixel, along a side.

        Raises:
            UserError: The model makes no image of this size.
        """
        side = cls.PATCH * pixels_per_latent
        step = cls.SIDE_IN_TOKENS * side
        if height % step or width % step:
            near = "x".join(str(max(1, round(pixels / step)) * step) for pixels in (height, width))
            raise UserError(
                f"size {height}x{width}: this model needs multiples of {step} pixels",
                hint=f"Take {near} (height x width).",
            )
        return height // side, width // side

    @classmethod
    def text_channels(cls, transformer_config: Any) -> int:
        """Return D, the channels of the text embeddings that the transformer takes."""
        channels: int = transformer_config.joint_attention_dim
        return channels

    @classmethod
    def pixels_per_latent(cls, vae_config: Any) -> int:
        """Return how many pixels of an image, along a side, are one latent pixel, as the pipeline has it."""
        # Every stage but the last halves the sides.
        return 1 << (len(vae_config.block_out_channels) - 1)

    @classmethod
    def latent_channels(cls, vae_config: Any) -> int:
        """Return the channels of a latent image."""
        channels: int = vae_config.latent_channels
        return channels

    @classmethod
    def calls_per_velocity(cls, architecture: Architecture, guidance: float) -> int:
        """Return how often `velocity` calls the transformer: 2 with classifier-free guidance, else 1."""
        return 1

    @classmethod
    def texts_per_sample(cls, architecture: Architecture, guidance: float) -> int:
        """Return how many texts a conditioning holds for each sample; one that all share is not counted."""
        return cls.calls_per_velocity(architecture, guidance)

    @classmethod
    def transformer_inputs(cls, shape: CallShape) -> dict[str, Any]:
        """Return arguments of the transformer as `velocity` gives them, of these sizes and any content.

        Raises:
            UserError: The family does not say.
        """
        raise UserError(
            f"{cls.__name__} does not say what its transformer takes, so its memory cannot be predicted",
            hint="Define `transformer_inputs` in it; see policies/policy.py.",
        )
