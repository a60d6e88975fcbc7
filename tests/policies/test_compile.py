"""Compiled blocks on the CPU, by the real compiler; a minute of g++, unless torch still has its results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo import extensions
from customized_grpo.policies.flux1 import Flux1Policy
from customized_grpo.policies.policy import Policy
from customized_grpo.rollout.sampler import Sampler
from customized_grpo.training.graph_memory import GraphSize

pytestmark = pytest.mark.slow

MakePolicy = Callable[..., Flux1Policy]
Velocities = Callable[[Policy], Tensor]


def small_policy(make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch) -> Flux1Policy:
    """A trained bf16 policy of one block: compiling costs the more, the more kinds of blocks there are."""
    from customized_grpo.toybox import models

    monkeypatch.setattr(models, "DOUBLE_BLOCKS", 1)
    monkeypatch.setattr(models, "SINGLE_BLOCKS", 0)
    policy = make_policy(rank=2, precision="bf16")
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))
    return policy


def outcomes(policy: Flux1Policy, velocities: Velocities) -> tuple[list[Tensor], Tensor]:
    """Return velocities of (rollout, training, base, rollout again) and the gradients in one row."""
    with torch.no_grad():
        rollout = velocities(policy)
    training = velocities(policy)
    training.square().mean().backward()
    row = gradients(policy)
    with torch.no_grad():
        with policy.reference():
            base = velocities(policy)
        again = velocities(policy)
    assert not rollout.requires_grad and not base.requires_grad
    return [rollout, training.detach(), base, again], row


def gradients(policy: Flux1Policy) -> Tensor:
    """Return the gradients of all parameters in one row."""
    row = []
    for parameter in policy.trainable_parameters():
        # without further blocks the answer does not depend on the last layer of the text: None, or zero
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        row.append(grad.flatten())
    return torch.cat(row)


def graph_size(policy: Flux1Policy) -> GraphSize:
    """Return what a run's decision about kept graphs would measure."""
    image = torch.zeros(3, 64, 64)
    conditioning = policy.encode(["a fox"], [[image]], 64, 64)
    sampler = Sampler(extensions.load("sampler", "dance"), 0.7, torch.tensor([1.0, 0.5, 0.0]))
    return GraphSize.measure(policy, sampler, conditioning)


def check_kept_graphs(policy: Flux1Policy, velocities: Velocities, grads: Tensor, expected: int) -> None:
    """Hold a graph that waited while another pass ran to the gradients of one that went back at once."""
    kept = velocities(policy)
    velocities(policy)
    # A run counts with `expected`. Here compiled blocks keep more: the text's half of this last block too,
    # and base weights as bf16, which this small model has in fp32.
    assert expected / 2 < saved_bytes(kept, policy) < 2 * expected
    for parameter in policy.trainable_parameters():
        parameter.grad = None
    kept.square().mean().backward()
    assert torch.equal(gradients(policy), grads)


def saved_bytes(output: Tensor, policy: Policy) -> int:
    """Return the bytes of the tensors that a graph keeps, those of the model not counted."""
    known = {parameter.data_ptr() for parameter in policy.transformer.parameters()}
    saved: dict[int, int] = {}
    nodes = [output.grad_fn]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        nodes += [following for following, _ in node.next_functions]
        for tensor in _saved(node):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                saved[storage.data_ptr()] = storage.nbytes()
    return sum(saved.values())


def _saved(node: Any) -> list[Tensor]:
    """Return the tensors that one node of a graph keeps for its backward pass."""
    kept = list(getattr(node, "saved_tensors", ()))  # of a compiled block
    for name in dir(node):
        if name.startswith("_saved_"):
            value = getattr(node, name)
            kept += value if isinstance(value, tuple | list) else [value]
    return [tensor for tensor in kept if isinstance(tensor, Tensor)]


def test_compiled_blocks_are_the_same_in_both_phases_and_close_to_eager_ones(
    make_policy: MakePolicy, velocities: Velocities, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager, eager_grads = outcomes(small_policy(make_policy, monkeypatch), velocities)
    policy = small_policy(make_policy, monkeypatch)
    policy.compile_blocks()
    size = graph_size(policy)  # measured first, as a run does: torch must still compile afterwards
    compiled, grads = outcomes(policy, velocities)
    rollout, training, base, again = compiled
    assert torch.equal(rollout, training)
    assert torch.equal(rollout, again)  # nothing stale from when the adapter was off
    assert not torch.equal(rollout, base)
    for ours, theirs in zip(compiled, eager, strict=True):
        assert (ours - theirs).norm() < 0.01 * theirs.norm()
    assert not torch.equal(training, eager[1])  # they were compiled
    assert (rollout - base).norm() > 3 * (base - eager[2]).norm()
    assert (grads - eager_grads).norm() < 0.05 * eager_grads.norm()
    check_kept_graphs(policy, velocities, grads, size.fixed + 2 * size.per_sample)


def test_the_recipe_compiles_every_block_and_only_when_asked(
    load_family: Callable[..., Policy],
) -> None:
    for wanted in (True, False):
        transformer = load_family("flux1", compile=wanted).transformer
        blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        assert {block._compiled_call_impl is not None for block in blocks} == {wanted}
