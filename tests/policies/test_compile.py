"""Compiled blocks on the CPU, by the real compiler; a minute of g++, unless torch still has its results."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from customized_grpo.policies.flux1 import Flux1Policy
from customized_grpo.policies.policy import Policy

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
    # without further blocks the answer does not depend on the last layer of the text: None, or zero
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in policy.trainable_parameters()]
    with torch.no_grad():
        with policy.reference():
            base = velocities(policy)
        again = velocities(policy)
    row = torch.cat([grad.flatten() for grad in grads])
    assert not rollout.requires_grad and not base.requires_grad
    return [rollout, training.detach(), base, again], row


def test_compiled_blocks_are_the_same_in_both_phases_and_close_to_eager_ones(
    make_policy: MakePolicy, velocities: Velocities, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager, eager_grads = outcomes(small_policy(make_policy, monkeypatch), velocities)
    policy = small_policy(make_policy, monkeypatch)
    policy.compile_blocks()
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


def test_the_recipe_compiles_every_block_and_only_when_asked(
    load_family: Callable[..., Policy],
) -> None:
    for wanted in (True, False):
        transformer = load_family("flux1", compile=wanted).transformer
        blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
        assert {block._compiled_call_impl is not None for block in blocks} == {wanted}
