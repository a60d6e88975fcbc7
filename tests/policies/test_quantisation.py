"""Quantised bases of every family, from a folder as a recipe names it."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import linear

from customized_grpo.cli.main import main
from customized_grpo.config.schema import ModelConfig
from customized_grpo.errors import UserError
from customized_grpo.policies.loading import load_policy
from customized_grpo.policies.policy import Policy
from customized_grpo.policies.quantisation import Quantisation, QuantisedLinear, quantise_layers

pytestmark = pytest.mark.slow  # all of them together

CPU = torch.device("cpu")
KINDS: tuple[Quantisation, ...] = ("int8", "fp8", "nf4")
LARGEST_ERROR = {"int8": 0.01, "fp8": 0.05, "nf4": 0.2}
"""Of a velocity, relative to that of the unquantised base; two to five times what is measured here."""
Load = Callable[..., Policy]
Call = Callable[[Policy], Tensor]


def train(policy: Policy) -> None:
    """Stand in for training: give every B some weight."""
    noise = torch.Generator().manual_seed(3)
    tensors = policy.adapter_tensors()
    for name, tensor in tensors.items():
        if ".lora_B." in name:
            tensors[name] = 0.05 * torch.randn(tensor.shape, generator=noise)
    policy.load_adapter_tensors(tensors)


def gradients(policy: Policy, velocities: Call) -> tuple[Tensor, list[Tensor]]:
    for parameter in policy.trainable_parameters():
        parameter.grad = None
    v = velocities(policy)
    v.square().mean().backward()
    found = [parameter.grad for parameter in policy.trainable_parameters()]
    assert all(grad is not None for grad in found)
    return v.detach(), [grad for grad in found if grad is not None]


@torch.no_grad()
def test_velocities_are_close_to_the_bases_the_more_so_the_more_bits(
    load_family: Load, velocities: Call, family: str
) -> None:
    base = velocities(load_family(family))
    errors = {}
    for kind in KINDS:
        errors[kind] = float((velocities(load_family(family, quantisation=kind)) - base).norm() / base.norm())
        assert 1e-5 < errors[kind] < LARGEST_ERROR[kind], errors
    assert errors["int8"] < errors["fp8"] < errors["nf4"], errors


# Under autocast the form of the weights makes no difference; its products are tested for all kinds below.
@pytest.mark.parametrize(
    ("kind", "precision"), [("int8", "fp32"), ("fp8", "fp32"), ("nf4", "fp32"), ("nf4", "bf16")]
)
def test_rollout_training_and_reference_agree_bit_for_bit(
    load_family: Load, velocities: Call, family: str, kind: str, precision: str
) -> None:
    policy = load_family(family, quantisation=kind, precision=precision)
    with torch.no_grad():
        base = velocities(policy)  # a fresh adapter changes nothing
        train(policy)
        rollout = velocities(policy)
        with policy.reference():
            assert torch.equal(velocities(policy), base)
    assert not torch.equal(rollout, base)
    training, grads = gradients(policy, velocities)
    assert torch.equal(training, rollout)
    assert {p.dtype for p in policy.trainable_parameters()} == {torch.float32}
    assert all(bool(grad.isfinite().all()) and bool((grad != 0).any()) for grad in grads)

    policy.set_gradient_checkpointing(True)
    recomputed, again = gradients(policy, velocities)
    assert torch.equal(recomputed, rollout)
    assert all(torch.equal(a, b) for a, b in zip(again, grads, strict=True))


def held_bytes(layer: QuantisedLinear) -> int:
    """Count the bytes of everything that the held weight consists of."""
    weight: Any = layer.weight
    parts = [weight.data]
    if layer.scale is None:  # nf4; besides there are code tables of 1 KiB, whatever the size of the layer
        parts += [weight.quant_state.absmax, weight.quant_state.state2.absmax]
    else:
        parts.append(layer.scale)
    return sum(part.numel() * part.element_size() for part in parts)


@pytest.mark.parametrize(("kind", "bits"), [("nf4", 4.13), ("int8", 8.04), ("fp8", 8.04)])
def test_the_held_weight_is_as_small_as_promised(kind: Quantisation, bits: float) -> None:
    layer = QuantisedLinear(nn.Linear(768, 512), kind, CPU)
    assert 8 * held_bytes(layer) / (768 * 512) == pytest.approx(bits, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_an_odd_layer_can_be_held_too(kind: Quantisation) -> None:
    plain = nn.Linear(19, 7)
    x = torch.randn(5, 19, generator=torch.Generator().manual_seed(0))
    layer = QuantisedLinear(plain, kind, CPU)
    assert (layer(x) - plain(x)).norm() < LARGEST_ERROR[kind] * plain(x).norm()


def test_all_linear_layers_of_the_blocks_are_quantised_and_nothing_else(
    load_family: Load, family: str
) -> None:
    transformer = load_family(family, quantisation="int8").pipe.transformer
    held = {name for name, module in transformer.named_modules() if isinstance(module, QuantisedLinear)}
    plain = load_family(family).pipe.transformer
    wanted = {
        name
        for name, module in plain.named_modules()
        if isinstance(module, nn.Linear)
        and "lora_" not in name
        and ("transformer_blocks." in name or "mode_blocks." in name)
    }
    assert held == wanted and held
    others = dict(plain.named_parameters())
    for name, parameter in transformer.named_parameters():
        if name.removesuffix(".weight") not in held:
            assert torch.equal(parameter, others[name]), name


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_products_and_gradients_are_those_of_the_dequantised_layer(
    kind: Quantisation, autocast: bool
) -> None:
    plain_layer = nn.Linear(64, 48)
    layer = QuantisedLinear(plain_layer, kind, CPU)
    weight, bias = dequantised(plain_layer, kind), plain_layer.bias
    drawn = torch.Generator().manual_seed(0)
    for shape in ((1, 64), (3, 5, 64)):  # for a single token libraries have other kernels
        x = torch.randn(shape, generator=drawn)
        ours, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast, cache_enabled=False):
            y, expected = layer(ours), linear(plain, weight, bias)
            with torch.no_grad():
                assert torch.equal(layer(x), y)
        assert torch.equal(y, expected) and y.dtype == expected.dtype
        cotangent = torch.randn(y.shape, generator=drawn).to(y.dtype)
        y.backward(cotangent)
        expected.backward(cotangent)
        assert ours.grad is not None and plain.grad is not None
        assert torch.equal(ours.grad, plain.grad)


def dequantised(layer: nn.Linear, kind: Quantisation) -> Tensor:
    """The weight [out, in] after quantising and dequantising by the libraries' own means."""
    weight: Any
    if kind == "nf4":
        from bitsandbytes.functional import dequantize_4bit
        from bitsandbytes.nn import Params4bit

        weight = Params4bit(layer.weight.detach(), requires_grad=False, quant_type="nf4").to("cpu")
        return dequantize_4bit(weight, weight.quant_state)
    from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_

    config = {"int8": Int8WeightOnlyConfig, "fp8": Float8WeightOnlyConfig}[kind]
    copied = copy.deepcopy(layer)
    quantize_(copied, config(set_inductor_config=False))
    weight = copied.weight
    return weight.dequantize()


