"""Every registered reward scores on an accelerator what it scores on the CPU, wherever the images are."""

from __future__ import annotations

import dataclasses
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from customized_grpo.rewards import REWARDS
from reward_cases import build_tiny, make_batch
from second_device import DEVICE, second_device

pytestmark = pytest.mark.slow  # all of them together


@pytest.mark.parametrize("name", sorted(REWARDS))
def test_a_reward_scores_on_the_device_as_on_the_cpu(name: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        # first outside: transformers leaves buffers empty in classes that it first loads under a mode
        here = build_tiny(name, tmp_path, stack)
        batch = make_batch(here, 2)
        expected = here.score(batch)
        stack.enter_context(second_device())
        there = build_tiny(name, tmp_path, stack, DEVICE)
        on_device = dataclasses.replace(batch, images=batch.images.to(DEVICE))
        for given in (batch, on_device):
            scores = there.score(given)
            assert scores.device.type == "cpu"
            assert torch.allclose(scores, expected, rtol=1e-5, atol=1e-6)  # sums in another order
