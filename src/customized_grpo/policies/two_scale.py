"""The family of the world of two scales: a prompt names a scene, and one reference shows a pattern."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from customized_grpo.errors import UserError
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.policies.policy import Policy
from customized_grpo.policies.tokens import Grid, pack, unpack
from customized_grpo.text_limits import TextLimit
from customized_grpo.two_scale import world


class TwoScalePolicy(Policy):
    """A policy around a `TwoScalePipeline`, which draws images of 16 x 16 pixels, 4 tokens."""

    LORA_TARGET = r"enter|blocks\.\d+\.(expand|contract)|leave"

    def text_limits(self) -> list[TextLimit]:
        """Return none: of a prompt of any length the scene's name is read."""
        return []

    def _encode(
        self,
        prompts: Sequence[str],
        references: Sequence[Sequence[Tensor]],
        image_grid: Grid,
        reference_grids: Sequence[Grid],
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        if any(grid != image_grid for grid in reference_grids):
            raise UserError(
                "this model takes references of the size of the image alone",
                hint="Set model.reference_fit=crop or model.reference_fit=pad.",
            )
        # prompt -> number of its scene; the network knows no other words
        scenes = [world.prompted_scene(prompt) for prompt in prompts]
        tokens = self._all_reference_tokens(references)
        return {"scene": torch.tensor(scenes, device=self.device), "reference_tokens": tokens}, {}

    def _reference_tokens(self, images: Tensor) -> Tensor:
        return pack(world.shrink(images.to(self.device)))

    def _shift(self, steps: int, n_tokens: int) -> float:
        return 0.0  # none

    def _velocity(self, x: Tensor, level: Tensor, conditioning: Conditioning) -> Tensor:
        sample = conditioning.per_sample
        return self._call_transformer(
            hidden_states=x, timestep=level, reference=sample["reference_tokens"], scene=sample["scene"]
        ).float()

    def _check_positions(self, conditioning: Conditioning, n_image: int, n_references: int) -> None:
        # the network has no positions: an image and one reference, of the size it was trained on
        assert n_image == n_references == 4, f"{n_image} image tokens and {n_references} of references"

    def _latents(self, x: Tensor, grid: Grid) -> Tensor:
        return unpack(x, grid)
