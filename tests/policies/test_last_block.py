"""FLUX.1's last block, computed for the image's tokens alone, beside the whole one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.errors import UserError
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.policies.flux1 import Flux1Policy
from customized_grpo.policies.policy import Policy
from customized_grpo.toybox import models

MakePolicy = Callable[..., Flux1Policy]
MakeImage = Callable[..., Tensor]
Velocities = Callable[[Policy], Tensor]

ROUNDING = {"fp32": 1e-6, "bf16": 0.01}
"""Largest relative difference of gradients; three to eight times what is measured here."""
TEXT, IMAGE, REFERENCE = 24, 16, 16  # tokens


def train(policy: Policy) -> None:
    """Stand in for training: give every B some weight."""
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=noise))


def gradient(policy: Policy) -> Tensor:
    rows = []
    for parameter in policy.trainable_parameters():
        assert parameter.grad is not None
        rows.append(parameter.grad.flatten())
    return torch.cat(rows)


def encoded(policy: Policy, images: Sequence[Tensor], batch: int, size: int = 64) -> Conditioning:
    return policy.encode(["a fox"], [list(images)], size, size).repeat_interleave(batch)


def noise(policy: Policy, batch: int, size: int = 64) -> Tensor:
    return policy.noise([torch.Generator().manual_seed(seed) for seed in range(batch)], size, size)


def outcome(policy: Policy, conditioning: Conditioning, batch: int) -> tuple[Tensor, Tensor]:
    """Return velocities, the same with and without gradients, and the gradient of their squares."""
    x = noise(policy, batch)
    with torch.no_grad():
        rollout = policy.velocity(x, 0.6, conditioning)
    velocity = policy.velocity(x, 0.6, conditioning)
    velocity.square().mean().backward()
    assert torch.equal(rollout, velocity.detach())
    return rollout, gradient(policy)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("references", "batch"), [(1, 12), (1, 1), (0, 4), (2, 4)])
def test_velocities_are_those_of_the_whole_block_and_gradients_too_but_for_rounding(
    make_policy: MakePolicy, make_image: MakeImage, precision: str, references: int, batch: int
) -> None:
    images = [make_image(seed) for seed in range(references)]
    outcomes = []
    for tokens in ("whole", "image"):
        policy = make_policy(rank=4, precision=precision, last_block=tokens)
        train(policy)
        outcomes.append(outcome(policy, encoded(policy, images, batch), batch))
    (whole, whole_gradient), (cut, cut_gradient) = outcomes
    assert torch.equal(whole, cut)
    assert (whole_gradient - cut_gradient).norm() < ROUNDING[precision] * whole_gradient.norm()


def test_only_keys_values_and_their_norm_see_text_and_references(
    make_policy: MakePolicy, make_image: MakeImage
) -> None:
    policy = make_policy(last_block="image")
    block = policy.transformer.single_transformer_blocks[-1]
    layers = {
        "query": block.attn.to_q, "key": block.attn.to_k, "value": block.attn.to_v, "mlp": block.proj_mlp,
        "out": block.proj_out, "last layer": policy.transformer.proj_out,
        "block before": policy.transformer.single_transformer_blocks[-2].proj_out,
    }  # fmt: skip
    tokens: dict[str, int] = {}

    def count(name: str) -> Callable[..., None]:
        def hook(_: Any, args: tuple[Tensor, ...]) -> None:
            tokens[name] = args[0].shape[1]

        return hook

    for name, layer in layers.items():
        layer.register_forward_pre_hook(count(name))
    with torch.no_grad():
        policy.velocity(noise(policy, 1), 0.6, encoded(policy, [make_image(1)], 1))
    everything = TEXT + IMAGE + REFERENCE
    kept = dict.fromkeys(("query", "mlp", "out", "last layer"), IMAGE)
    assert tokens == kept | dict.fromkeys(("key", "value", "block before"), everything)


def test_the_transformer_itself_still_answers_for_every_token(
    make_policy: MakePolicy, make_image: MakeImage
) -> None:
    policy = make_policy(last_block="image")
    inputs = {}
    policy.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: inputs.update(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        v = policy.velocity(noise(policy, 1), 0.6, encoded(policy, [make_image(1)], 1))
        everything = policy.transformer(**inputs)[0]
    assert everything.shape[1] == IMAGE + REFERENCE
    assert torch.equal(everything[:, :IMAGE], v)


def test_under_checkpointing_graphs_of_several_sizes_wait_for_their_backward_pass(
    make_policy: MakePolicy, make_image: MakeImage
) -> None:
    gradients = []
    for checkpointing in (False, True):
        policy = make_policy(rank=4, last_block="image")
        train(policy)
        policy.set_gradient_checkpointing(checkpointing)
        losses = []
        for size in (64, 32):
            conditioning = encoded(policy, [make_image(1)], 2, size)
            losses.append(policy.velocity(noise(policy, 2, size), 0.6, conditioning).square().mean())
        for loss in losses:
            loss.backward()
        gradients.append(gradient(policy))
    assert torch.equal(*gradients)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_base_gives_the_velocities_of_its_whole_block(
    load_family: Callable[..., Policy], velocities: Velocities, kind: str
) -> None:
    found = []
    for tokens in ("whole", "image"):
        policy = load_family("flux1", quantisation=kind, options={"last_block": tokens})
        train(policy)
        found.append(velocities(policy).detach())
    assert torch.equal(*found)


@pytest.mark.slow
def test_a_compiled_block_keeps_the_same_tokens_in_both_phases(
    make_policy: MakePolicy, velocities: Velocities, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "DOUBLE_BLOCKS", 1)
    monkeypatch.setattr(models, "SINGLE_BLOCKS", 1)
    policy = make_policy(rank=2, precision="bf16", last_block="image")
    train(policy)
    eager = velocities(policy).detach()
    policy.compile_blocks()
    training = velocities(policy).detach()
    with torch.no_grad():
        rollout = velocities(policy)
    assert torch.equal(rollout, training)
    assert 0 < (training - eager).norm() < 0.01 * eager.norm()  # compiled, and the same


def test_a_checkpoint_without_single_stream_blocks_is_refused(
    make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "SINGLE_BLOCKS", 0)
    with pytest.raises(UserError, match="no single-stream blocks"):
        make_policy(last_block="image")
