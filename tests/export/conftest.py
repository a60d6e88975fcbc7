"""Runs of every family: tiny pipelines of the real classes on disk, an adapter that does something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny_families
from customized_grpo.policies.start_adapter import shaped_like_start

FAMILIES = ("flux1", "flux2", "qwen_edit", "qwen_image21", "flux3")
SETTINGS = {
    "flux1": [],
    "flux2": ["model.guidance=4.0", "model.max_text_tokens=96", "model.text_layers=[1, 2, 3]"],
    "qwen_edit": ["model.guidance=4.0", "model.max_text_tokens=512"],
    "qwen_image21": ["model.guidance=2.0", "model.max_text_tokens=64"],
    "flux3": ["model.guidance=4.0", "model.max_text_tokens=160", "model.text_layers=[1, 2, 3]"],
}


@dataclass(frozen=True)
class Trained:
    """A run and the policy it trained."""

    path: Path
    policy: Any
    base: Path
    family: str


MakeTrained = Callable[..., Trained]


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pipeline of random weights per family, as a folder in diffusers' layout."""
    folder = tmp_path_factory.mktemp("bases")
    return {family: tiny_families.save(family, folder / family) for family in FAMILIES}


@pytest.fixture(scope="session")
def make_trained(
    bases: dict[str, Path], recipe: Any, make_adapted: Any, make_run: Any, tmp_path_factory: Any
) -> MakeTrained:
    """Train a run of a family, in a manner of speaking; an alpha of None is the rank, 4."""

    def make(
        family: str,
        *,
        alpha: float | None = None,
        average: bool = False,
        target: str | None = None,
        settings: Sequence[str] = (),
        **options: Any,
    ) -> Trained:
        path = tmp_path_factory.mktemp("runs") / f"run-{family}"
        overrides = [
            f"run.dir={path}", f"model.family={family}", f"model.path={bases[family]}",
            *SETTINGS[family],
            f"model.lora.alpha={'null' if alpha is None else alpha}",
            *([] if target is None else [f"model.lora.target='{target}'"]),
            *(["train.ema_decay=0.9", "evaluation.use_ema=true"] if average else []),
            *settings,
        ]  # fmt: skip
        config = recipe(*overrides)
        config = config.model_copy(update={"model": shaped_like_start(config.model)})  # as a training does
        policy = make_adapted(config)
        policy.pipe.set_progress_bar_config(disable=True)
        shadow = [parameter.detach() / 2 for parameter in policy.trainable_parameters()]
        made = make_run(config, policy, average=shadow if average else None, **options)
        return Trained(made, policy, bases[family], family)

    return make


@pytest.fixture(scope="session")
def reference() -> Tensor:
    """An image [3, 64, 64] of 8-bit values in [0, 1]."""
    return torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(3)).float() / 255
