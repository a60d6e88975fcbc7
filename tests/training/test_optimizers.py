"""The optimizers of a recipe."""

from __future__ import annotations

import pytest
import torch

from customized_grpo.config import load_config
from customized_grpo.errors import UserError
from customized_grpo.training.optimizers import build_optimizer, check_optimizer

EIGHT_BIT = load_config("two-scale", ["train.optimizer=adamw_8bit"]).train


def test_eight_bits_walk_nearly_where_32_do() -> None:
    ends = []
    for train in (load_config("two-scale").train, EIGHT_BIT):
        parameter = torch.nn.Parameter(torch.ones(64, 128))
        target = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
        optimizer = build_optimizer(train, [parameter])
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        for _ in range(50):
            optimizer.zero_grad()
            (parameter - target).square().sum().backward()
            optimizer.step()
        ends.append(parameter.detach())
    walked = (ends[0] - 1).norm()
    assert 0 < float((ends[1] - ends[0]).norm() / walked) < 0.05, "other steps, but hardly"


def test_a_device_without_its_kernels_is_refused_with_the_way_out() -> None:
    with pytest.raises(UserError, match="works on cpu and cuda, not on mps") as refused:
        check_optimizer(EIGHT_BIT, torch.device("mps"))
    assert "train.optimizer=adamw" in str(refused.value.hint)
    check_optimizer(load_config("two-scale").train, torch.device("mps"))
