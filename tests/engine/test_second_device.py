"""The second device of the rehearsals refuses what CUDA refuses, allows what it allows, and counts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from customized_grpo.engine.engine import Engine
from second_device import DEVICE, MixedDevices, SecondDevice, second_device


@pytest.fixture
def second() -> Iterator[SecondDevice]:
    with second_device() as mode:
        yield mode


@pytest.mark.parametrize(
    "mix",
    [
        lambda here, there: here + there,
        lambda here, there: there @ here,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: torch.equal(here, there),
        lambda here, there: torch.where(there > 0, here, there),
        lambda here, there: there.index_select(0, torch.tensor([0])),
    ],
)
def test_operands_of_two_places_are_refused(
    second: SecondDevice, mix: Callable[[Tensor, Tensor], Tensor]
) -> None:
    here = torch.ones(2, 2)
    there = torch.ones(2, 2, device=DEVICE)
    with pytest.raises(MixedDevices):
        mix(here, there)


def test_numpy_and_generators_of_the_cpu_are_refused(second: SecondDevice) -> None:
    there = torch.ones(2, device=DEVICE)
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(2, generator=torch.Generator(), device=DEVICE)
    assert there.cpu().numpy().sum() == 2


def test_places_follow_views_gradients_and_modules(second: SecondDevice) -> None:
    layer = torch.nn.Linear(2, 2).to(DEVICE)
    x = torch.ones(1, 2, device=DEVICE)
    y = layer(x)
    y.sum().backward()
    assert layer.weight.grad is not None
    for tensor in (layer.weight, y, y[0], y.float(), layer.weight.grad, torch.zeros_like(x), x.clone()):
        assert tensor.device == DEVICE and tensor.is_cuda and not tensor.is_cpu
    assert (x * torch.tensor(2.0)).is_cuda and x[torch.tensor([0])].is_cuda
    assert not layer.to("cpu").weight.is_cuda
    with pytest.raises(MixedDevices):
        layer(x)


def test_copies_and_waits_are_counted_at_their_line(second: SecondDevice) -> None:
    there = torch.ones(3).to(DEVICE)
    float(there.sum())
    there.cpu()
    traffic = second.traffic
    assert traffic.to_device.total() == 1 and traffic.n_copies == 2
    assert traffic.n_bytes.total() == 2 * 12
    assert traffic.n_waits == 2
    assert all("test_second_device.py:" in place for place in traffic.waits)
    traffic.clear()
    (there * 2).sum()
    assert not traffic.waits and not traffic.to_device


def test_outside_of_the_block_tensors_are_torchs_own() -> None:
    with second_device():
        there = torch.ones(2, device=DEVICE)
    assert there.device.type == "cpu" and not torch.cuda.is_available()
    assert torch.equal(there + torch.ones(2), torch.full((2,), 2.0))


def test_a_run_on_the_cpu_follows_one_on_a_device_in_the_same_process() -> None:
    with second_device():
        there = Engine(DEVICE)
        assert there.accelerator.device.type == "cuda"
    here = Engine(torch.device("cpu"))
    assert here.accelerator.device.type == "cpu"
