"""Backward passes that repeat: only on CUDA, only inside the block, and an operation that cannot is told."""

from __future__ import annotations

import pytest
import torch
import torch.utils.deterministic

from customized_grpo.engine.deterministic import repeatable
from customized_grpo.errors import UserError

CUDA = torch.device("cuda")


def settings() -> tuple[bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.utils.deterministic.fill_uninitialized_memory,
    )


def test_kernels_repeat_inside_the_block_alone() -> None:
    before = settings()
    with repeatable(CUDA, True):
        # attention ignores the softer mode that only warns
        assert settings() == (True, False, False)
    assert settings() == before


@pytest.mark.parametrize(("device", "enabled"), [("cuda", False), ("cpu", True)])
def test_nothing_changes_unasked_or_on_another_device(device: str, enabled: bool) -> None:
    before = settings()
    with repeatable(torch.device(device), enabled):
        assert settings() == before


def test_an_operation_that_cannot_repeat_is_told_with_the_way_out() -> None:
    before = settings()
    with (
        pytest.raises(UserError, match="^run.deterministic: put_ does not") as caught,
        repeatable(CUDA, True),
    ):
        torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))  # refused on CPUs as well
    assert caught.value.hint == "Set run.deterministic=false."
    assert settings() == before
    with pytest.raises(RuntimeError, match="another"), repeatable(CUDA, True):
        raise RuntimeError("another")
