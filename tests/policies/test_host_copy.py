"""Weights that wait on the CPU: what a part changes while it works is kept."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from customized_grpo.policies.host_copy import HostCopy

DEVICE = torch.device("cpu")


class Part(nn.Module):
    """One frozen weight, one that is trained, and two tables that it may change."""

    table: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.trained = nn.Parameter(torch.ones(2))
        self.register_buffer("table", torch.zeros(3))
        self.register_buffer("counts", torch.zeros(1))


def test_a_part_keeps_what_it_changes_while_it_works() -> None:
    part = Part()
    copy = HostCopy(part, DEVICE)
    copy.come()
    part.table = torch.arange(5.0)  # as rotary tables that grow with the text
    part.counts += 7
    with torch.no_grad():
        part.trained.mul_(2)
    copy.leave()
    assert part.table.tolist() == [0, 1, 2, 3, 4]
    assert part.counts.tolist() == [7]
    assert (part.trained.tolist(), part.frozen.tolist()) == ([2, 2], [1, 1])


def test_a_frozen_weight_comes_back_to_the_memory_that_it_waited_in() -> None:
    part = Part()
    waiting = part.frozen.data_ptr()
    copy = HostCopy(part, DEVICE)
    copy.come()
    part.frozen.data = part.frozen.data.clone()  # stands for the device's memory
    copy.leave()
    assert part.frozen.data_ptr() == waiting
