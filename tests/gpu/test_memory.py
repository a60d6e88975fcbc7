"""What saves memory saves it on the device, too little is told, and the plan knows how much it takes."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gpu_case
from customized_grpo.config import load_config
from customized_grpo.config.schema import ModelConfig
from customized_grpo.errors import UserError
from customized_grpo.policies.architecture import Part
from customized_grpo.policies.checkpoints import CHECKPOINTS
from customized_grpo.policies.out_of_memory import explained
from customized_grpo.policies.policy import Policy
from customized_grpo.policies.quantisation import Quantisation, QuantisedLinear

pytestmark = pytest.mark.gpu

Load = Callable[..., Policy]
KINDS: tuple[Quantisation, ...] = ("nf4", "int8", "fp8")
LARGEST_SHARE = {"nf4": 0.27, "int8": 0.51, "fp8": 0.51}
"""Of the bytes of a bf16 layer."""
LARGEST_GRADIENT_ERROR = {"nf4": 0.35, "int8": 0.06, "fp8": 0.15}
"""Of the adapter's gradient, relative to that on the unquantised base; half of it is seen on the CPU, and
.5 or more when nothing flows through the quantised layers."""
PLAN_TOLERANCE = 0.15


def gradient(policy: Policy) -> Tensor:
    """Return the adapter's gradient in one row."""
    # in models of so few blocks some layers of the text have no influence, and no gradient
    grads = [p.grad.flatten() for p in policy.trainable_parameters() if p.grad is not None]
    return torch.cat(grads)


def allocated() -> int:
    """Return the bytes on the device that are in use."""
    gc.collect()
    torch.cuda.synchronize()
    return torch.cuda.memory_allocated()


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_base_lets_gradients_through_and_comes_back(
    load: Load, family: str, images: list[Tensor], kind: str
) -> None:
    policy = load(family, quantisation=kind, precision="bf16")
    conditioning = policy.encode(["a fox"], [[images[0]]], 64, 64)
    x = policy.noise([torch.Generator().manual_seed(0)], 64, 64)
    with torch.no_grad():
        rollout = policy.velocity(x, 0.6, conditioning)
        with policy.reference():
            base = policy.velocity(x, 0.6, conditioning)
    training = policy.velocity(x, 0.6, conditioning)
    training.square().mean().backward()
    assert torch.equal(training.detach(), rollout) and not torch.equal(rollout, base)

    plain = load(family, precision="bf16")
    plain.velocity(x, 0.6, conditioning).square().mean().backward()
    ours, theirs = gradient(policy), gradient(plain)
    assert float((ours - theirs).norm() / theirs.norm()) < LARGEST_GRADIENT_ERROR[kind]

    nothing = {name: torch.zeros_like(tensor) for name, tensor in policy.adapter_tensors().items()}
    policy.load_adapter_tensors(nothing)
    with torch.no_grad():
        assert torch.equal(policy.velocity(x, 0.6, conditioning), base)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_layer_is_smaller_on_the_device(cuda: torch.device, kind: Quantisation) -> None:
    plain = nn.Linear(3072, 12288, dtype=torch.bfloat16, device=cuda)
    plain(torch.zeros(16, 3072, dtype=torch.bfloat16, device=cuda))  # cuBLAS takes its workspace, 32 MiB
    before = allocated()
    layer = QuantisedLinear(plain, kind, cuda)
    held = allocated() - before
    assert 0 < held < LARGEST_SHARE[kind] * plain.weight.nbytes
    x = torch.randn(16, 3072, dtype=torch.bfloat16, device=cuda)
    layer(x)
    assert allocated() - before - x.nbytes == pytest.approx(held, abs=2**20)  # nothing dequantised stays


@pytest.mark.parametrize("text_encoders", ["offload", "drop"])
def test_parts_that_wait_take_no_memory_of_the_device(
    load: Load, cuda: torch.device, family: str, images: list[Tensor], text_encoders: str
) -> None:
    def held(**settings: Any) -> tuple[Policy, int]:
        before = allocated()
        policy = load(family, **settings)
        return policy, allocated() - before

    kept, everything = held()
    parts = {name: one for name, one in kept.pipe.components.items() if isinstance(one, nn.Module)}
    waiting = [one for name, one in parts.items() if name.startswith("text_encoder") or name == "vae"]
    expected = sum(parameter.nbytes for one in waiting for parameter in one.parameters())
    policy, rest = held(text_encoders=text_encoders, offload_vae=True)
    assert everything - rest >= 0.95 * expected > 0

    before = allocated()
    conditioning = policy.encode(["a fox"], [[images[0]]], 64, 64)
    given = [*conditioning.per_sample.values(), *conditioning.shared.values()]
    assert allocated() - before <= sum(tensor.nbytes for tensor in given) + 2**20  # they have gone back
    if text_encoders == "drop":
        policy.drop_text_encoders()
    x = policy.noise([torch.Generator().manual_seed(0)], 64, 64)
    with torch.no_grad():
        v = policy.velocity(x, 0.6, conditioning.to(policy.device))
        image = policy.decode(x, 64, 64)
        again = kept.velocity(x, 0.6, conditioning)
    assert torch.equal(v, again) and bool(image.isfinite().all())


def test_too_little_memory_is_told_in_numbers_with_the_settings_that_need_less(cuda: torch.device) -> None:
    batches = {"train.micro_batch_size": 12}
    with pytest.raises(UserError) as caught, explained(ModelConfig(path="toybox"), batches):
        torch.empty(2**40, dtype=torch.uint8, device=cuda)
    assert "1024.00 GiB more were needed" in caught.value.message
    assert "of the device's" in caught.value.message and "are free" in caught.value.message
    assert "train.micro_batch_size=6" in str(caught.value.hint)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_the_plan_knows_the_peaks_of_a_middling_transformer(
    cuda: torch.device, monkeypatch: pytest.MonkeyPatch, checkpointing: str
) -> None:
    published = CHECKPOINTS["black-forest-labs/FLUX.1-Kontext-dev"]
    architecture = published.architecture
    part = architecture.transformer
    shallow = Part(part.library, part.name, {**part.config, "num_layers": 2, "num_single_layers": 2})
    architecture = dataclasses.replace(architecture, transformer=shallow)
    shallow_checkpoint = dataclasses.replace(published, architecture=architecture)
    monkeypatch.setitem(CHECKPOINTS, "four-blocks", shallow_checkpoint)
    settings = ["model.path=four-blocks", f"model.gradient_checkpointing={checkpointing}"]
    config = load_config(
        "flux1-kontext", [*gpu_case.SHORTENED, gpu_case.WITHOUT_ENCODERS, *settings, "model.device=cuda"]
    )
    before = allocated()
    peaks = gpu_case.measure(config, cuda)["peaks"]
    for phase in ("rollout", "decode", "update"):
        measured = peaks[phase]["measured"] - before
        assert measured == pytest.approx(peaks[phase]["planned"], rel=PLAN_TOLERANCE), (phase, peaks)
