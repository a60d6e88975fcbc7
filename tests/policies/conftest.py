from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.policies import Flux1Policy
from customized_grpo.quiet import quiet

MakePolicy = Callable[..., Flux1Policy]
MakeImage = Callable[..., Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
        *, rank: int | None = None, alpha: float | None = None, kl_vae: bool = False, **options: Any
    ) -> Flux1Policy:
        with quiet():
            from customized_grpo.toybox.models import build_pipeline
        pipe = build_pipeline(0)
        if kl_vae:
            pipe.register_modules(vae=small_autoencoder_kl(pipe.vae.config.latent_channels))
        defaults = {
            "reference_ids": "kontext",
            "guidance": 2.5,
            "max_text_tokens": 24,
            "precision": "fp32",
            "device": "cpu",
        }
        policy = Flux1Policy(pipe, **{**defaults, **options})
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
