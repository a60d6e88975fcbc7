"""A family of one's own that computes something else than it promises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.config import load_config
from customized_grpo.errors import UserError
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.policies.loading import load_policy
from customized_grpo.policies.policy import Policy
from customized_grpo.policies.two_scale import TwoScalePolicy
from customized_grpo.two_scale.source import rows


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(load_config("two-scale").model, seed=0)


@pytest.fixture(scope="module")
def conditioning(policy: Policy) -> Conditioning:
    examples = rows(held_out=True)[:2]
    return policy.encode([e.prompt for e in examples], [e.references for e in examples], 16, 16)


def noise(policy: Policy) -> Tensor:
    return policy.noise([torch.Generator().manual_seed(seed) for seed in range(2)], 16, 16)


def doubled_in_place(v: Tensor, x: Tensor) -> Tensor:
    x.mul_(2)
    return v


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda v, x: v[:, :-1],
            r"_velocity must return float32 \[2, 4, \d+\], returned float32 \[2, 3, \d+\]",
        ),
        (lambda v, x: v.bfloat16(), r"_velocity must return float32 .* returned bfloat16"),
        (lambda v, x: None, "returned NoneType"),
        (doubled_in_place, "_velocity changes x, the noisy tokens, in place"),
    ],
)
def test_a_velocity_that_is_none_is_refused(
    policy: Policy,
    conditioning: Conditioning,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Tensor, Tensor], Any],
    message: str,
) -> None:
    right = TwoScalePolicy._velocity

    def velocity(self: TwoScalePolicy, x: Tensor, level: Tensor, given: Conditioning) -> Any:
        return change(right(self, x, level, given), x)

    monkeypatch.setattr(TwoScalePolicy, "_velocity", velocity)
    with pytest.raises(UserError, match=f"TwoScalePolicy.*{message}"), torch.no_grad():
        policy.velocity(noise(policy), 0.5, conditioning)


def test_images_of_another_size_are_refused(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    right = TwoScalePolicy._decode_latents
    monkeypatch.setattr(
        TwoScalePolicy, "_decode_latents", lambda self, latents: right(self, latents)[..., :-1]
    )
    message = r"TwoScalePolicy must decode float32 \[2, 3, 16, 16\], decoded float32 \[2, 3, 16, 15\]"
    with pytest.raises(UserError, match=message):
        policy.decode(noise(policy), 16, 16)
