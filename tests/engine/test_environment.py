"""Launchers' variables and accelerate's: what the environment may say, and what it may not change."""

from __future__ import annotations

import os

import pytest
import torch
import torch.distributed as dist

from customized_grpo.engine.engine import Engine, _joining
from customized_grpo.engine.environment import (
    ACCELERATE_PREFIXES,
    LAUNCH_VARIABLES,
    Launch,
    numeric_variables,
    prepare_cuda,
    raise_from_nccl,
    remove_accelerate_variables,
)
from customized_grpo.errors import UserError

LAUNCHED = {
    "WORLD_SIZE": "2",
    "RANK": "1",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "10.0.0.1",
    "MASTER_PORT": "29500",
}


def test_a_launcher_says_who_this_process_is() -> None:
    assert Launch.from_environment(dict(LAUNCHED)) == Launch(2, 1, "10.0.0.1:29500")


@pytest.mark.parametrize("world_size", [None, "", "1", " "])
def test_leftovers_of_one_process_are_taken_away(world_size: str | None) -> None:
    environment = {**LAUNCHED, "PMI_SIZE": "1", "HOME": "/root"}
    environment.pop("WORLD_SIZE")
    if world_size is not None:
        environment["WORLD_SIZE"] = world_size
    assert Launch.from_environment(environment) == Launch()
    assert environment == {"HOME": "/root"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"RANK": "", "LOCAL_RANK": ""}, "2 processes train together, but RANK, LOCAL_RANK are not set"),
        ({"LOCAL_RANK": ""}, "but LOCAL_RANK is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two in the environment is neither a number of processes"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 in the environment is neither a number of processes"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE=-1 in the environment is neither a number of processes"),
        ({"MASTER_PORT": "tcp://10.0.0.1:8888"}, "MASTER_PORT=tcp"),
        ({"RANK": "2"}, "RANK=2 in the environment is not below WORLD_SIZE=2"),
        ({"WORLD_SIZE": "", "OMPI_COMM_WORLD_SIZE": "4"}, "OMPI_COMM_WORLD_SIZE=4 in the environment"),
    ],
)
def test_leftovers_of_several_processes_are_one_message(changes: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        Launch.from_environment({**LAUNCHED, **changes})
    assert refused.value.hint is not None


def test_what_accelerate_would_follow_is_removed_and_what_would_matter_is_named() -> None:
    environment = {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_MIXED_PRECISION": "no",  # `accelerate launch` sets it
        "ACCELERATE_DYNAMO_MODE": "default",
        "FSDP_VERSION": "2",
        "HOME": "/root",
    }
    assert remove_accelerate_variables(environment) == [
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4",
        "FSDP_VERSION=2",
    ]
    assert environment == {"HOME": "/root"}


def test_no_variable_of_accelerate_changes_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_DYNAMO_BACKEND": "inductor",
        "ACCELERATE_USE_FSDP": "true",
        "ACCELERATE_TORCH_DEVICE": "meta",
    }.items():
        monkeypatch.setenv(name, value)
    for name in LAUNCH_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    engine = Engine(torch.device("cpu"))
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    engine.backward((parameter * torch.tensor([3.0, 4.0])).sum())
    assert parameter.grad is not None and parameter.grad.tolist() == [3.0, 4.0]
    assert engine.clip_grad_norm([parameter], 10.0) == 5.0
    assert "ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4" in engine.ignored
    assert all(variable.startswith(ACCELERATE_PREFIXES) for variable in engine.ignored)


def test_a_group_that_cannot_be_formed_is_one_message() -> None:
    message = "process 0 of 2 could not join the others at h:1: 1/2 joined"
    with pytest.raises(UserError, match=message) as refused, _joining(Launch(2, 0, "h:1")):
        raise dist.DistStoreError("1/2 joined\nframes of C++")
    assert refused.value.hint is not None and "MASTER_PORT" in refused.value.hint


def test_variables_that_change_numbers_are_read_out() -> None:
    environment = {"NVIDIA_TF32_OVERRIDE": "1", "DIFFUSERS_ATTN_BACKEND": "", "HOME": "/root"}
    assert numeric_variables(environment) == {"NVIDIA_TF32_OVERRIDE": "1"}


@pytest.mark.parametrize(
    ("version", "name"), [("2.13.0+cu130", "PYTORCH_ALLOC_CONF"), ("2.8.1", "PYTORCH_CUDA_ALLOC_CONF")]
)
def test_cuda_is_asked_for_segments_that_grow_and_products_that_repeat(version: str, name: str) -> None:
    environment: dict[str, str] = {}
    prepare_cuda(version, environment)
    assert environment == {name: "expandable_segments:True", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


def test_the_users_own_variables_stay() -> None:
    own = {
        "PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:128",
        "CUBLAS_WORKSPACE_CONFIG": ":16:8",
        "TORCH_NCCL_BLOCKING_WAIT": "0",
    }
    environment = dict(own)
    prepare_cuda("2.13.0", environment)
    raise_from_nccl(environment)
    assert environment == own


@pytest.mark.parametrize(
    ("device", "is_sharded", "waits"), [("cuda", False, "1"), ("cuda", True, None), ("cpu", False, None)]
)
def test_exchanges_between_accelerators_raise_in_python_unless_passes_are_exchanges(
    device: str, is_sharded: bool, waits: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a dead process gives the message of `_contact` and no abort from a thread of NCCL."""
    monkeypatch.delenv("TORCH_NCCL_BLOCKING_WAIT", raising=False)
    for name, value in LAUNCHED.items():
        monkeypatch.setenv(name, value)
    asked: list[str | None] = []

    def joined(**_: object) -> None:
        asked.append(os.environ.get("TORCH_NCCL_BLOCKING_WAIT"))
        raise StopIteration

    monkeypatch.setattr("customized_grpo.engine.engine.Accelerator", joined)
    with pytest.raises(StopIteration):
        Engine(torch.device(device), is_sharded=is_sharded)
    monkeypatch.delenv("TORCH_NCCL_BLOCKING_WAIT", raising=False)
    assert asked == [waits]
