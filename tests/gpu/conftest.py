"""Tests of what only an accelerator can show; skipped without a CUDA device.

CGRPO_GPU_REHEARSAL=1 runs them on the CPU instead, but for those of CUDA's memory and of compiled kernels: it
shows that the tests themselves work, and nothing about GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_families
from customized_grpo.config.schema import LoraConfig, ModelConfig
from customized_grpo.policies.loading import load_policy
from customized_grpo.policies.policy import Policy

SETTINGS: dict[str, dict[str, Any]] = {
    "flux1": {"max_text_tokens": 24},
    "flux2": {"max_text_tokens": 96, "guidance": 4.0, "options": {"text_layers": [1, 2, 3]}},
    "qwen_edit": {"max_text_tokens": 512, "guidance": 4.0},
    "qwen_image21": {"max_text_tokens": 64, "guidance": 2.0},
    "flux3": {"max_text_tokens": 160, "guidance": 4.0, "options": {"text_layers": [1, 2, 3]}},
}

Load = Callable[..., Policy]


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """Where a test runs; every test here is skipped when that is nowhere."""
    if torch.cuda.is_available():
        return torch.device("cuda:0")
    if os.environ.get("CGRPO_GPU_REHEARSAL") == "1":
        return torch.device("cpu")
    pytest.skip("torch sees no CUDA device")


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """The device of a test that a rehearsal on the CPU would tell nothing about."""
    if device.type != "cuda":
        pytest.skip("a rehearsal: this is about CUDA itself")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return device


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each family."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {family: tiny_families.save(family, root / family) for family in SETTINGS}


@pytest.fixture(params=SETTINGS)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def load(folders: dict[str, Path], device: torch.device) -> Load:
    """Load a family's tiny checkpoint, with an adapter that changes what it does; on the GPU unless told."""

    def make(family: str, where: torch.device = device, **settings: Any) -> Policy:
        common = {"height": 64, "width": 64, "precision": "fp32", "device": where.type, "family": family}
        options = {**common, **SETTINGS[family], "path": str(folders[family]), **settings}
        policy = load_policy(ModelConfig(lora=LoraConfig(rank=2), **options), seed=0)
        noise = torch.Generator().manual_seed(3)
        tensors = policy.adapter_tensors()
        for name, tensor in tensors.items():
            tensors[name] = tensor + (0.05 * torch.randn(tensor.shape, generator=noise)).to(tensor)
        policy.load_adapter_tensors(tensors)
        return policy

    return make


@pytest.fixture(scope="session")
def images() -> list[Tensor]:
    """Two images [3, 64, 64] of 8-bit values in [0, 1]."""
    chance = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, 64, 64), generator=chance).float() / 255 for _ in range(2)]
