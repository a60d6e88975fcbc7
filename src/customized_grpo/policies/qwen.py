"""What the Qwen image families have in common: a VAE for videos, grids of tokens, and their processors.

Legend: B samples, C latent channels.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from customized_grpo.policies.policy import Policy
from customized_grpo.policies.text_lengths import HostValues

if TYPE_CHECKING:
    from customized_grpo.policies.architecture import Architecture
    from customized_grpo.policies.conditioning import Conditioning

NEGATIVE_PROMPT = " "  # of the model cards; 2.1's pipeline makes it of an empty one, 2511's has no default


class QwenPolicy(Policy):
    """A policy of a family of Qwen images, whose processor may be one from `load_processor`.

    `guidance` is the scale of classifier-free guidance; 1 or less means none, at half the cost.

    Attributes:
        PROCESSOR: Name of the class of transformers that the checkpoint's processor has.
    """

    PROCESSOR: ClassVar[str]
    VAE_MEMORY_FORMAT = torch.preserve_format  # its weights are 5-D
    VAE_FRAMES = (1,)

    @property
    def _is_guided(self) -> bool:
        return self.guidance > 1

    def _latent_statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the VAE's latents, each [C, 1, 1], fp32."""
        config = self.pipe.vae.config
        mean = torch.tensor(config.latents_mean, device=self.device)
        deviation = torch.tensor(config.latents_std, device=self.device)
        return mean[:, None, None], deviation[:, None, None]

    # Grids of tokens

    def _check_positions(self, conditioning: Conditioning, n_image: int, n_references: int) -> None:
        image, *references = self._grids(conditioning)
        expected = self.grid(conditioning.height, conditioning.width)
        assert tuple(image) == expected, f"image tokens in a grid {image}, expected {expected}"
        n_places = sum(rows * columns for rows, columns in references)
        assert n_places == n_references, f"grids for {n_places} reference tokens, there are {n_references}"

    def _grids(self, conditioning: Conditioning) -> Any:
        """Return rows and columns of the image and of each reference."""
        return self._on_host(conditioning.shared["grids"])

    @cached_property
    def _on_host(self) -> HostValues:
        return HostValues()

    # Loading

    @classmethod
    def extra_parts(cls, path: str) -> dict[str, Any]:
        """Return the processor, which diffusers could load with torchvision only."""
        return {"processor": load_processor(path, cls.PROCESSOR)}

    # Sizes

    @classmethod
    def pixels_per_latent(cls, vae_config: Any) -> int:
        """Return how many pixels of an image, along a side, are one latent pixel, as the pipeline has it."""
        return 1 << len(vae_config.temperal_downsample)

    @classmethod
    def latent_channels(cls, vae_config: Any) -> int:
        """Return the channels of a latent image."""
        channels: int = vae_config.z_dim
        return channels

    @classmethod
    def calls_per_velocity(cls, architecture: Architecture, guidance: float) -> int:
        """Return 2 above a guidance of 1, else 1."""
        return 2 if guidance > 1 else 1


def load_processor(path: str, parent: str) -> Any:
    """Load a checkpoint's processor of text and images, for its pipeline's `from_pretrained(processor=...)`.

    Args:
        path: A folder in diffusers' layout, or a hub id such as "owner/name".
        parent: Name of the published processor's class in transformers, see `processor_class`.

    Raises:
        OSError: The folder `processor` is missing or incomplete, or the hub cannot be reached.
    """
    return processor_class(parent).from_pretrained(path, subfolder="processor")


def processor_class(parent: str) -> Any:
    """Return a class of processors of text and images; made here, so that transformers is imported late.

    The published processors also have a part for videos, which these families never use and which cannot be
    loaded without torchvision.

    Args:
        parent: Name of the class in transformers: "Qwen2VLProcessor" or "Qwen3VLProcessor".
    """
    import transformers

    parent_class: Any = getattr(transformers, parent)

    class ImageTextProcessor(parent_class):
        """Its parent reads from this signature which parts there are."""

        def __init__(
            self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None
        ) -> None:
            super().__init__(image_processor, tokenizer, chat_template=chat_template)

    return ImageTextProcessor
