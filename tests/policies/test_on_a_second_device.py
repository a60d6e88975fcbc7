"""Every family on an accelerator: nothing mixes devices, numbers are those of the CPU, and nothing waits.

The device is that of tests/helpers/second_device.py; what only a real one can tell is in tests/gpu.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from customized_grpo.data.examples import Example
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.policies.conditioning_cache import ConditioningCache
from customized_grpo.policies.policy import Policy
from customized_grpo.rollout.encoding import PromptEncoder
from second_device import DEVICE, SecondDevice, second_device

pytestmark = pytest.mark.slow

PLACES: dict[str, dict[str, Any]] = {
    "flux1": {"text_encoders": "offload", "offload_vae": True, "gradient_checkpointing": True},
    "flux2": {"quantisation": "nf4", "precision": "bf16"},
    "qwen_edit": {"text_encoders": "offload", "quantisation": "int8"},
    "flux3": {"text_encoders": "offload", "offload_vae": True},
    "qwen_image21": {"text_encoders": "offload", "quantisation": "int8"},
}
"""Settings that move parts or weights, a few for each family."""

WAITS_INSIDE = {"qwen_image21"}
"""Families whose transformer selects by masks in diffusers' own code, which waits in every call."""


def encode(policy: Policy, images: list[Tensor], cache: Path) -> Conditioning:
    """Encode two prompts, the second one from a cache that was half full before."""
    examples = [
        Example(str(number), prompt, (image,), None, None, "one")
        for number, (prompt, image) in enumerate(zip(["a fox", "a bird"], images, strict=True))
    ]
    encoder = PromptEncoder(policy, (64, 64), ConditioningCache(cache, "rehearsal"))
    encoder(examples[1:])
    return Conditioning.cat(encoder(examples))


def walk(policy: Policy, images: list[Tensor], cache: Path) -> list[Tensor]:
    """Return, on the CPU, what a policy computes in all its phases: velocity, gradient, image, adapter."""
    conditioning = encode(policy, images, cache)
    x = policy.noise([torch.Generator().manual_seed(seed) for seed in (1, 2)], 64, 64)
    assert x.device.type == policy.device.type
    with torch.no_grad(), policy.reference():
        base = policy.velocity(x, 0.6, conditioning)
    v = policy.velocity(x, 0.6, conditioning)
    v.square().mean().backward()
    grads = [p.grad.flatten() for p in policy.trainable_parameters() if p.grad is not None]
    image = policy.decode(x - 0.6 * v.detach(), 64, 64)
    file = policy.save_lora(cache)
    policy.load_lora(file)
    adapter = [tensor.flatten() for tensor in policy.adapter_tensors().values()]
    return [one.detach().cpu() for one in (base, v, torch.cat(grads), image, torch.cat(adapter))]


def waits_of_a_velocity(second: SecondDevice, policy: Policy, conditioning: Conditioning) -> dict[str, int]:
    """Return where a velocity waits for the device, the first one of a conditioning apart."""
    x = policy.noise([torch.Generator().manual_seed(seed) for seed in (1, 2)], 64, 64)
    level = torch.full((2,), 0.6).to(DEVICE)
    with torch.no_grad():
        policy.velocity(x, level, conditioning)
        second.traffic.clear()
        policy.velocity(x, level, conditioning)
    return dict(second.traffic.waits)


def stir(policy: Policy) -> Policy:
    """Give an adapter values with which it changes what the base does."""
    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            drawn = torch.randn(parameter.shape, generator=noise)
            parameter.add_(0.05 * drawn.to(parameter.device))
    return policy


def test_a_family_computes_on_the_device_what_it_computes_on_the_cpu(
    family: str, load_family: Callable[..., Policy], make_image: Callable[..., Tensor], tmp_path: Path
) -> None:
    images = [make_image(1), make_image(2)]
    # the first load is outside: transformers leaves buffers empty in classes that it first loads under a mode
    expected = walk(stir(load_family(family, **PLACES[family])), images, tmp_path / "here")
    with second_device() as second:
        policy = stir(load_family(family, **PLACES[family], device="cuda"))
        assert all(parameter.is_cuda for parameter in policy.transformer.parameters())
        found = walk(policy, images, tmp_path / "there")
        waits = waits_of_a_velocity(second, policy, encode(policy, images, tmp_path / "there"))
    for ours, theirs in zip(found, expected, strict=True):
        # sums are split otherwise under the mode; in bf16 that is a step of its numbers
        assert torch.allclose(ours, theirs, rtol=2e-2, atol=2e-2 * float(theirs.abs().max()))
    assert family in WAITS_INSIDE or waits == {}, "a velocity must not wait for the device"


@pytest.mark.parametrize("quantisation", [None, "nf4"])
def test_a_turn_of_the_text_encoders_copies_no_frozen_weight_back(
    load_family: Callable[..., Policy], quantisation: str | None
) -> None:
    load_family("flux1")  # outside the mode first, see above
    with second_device() as second:
        policy = stir(load_family("flux1", device="cuda", text_encoders="offload", quantisation=quantisation))
        before = {name: tensor.detach().cpu() for name, tensor in policy.transformer.state_dict().items()}
        with policy.encoding():  # the base, which was loaded onto the device, is copied here once
            pass
        second.traffic.clear()
        with policy.encoding():
            frozen = [one for one in policy.transformer.parameters() if not one.requires_grad]
            assert not any(one.is_cuda for one in frozen)
            assert all(one.is_cuda for one in policy.pipe.text_encoder_2.parameters())
        back = second.traffic.to_cpu.total()
        n_adapter = len(policy.trainable_parameters())
        # nf4 keeps its scales in objects of its own, five small tensors a layer
        n_scales = 0 if quantisation is None else 5 * sum(one.dtype == torch.uint8 for one in frozen)
        assert back == n_adapter + n_scales
        assert all(one.is_cuda for one in policy.transformer.parameters())
        after = {name: tensor.detach().cpu() for name, tensor in policy.transformer.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_what_is_encoded_ahead_waits_on_the_cpu(
    load_family: Callable[..., Policy], make_image: Callable[..., Tensor]
) -> None:
    load_family("flux1")
    example = Example("1", "a fox", (make_image(1),), None, None, "one")
    with second_device():
        policy = load_family("flux1", device="cuda")
        encoder = PromptEncoder(policy, (64, 64))
        for encode_it, is_there in ((encoder, True), (encoder.ahead, False)):
            (encoded,) = encode_it([example])
            tensors = [*encoded.per_sample.values(), *encoded.shared.values()]
            assert {tensor.is_cuda for tensor in tensors} == {is_there}


def test_a_frozen_weight_that_was_changed_on_the_device_keeps_its_value(
    load_family: Callable[..., Policy],
) -> None:
    load_family("flux1")
    with second_device():
        policy = load_family("flux1", device="cuda", text_encoders="offload")
        with policy.encoding():
            pass
        weight = policy.transformer.x_embedder.weight
        with torch.no_grad():
            weight.fill_(0.25)
        with policy.encoding():
            assert not weight.is_cuda and bool((weight == 0.25).all())
        assert weight.is_cuda and bool((weight.cpu() == 0.25).all())
