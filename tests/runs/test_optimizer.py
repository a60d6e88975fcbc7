"""The promises of flatten_optimizer and restore_optimizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from customized_grpo.config import load_config
from customized_grpo.errors import UserError
from customized_grpo.runs.checkpoints import CheckpointStore
from customized_grpo.runs.optimizer import flatten_optimizer, restore_optimizer
from customized_grpo.training.optimizers import build_optimizer


def model_and_optimizer(width: int = 5, lr: float = 1e-2) -> tuple[torch.nn.Module, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))
    groups = [
        {"params": [model[2].weight, model[2].bias], "lr": 3e-3, "weight_decay": 0.0},
        {"params": list(model[0].parameters())},
    ]
    return model, torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), weight_decay=1.1e-4)


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()


def test_training_on_after_a_restore_is_bit_identical_to_never_stopping(tmp_path: Path) -> None:
    straight, optimizer = model_and_optimizer()
    train(straight, optimizer, range(10))

    first, optimizer = model_and_optimizer()
    train(first, optimizer, range(4))
    tensors, state = flatten_optimizer(optimizer)
    store = CheckpointStore(tmp_path, 1)
    store.save(4, {"adapter": first.state_dict(), "optimizer": tensors}, {"optimizer": state})

    second, optimizer = model_and_optimizer(lr=0.5)  # the saved learning rate wins
    checkpoint = store.load(4)
    second.load_state_dict(checkpoint.tensors["adapter"])
    restore_optimizer(optimizer, checkpoint.tensors["optimizer"], checkpoint.state["optimizer"])
    train(second, optimizer, range(4, 10))
    for name, tensor in straight.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name


def test_moments_of_8_bits_are_restored_to_the_bit() -> None:
    def fresh() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 2048), torch.nn.Tanh(), torch.nn.Linear(2048, 1))
        train_config = load_config("two-scale", ["train.optimizer=adamw_8bit"]).train
        return model, build_optimizer(train_config, list(model.parameters()))

    straight, optimizer = fresh()
    train(straight, optimizer, range(6))
    first, optimizer = fresh()
    train(first, optimizer, range(3))
    tensors, state = flatten_optimizer(optimizer)
    assert tensors["0.state1"].dtype == torch.uint8 and tensors["1.state1"].dtype == torch.float32
    second, optimizer = fresh()
    second.load_state_dict(first.state_dict())
    restore_optimizer(optimizer, tensors, json.loads(json.dumps(state)))
    train(second, optimizer, range(3, 6))
    for name, tensor in straight.state_dict().items():
        assert torch.equal(second.state_dict()[name], tensor), name


def test_a_restored_optimizer_has_the_same_state_dict_step_and_types_included() -> None:
    model, optimizer = model_and_optimizer()
    train(model, optimizer, range(3))
    tensors, state = flatten_optimizer(optimizer)
    _, fresh = model_and_optimizer(lr=0.5)
    restore_optimizer(fresh, tensors, json.loads(json.dumps(state)))
    old, new = optimizer.state_dict(), fresh.state_dict()
    assert new["param_groups"] == old["param_groups"]
    assert isinstance(new["param_groups"][0]["betas"], tuple)
    assert new["state"].keys() == old["state"].keys()
    for number, values in old["state"].items():
        for name, value in values.items():
            assert torch.equal(new["state"][number][name], value)
            assert new["state"][number][name].dtype == value.dtype
    assert new["state"][0]["step"] == 3


def test_training_on_does_not_write_into_the_checkpoint_tensors() -> None:
    model, optimizer = model_and_optimizer()
    train(model, optimizer, range(2))
    tensors = {name: tensor.clone() for name, tensor in flatten_optimizer(optimizer)[0].items()}
    before = {name: tensor.clone() for name, tensor in tensors.items()}
    restore_optimizer(optimizer, tensors, flatten_optimizer(optimizer)[1])
    train(model, optimizer, range(2, 4))
    assert all(torch.equal(tensors[name], before[name]) for name in before)


def test_an_optimizer_that_never_stepped_round_trips() -> None:
    _, optimizer = model_and_optimizer()
    tensors, state = flatten_optimizer(optimizer)
    assert tensors == {}
    _, fresh = model_and_optimizer()
    restore_optimizer(fresh, tensors, state)
    assert fresh.state_dict()["state"] == {}


def test_another_shape_or_number_of_parameters_is_a_user_error() -> None:
    model, optimizer = model_and_optimizer()
    train(model, optimizer, range(1))
    tensors, state = flatten_optimizer(optimizer)
    _, wider = model_and_optimizer(width=6)
    with pytest.raises(UserError, match=r"group 0, parameter 0: shape \[1, 5\] .* \[1, 6\]"):
        restore_optimizer(wider, tensors, state)
    with pytest.raises(UserError, match="2 groups, this one 1"):
        restore_optimizer(torch.optim.AdamW(model.parameters()), tensors, state)
    fewer = torch.optim.AdamW([{"params": [model[2].weight]}, {"params": list(model[0].parameters())}])
    with pytest.raises(UserError, match="group 0: the checkpoint has 2 parameters, the model 1"):
        restore_optimizer(fewer, tensors, state)


def test_what_cannot_be_saved_exactly_is_refused() -> None:
    model, _ = model_and_optimizer()
    with pytest.raises(ValueError, match="'lr'"):
        flatten_optimizer(torch.optim.AdamW(model.parameters(), lr=torch.tensor(1e-3)))