@pytest.mark.parametrize("kind", KINDS)
def test_no_dequantised_weight_waits_for_the_backward_pass(
    load_family: Load, velocities: Call, kind: str
) -> None:
    policy = load_family("flux1", quantisation=kind)
    shapes = {
        frozenset((m.in_features, m.out_features))
        for m in policy.transformer.modules()
        if isinstance(m, QuantisedLinear)
    }
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        velocities(policy)
    assert kept and not [t.shape for t in kept if t.ndim == 2 and frozenset(t.shape) in shapes]


def test_a_lora_is_fused_before_the_base_is_quantised(load_family: Load, tmp_path: Path) -> None:
    name, inner = "transformer_blocks.0.attn.to_q", 256
    noise = torch.Generator().manual_seed(0)
    down, up = torch.randn(2, inner, generator=noise), torch.randn(inner, 2, generator=noise)
    tensors = {f"transformer.{name}.lora_A.weight": down, f"transformer.{name}.lora_B.weight": up}
    save_file(tensors, tmp_path / "published.safetensors")
    quantised = load_family("flux1", quantisation="int8", fuse_lora=str(tmp_path / "published.safetensors"))
    layer = quantised.transformer.get_submodule(name).base_layer
    plain = load_family("flux1").transformer.get_submodule(name).base_layer
    assert isinstance(layer, QuantisedLinear)
    x = torch.randn(5, inner, generator=noise)
    difference = x @ (up @ down).T
    error = layer(x) - (plain(x) + difference)
    assert error.norm() < 0.02 * difference.norm()


