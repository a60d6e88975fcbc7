from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_families
from customized_grpo.config.schema import LoraConfig, ModelConfig
from customized_grpo.libraries import quiet
from customized_grpo.policies.flux1 import Flux1Policy
from customized_grpo.policies.loading import load_policy
from customized_grpo.policies.options import Flux1Options
from customized_grpo.policies.policy import Policy
from customized_grpo.policies.settings import PolicySettings

MakePolicy = Callable[..., Flux1Policy]
MakeImage = Callable[..., Tensor]

FAMILY_SETTINGS: dict[str, dict[str, Any]] = {
    "flux1": {"max_text_tokens": 24},
    "flux2": {"max_text_tokens": 96, "guidance": 4.0, "options": {"text_layers": [1, 2, 3]}},
    "qwen_edit": {"max_text_tokens": 512, "guidance": 4.0},
    "qwen_image21": {"max_text_tokens": 64, "guidance": 2.0},
    "flux3": {"max_text_tokens": 160, "guidance": 4.0, "options": {"text_layers": [1, 2, 3]}},
}


def small_autoencoder_kl(latent_channels: int) -> Any:
    """The class of the published checkpoints' VAE; ToyBox's own is an AutoencoderTiny."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=latent_channels,
            norm_num_groups=4,
            mid_block_add_attention=False,
        )


@pytest.fixture
def make_policy() -> MakePolicy:
    """Build a policy over fresh random weights, with a fresh adapter when a rank is given."""

    def make(
        *,
        rank: int | None = None,
        alpha: float | None = None,
        kl_vae: bool = False,
        reference_ids: Any = "kontext",
        last_block: Any = "whole",
        **settings: Any,
    ) -> Flux1Policy:
        with quiet():
            from customized_grpo.toybox.models import build_pipeline
        pipe = build_pipeline(0)
        if kl_vae:
            pipe.register_modules(vae=small_autoencoder_kl(pipe.vae.config.latent_channels))
        defaults = {
            "guidance": 2.5,
            "max_text_tokens": 24,
            "precision": "fp32",
            "device": "cpu",
        }
        options = Flux1Options(reference_ids=reference_ids, last_block=last_block)
        policy = Flux1Policy(pipe, PolicySettings(**{**defaults, **settings}), options)
        policy.pipe.set_progress_bar_config(disable=True)
        if rank is not None:
            policy.add_adapter(rank=rank, alpha=alpha, seed=7)
        return policy

    return make


@pytest.fixture(scope="session")
def make_image() -> MakeImage:
    """An image [3, h, w] of 8-bit values in [0, 1], a function of the seed."""

    def make(seed: int, height: int = 64, width: int = 64) -> Tensor:
        pixels = torch.randint(0, 256, (3, height, width), generator=torch.Generator().manual_seed(seed))
        return pixels.float() / 255

    return make


@pytest.fixture(scope="module", params=FAMILY_SETTINGS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def load_family(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Policy]:
    """Load a family's tiny pipeline, saved once, as a recipe with these settings does."""
    folders: dict[str, Path] = {}

    def make(family: str, **settings: Any) -> Policy:
        if family not in folders:
            folders[family] = tiny_families.save(family, tmp_path_factory.mktemp(family))
        common = {"height": 64, "width": 64, "precision": "fp32", "device": "cpu", "family": family}
        if settings.get("text_encoders") == "drop":
            common["cache"] = tmp_path_factory.mktemp("cache")
        options = {**common, **FAMILY_SETTINGS[family], "path": str(folders[family]), **settings}
        return load_policy(ModelConfig(lora=LoraConfig(rank=2), **options), seed=0)

    return make


@pytest.fixture
def velocities(make_image: MakeImage) -> Callable[[Policy], Tensor]:
    """Ask for velocities of two samples, always the same."""

    def velocity(policy: Policy) -> Tensor:
        encoded = policy.encode(["a fox", "a bird"], [[make_image(1)], [make_image(2)]], 64, 64)
        x = policy.noise([torch.Generator().manual_seed(seed) for seed in (1, 2)], 64, 64)
        return policy.velocity(x, 0.6, encoded)

    return velocity
