"""Sizes of a family's models, from configs alone, for a plan without weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from customized_grpo.errors import UserError

if TYPE_CHECKING:
    from customized_grpo.policies.architecture import Architecture, CallShape


class PolicySizes:
    """What a policy's class says before there is a policy; the defaults suit a pipeline like FLUX.1's."""

    @classmethod
    def pixels_per_latent(cls, vae_config: Any) -> int:
        """Return how many pixels of an image, along a side, are one latent pixel, as the pipeline has it."""
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