def test_an_adapter_trained_on_a_quantised_base_loads_on_any_base(
    load_family: Load, velocities: Call, family: str, tmp_path: Path
) -> None:
    quantised, plain = load_family(family, quantisation="nf4"), load_family(family)
    train(quantised)
    file = quantised.save_lora(tmp_path)
    plain.load_lora(file)
    again = load_family(family, quantisation="nf4")
    again.load_lora(file)
    for name, tensor in quantised.adapter_tensors().items():
        assert torch.equal(plain.adapter_tensors()[name], tensor)
        assert torch.equal(again.adapter_tensors()[name], tensor)
    with torch.no_grad():
        assert torch.equal(velocities(again), velocities(quantised))
        tuned = velocities(plain)
        with plain.reference():
            assert not torch.equal(velocities(plain), tuned)


@pytest.mark.parametrize(("kind", "library"), [("nf4", "bitsandbytes"), ("int8", "torchao")])
def test_a_missing_library_is_told_before_anything_is_loaded(
    load_family: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)  # the import then fails as if it were not installed
    with pytest.raises(UserError, match=rf"model\.quantisation '{kind}' needs {library}") as caught:
        load_family("flux1", quantisation=kind, path=str(tmp_path / "nowhere"))
    assert "pip install 'customized-grpo[quantised]'" in str(caught.value)


def test_a_device_that_cannot_is_refused_before_anything_is_loaded() -> None:
    model = ModelConfig(path="nowhere", quantisation="fp8")
    with pytest.raises(UserError, match="'fp8' works on cpu and cuda, not on mps"):
        load_policy(model, seed=0, device="mps")


def test_a_damaged_layer_is_named(load_family: Load) -> None:
    transformer = load_family("flux1").transformer
    fresh = type(transformer).from_config(transformer.config)
    fresh.single_transformer_blocks[1].proj_out.weight.data[3, 4] = torch.nan
    with pytest.raises(UserError, match=r"single_transformer_blocks\.1\.proj_out has weights that are not"):
        quantise_layers(fresh, "nf4", CPU)


def test_the_libraries_say_nothing() -> None:
    """In a fresh interpreter, which imports both."""
    model = "path='toybox', height=64, width=64, max_text_tokens=18, device='cpu'"
    code = (
        "from customized_grpo.config.schema import ModelConfig\n"
        "from customized_grpo.policies.loading import load_policy\n"
        "for kind in ('nf4', 'int8'):\n"
        f"    load_policy(ModelConfig(quantisation=kind, {model}), seed=0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""


def test_a_run_with_everything_that_saves_memory(tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = [
        "model.quantisation=nf4",
        "model.text_encoders=offload",
        "model.offload_vae=true",
        "model.gradient_checkpointing=true",
        "train.iterations=1",
        "train.trained_fraction=1.0",
    ]
    with pytest.raises(SystemExit) as left:
        main(["train", "toybox-smoke", f"run.dir={run}", *settings])
    assert left.value.code == 0
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    (line,) = [line for line in lines if line["kind"] == "train"]
    assert line["policy/ratio_max_deviation"] == 0 and line["policy/grad_norm"] > 0
