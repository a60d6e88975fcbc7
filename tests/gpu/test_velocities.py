"""The same numbers on the GPU as on the CPU, and in rollouts as in training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from customized_grpo.algorithms import samplers
from customized_grpo.algorithms.samplers import SAMPLERS
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.policies.policy import Policy
from customized_grpo.rollout.sampler import Sampler
from customized_grpo.training.updater import RATIO_TOLERANCE

pytestmark = pytest.mark.gpu

Load = Callable[..., Policy]
CPU = torch.device("cpu")
PROMPTS = ["a fox", "a bird"]
GROUP = 4


def noise(policy: Policy, n: int, first: int = 0) -> Tensor:
    return policy.noise([torch.Generator().manual_seed(first + i) for i in range(n)], 64, 64)


def encoded(policy: Policy, images: list[Tensor]) -> Conditioning:
    return policy.encode(PROMPTS, [[image] for image in images], 64, 64)


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Return |ours - theirs| relative to |theirs|."""
    ours, theirs = ours.detach().cpu(), theirs.detach().cpu()
    return float((ours - theirs).norm() / theirs.norm())


def velocity_and_gradient(policy: Policy, conditioning: Conditioning) -> tuple[Tensor, Tensor]:
    v = policy.velocity(noise(policy, 2), 0.6, conditioning.to(policy.device))
    v.square().mean().backward()
    grads = [p.grad for p in policy.trainable_parameters() if p.grad is not None]
    return v.detach(), torch.cat([grad.flatten() for grad in grads])


def test_velocities_and_gradients_are_those_of_the_cpu(load: Load, family: str, images: list[Tensor]) -> None:
    theirs = load(family, CPU)
    conditioning = encoded(theirs, images)
    v, gradient = velocity_and_gradient(theirs, conditioning)
    our_v, our_gradient = velocity_and_gradient(load(family), conditioning)
    assert distance(our_v, v) < 1e-4
    assert distance(our_gradient, gradient) < 1e-3


def test_encodings_and_images_are_those_of_the_cpu(
    load: Load, family: str, images: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # torch's default: 10 bits in convolutions
    theirs, ours = load(family, CPU), load(family)
    wanted, found = encoded(theirs, images), encoded(ours, images)
    assert found.per_sample.keys() == wanted.per_sample.keys()
    for name, tensor in found.per_sample.items():
        assert tensor.device.type == ours.device.type
        assert distance(tensor.float(), wanted.per_sample[name].float()) < 1e-3, name
    clean = noise(theirs, 2)
    image = ours.decode(clean.to(ours.device), 64, 64)
    assert float((image.cpu() - theirs.decode(clean, 64, 64)).abs().max()) < 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_first_ratio_is_1_exactly_in_equal_batches_and_nearly_in_others(
    load: Load, family: str, images: list[Tensor], precision: str
) -> None:
    policy = load(family, precision=precision)
    group = encoded(policy, images).index([0]).repeat_interleave(GROUP)
    sampler = Sampler(SAMPLERS["dance"], 0.4, policy.sigmas(4, policy.n_tokens(64, 64)))
    x = noise(policy, GROUP)
    with torch.no_grad():
        mean, std = sampler.transition(policy, x, 1, group)
        x_next = mean + std * noise(policy, GROUP, first=GROUP)
        old = samplers.log_prob(x_next, mean, std)

    mean, std = sampler.transition(policy, x, 1, group)
    new = samplers.log_prob(x_next, mean, std)
    assert new.requires_grad and torch.equal(new.detach(), old)

    for row in range(GROUP):
        alone = slice(row, row + 1)
        mean, std = sampler.transition(policy, x[alone], 1, group.index(alone))
        ratio = (samplers.log_prob(x_next[alone], mean, std).detach() - old[alone]).exp()
        assert abs(float(ratio) - 1) <= RATIO_TOLERANCE[precision]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_blocks_forget_nothing_when_the_adapter_is_switched_off_and_on(
    load: Load, cuda: torch.device, images: list[Tensor], precision: str
) -> None:
    eager = load("flux1", precision=precision)
    conditioning = encoded(eager, images)
    x = noise(eager, 2)

    def answers(policy: Policy) -> list[Tensor]:
        """Return velocities of (rollout, training, base, rollout again)."""
        with torch.no_grad():
            rollout = policy.velocity(x, 0.6, conditioning)
        training = policy.velocity(x, 0.6, conditioning).detach()
        with torch.no_grad():
            with policy.reference():
                base = policy.velocity(x, 0.6, conditioning)
            return [rollout, training, base, policy.velocity(x, 0.6, conditioning)]

    compiled = answers(load("flux1", precision=precision, compile=True))
    rollout, training, base, again = compiled
    assert torch.equal(rollout, training) and torch.equal(rollout, again)
    assert not torch.equal(rollout, base)
    for ours, theirs in zip(compiled, answers(eager), strict=True):
        assert distance(ours, theirs) < (1e-4 if precision == "fp32" else 0.02)
