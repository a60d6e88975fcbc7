"""Held-out judges: they never train a generator, they only measure how good its images are.

Two small convolutional networks, on purpose of another kind than the rewards, which are transformers: an
encoder that re-identifies a subject across scenes, and a classifier of the scene's attributes and the emblem.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from customized_grpo.toybox import world
from customized_grpo.toybox.world import Scene

EMBEDDING = 64
SCENE_ATTRIBUTES = ("prop", "prop_colour", "side", "floor_colour", "sky")  # what a prompt names
# the classes of each head
CLASSES: dict[str, tuple[str, ...]] = {
    "prop": world.PROPS,
    "prop_colour": tuple(world.COLOURS),
    "side": world.SIDES,
    "floor_colour": tuple(world.COLOURS),
    "sky": world.SKIES,
    "emblem": (*world.EMBLEMS, world.PLAIN),
}


class Trunk(nn.Module):
    """Residual network that both judges start with: images [B, 3, 64, 64] in [0, 1] -> [B, width, 4, 4]."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList([Residual(32, 64), Residual(64, 96), Residual(96, width)])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return features on a 4 x 4 grid, [B, width, 4, 4]."""
        x = self.stem(images * 2 - 1)
        for block in self.blocks:
            x = block(x)
        return x


class Residual(nn.Module):
    """Residual block that halves the resolution by strided convolutions."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels_in)
        self.first = nn.Conv2d(channels_in, channels_out, 3, stride=2, padding=1)
        self.inner_norm = nn.GroupNorm(8, channels_out)
        self.second = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.skip = nn.Conv2d(channels_in, channels_out, 1, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] to [B, C', H/2, W/2]."""
        h = self.first(F.silu(self.norm(x)))
        return self.second(F.silu(self.inner_norm(h))) + self.skip(x)


class SubjectEncoder(nn.Module):
    """Re-identification encoder: images [B, 3, 64, 64] in [0, 1] -> unit embeddings [B, EMBEDDING]."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.head = nn.Linear(128 * 16, EMBEDDING)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return L2-normalised embeddings."""
        return F.normalize(self.head(F.silu(self.trunk(images)).flatten(1)).float(), dim=-1)


class AttributeClassifier(nn.Module):
    """Classifier with one linear head per attribute over a shared trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.heads = nn.ModuleDict(
            {name: nn.Linear(128 * 16, len(classes)) for name, classes in CLASSES.items()}
        )

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return logits [B, classes] by attribute."""
        features = F.silu(self.trunk(images)).flatten(1)
        return {name: head(features).float() for name, head in self.heads.items()}


def attribute_labels(scenes: Sequence[Scene], emblems: Sequence[str]) -> dict[str, torch.Tensor]:
    """Return class indices [B] by attribute: those of the scenes, and the emblem."""
    columns: dict[str, torch.Tensor] = {}
    for name in SCENE_ATTRIBUTES:
        columns[name] = torch.tensor([CLASSES[name].index(getattr(scene, name)) for scene in scenes])
    columns["emblem"] = torch.tensor([CLASSES["emblem"].index(emblem) for emblem in emblems])
    return columns


def scene_hits(predicted: dict[str, torch.Tensor], labels: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return which of SCENE_ATTRIBUTES an image has as in a scene.

    Args:
        predicted, labels: Class indices [B] by attribute.

    Returns:
        [B, len(SCENE_ATTRIBUTES)]: 1 hit, 0 miss.
    """
    return torch.stack([(predicted[name] == labels[name]).float() for name in SCENE_ATTRIBUTES], dim=1)
