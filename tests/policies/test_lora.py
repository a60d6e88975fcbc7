from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from customized_grpo.errors import UserError
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.policies.flux1 import Flux1Policy
from customized_grpo.policies.lora_file import FILE_NAME
from customized_grpo.policies.lora_reader import read_lora_file
from customized_grpo.policies.other_programs import no_place

MakePolicy = Callable[..., Flux1Policy]
MakeImage = Callable[..., Tensor]


@pytest.fixture
def inputs(make_image: MakeImage) -> Callable[[Flux1Policy], tuple[Tensor, float, Conditioning]]:
    def make(policy: Flux1Policy) -> tuple[Tensor, float, Conditioning]:
        encoded = policy.encode(["a fox", "a bird"], [[make_image(1)], [make_image(2)]], 64, 64)
        return policy.noise([torch.Generator().manual_seed(s) for s in (1, 2)], 64, 64), 0.6, encoded

    return make


Inputs = Callable[[Flux1Policy], tuple[Tensor, float, Conditioning]]


def train(policy: Flux1Policy) -> None:
    """Stand in for training: give every B some weight."""
    drawn = torch.Generator().manual_seed(3)
    tensors = policy.adapter_tensors()
    for name, tensor in tensors.items():
        if ".lora_B." in name:
            tensors[name] = 0.05 * torch.randn(tensor.shape, generator=drawn)
    policy.load_adapter_tensors(tensors)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_fresh_adapter_is_the_base_bit_for_bit(
    make_policy: MakePolicy, inputs: Inputs, precision: str
) -> None:
    policy = make_policy(precision=precision)
    with torch.no_grad():
        base = policy.velocity(*inputs(policy))
        policy.add_adapter(rank=4, seed=0)
        assert torch.equal(policy.velocity(*inputs(policy)), base)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_reference_is_the_base_bit_for_bit(make_policy: MakePolicy, inputs: Inputs, precision: str) -> None:
    base = make_policy(precision=precision)
    policy = make_policy(rank=4, precision=precision)
    train(policy)
    with torch.no_grad():
        tuned, expected = policy.velocity(*inputs(policy)), base.velocity(*inputs(base))
        with policy.reference():
            assert torch.equal(policy.velocity(*inputs(policy)), expected)
        assert torch.equal(policy.velocity(*inputs(policy)), tuned)
    assert not torch.equal(tuned, expected)


def test_reference_without_an_adapter_is_the_base(make_policy: MakePolicy, inputs: Inputs) -> None:
    policy = make_policy()
    with torch.no_grad():
        expected = policy.velocity(*inputs(policy))
        with policy.reference():
            assert torch.equal(policy.velocity(*inputs(policy)), expected)


def test_gradients_inside_reference_are_refused(make_policy: MakePolicy, inputs: Inputs) -> None:
    policy = make_policy(rank=4)
    with pytest.raises(RuntimeError, match="no_grad"), policy.reference():
        policy.velocity(*inputs(policy))
    policy.velocity(*inputs(policy))  # and the policy is usable afterwards


def test_gradients_flow_with_a_kl_term_between_forward_and_backward(
    make_policy: MakePolicy, inputs: Inputs
) -> None:
    policy = make_policy(rank=4)
    train(policy)
    v = policy.velocity(*inputs(policy))
    with torch.no_grad(), policy.reference():
        base = policy.velocity(*inputs(policy))
    (v - base).square().mean().backward()
    grads = [parameter.grad for parameter in policy.trainable_parameters()]
    assert all(grad is not None and bool(grad.isfinite().all()) for grad in grads)
    assert sum(bool((grad != 0).any()) for grad in grads if grad is not None) == len(grads)


def test_the_adapter_covers_the_attention_and_the_block_outputs_only(make_policy: MakePolicy) -> None:
    layers = {name.rsplit(".lora_", 1)[0] for name in make_policy(rank=4).adapter_tensors()}
    double = {f"attn.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")}
    double |= {f"attn.{part}" for part in ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")}
    single = {"attn.to_q", "attn.to_k", "attn.to_v", "proj_out"}
    expected = {f"transformer_blocks.{i}.{part}" for i in range(1) for part in double}
    expected |= {f"single_transformer_blocks.{i}.{part}" for i in range(3) for part in single}
    assert layers == expected


def test_names_are_those_of_peft(make_policy: MakePolicy) -> None:
    from peft import get_peft_model_state_dict

    policy = make_policy(rank=4)
    assert policy.adapter_tensors().keys() == get_peft_model_state_dict(policy.transformer).keys()


def test_the_initial_adapter_is_a_function_of_the_seed_alone(make_policy: MakePolicy) -> None:
    adapters = []
    for seed, noise in ((1, 10), (1, 20), (2, 10)):
        torch.manual_seed(noise)
        before = torch.get_rng_state()
        policy = make_policy()
        policy.add_adapter(rank=4, seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        adapters.append(policy.adapter_tensors())
    first, second, third = adapters
    assert all(torch.equal(first[name], second[name]) for name in first)
    drawn = [name for name in first if ".lora_A." in name]
    assert all(not torch.equal(first[name], third[name]) for name in drawn)
    assert len({first[name].flatten()[0].item() for name in drawn}) == len(drawn)
    assert torch.cat([first[name].flatten() for name in drawn]).std().item() == pytest.approx(1 / 4, rel=0.02)


def test_a_saved_adapter_loads_in_diffusers_as_the_same_policy(
    make_policy: MakePolicy, inputs: Inputs, tmp_path: Path
) -> None:
    policy = make_policy(rank=4, alpha=8.0)
    train(policy)
    assert policy.save_lora(tmp_path / "new") == tmp_path / "new" / FILE_NAME
    fresh = make_policy()
    fresh.pipe.load_lora_weights(str(tmp_path / "new"))
    with torch.no_grad():
        expected = policy.velocity(*inputs(policy))
        assert torch.allclose(fresh.velocity(*inputs(fresh)), expected, atol=1e-6, rtol=0)


def test_a_saved_adapter_loads_here_bit_for_bit_into_the_same_parameters(
    make_policy: MakePolicy, inputs: Inputs, tmp_path: Path
) -> None:
    policy, fresh = make_policy(rank=4), make_policy(rank=4)
    train(policy)
    parameters = [id(parameter) for parameter in fresh.trainable_parameters()]
    fresh.load_lora(policy.save_lora(tmp_path))
    assert [id(parameter) for parameter in fresh.trainable_parameters()] == parameters
    with torch.no_grad():
        assert torch.equal(fresh.velocity(*inputs(fresh)), policy.velocity(*inputs(policy)))


def test_adapter_tensors_are_copies(make_policy: MakePolicy) -> None:
    policy = make_policy(rank=4)
    before = policy.adapter_tensors()
    train(policy)
    assert any(not torch.equal(before[name], tensor) for name, tensor in policy.adapter_tensors().items())


def test_another_rank_is_refused_with_both_numbers_and_the_first_keys(
    make_policy: MakePolicy, tmp_path: Path
) -> None:
    make_policy(rank=4).save_lora(tmp_path)
    policy = make_policy(rank=2)
    before = policy.adapter_tensors()
    with pytest.raises(
        UserError, match=r"rank 4, this model's has rank 2.*lora_A\.weight is \[4, 256\]"
    ) as caught:
        policy.load_lora(tmp_path)
    assert "model.lora.rank to 4" in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in policy.adapter_tensors().items())


def test_another_alpha_is_refused(make_policy: MakePolicy, tmp_path: Path) -> None:
    make_policy(rank=4, alpha=8.0).save_lora(tmp_path)
    with pytest.raises(UserError, match="alpha 8, this model's has alpha 4"):
        make_policy(rank=4).load_lora(tmp_path)


def test_another_base_is_refused_with_the_first_keys(make_policy: MakePolicy, tmp_path: Path) -> None:
    file = make_policy(rank=4).save_lora(tmp_path)
    tensors = load_file(file)
    first = next(iter(tensors))
    tensors[first.replace("blocks.0", "blocks.57")] = tensors.pop(first)
    save_file(tensors, file)
    with pytest.raises(UserError, match="another base") as caught:
        make_policy(rank=4).load_lora(tmp_path)
    assert "blocks.57" in str(caught.value)


def test_another_width_is_refused(make_policy: MakePolicy, tmp_path: Path) -> None:
    file = make_policy(rank=4).save_lora(tmp_path)
    tensors = load_file(file)
    first = next(name for name in tensors if "lora_A" in name)
    tensors[first] = torch.zeros(4, 3072)
    save_file(tensors, file)
    with pytest.raises(UserError, match=r"another base.*\[4, 3072\] and \[256, 4\] on \[256, 256\]"):
        make_policy(rank=4).load_lora(tmp_path)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".ckpt"])
def test_pickled_weights_are_refused_unopened(make_policy: MakePolicy, tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"adapter{suffix}"
    file.write_bytes(b"")
    with pytest.raises(UserError, match="pickled"):
        make_policy(rank=4).load_lora(file)


@pytest.mark.parametrize("content", [None, b"not safetensors at all"])
def test_a_missing_or_broken_file_is_named(
    make_policy: MakePolicy, tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(UserError, match=FILE_NAME):
        make_policy(rank=4).load_lora(tmp_path / FILE_NAME)


@pytest.mark.parametrize("target", ["nothing", r"transformer_blocks\.0", r"time_text_embed\..*"])
def test_a_target_without_linear_layers_is_refused(make_policy: MakePolicy, target: str) -> None:
    with pytest.raises(UserError, match=r"model\.lora\.target"):
        make_policy().add_adapter(rank=4, target=target, seed=0)


def test_a_target_of_ones_own_is_used(make_policy: MakePolicy) -> None:
    policy: Any = make_policy()
    policy.add_adapter(rank=2, target=r"transformer_blocks\.0\.attn\.to_q", seed=0)
    assert {name.split(".lora")[0] for name in policy.adapter_tensors()} == {"transformer_blocks.0.attn.to_q"}


def test_a_file_of_several_ranks_and_scales_is_taken_layer_by_layer(
    make_policy: MakePolicy, tmp_path: Path
) -> None:
    names = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k")
    noise = torch.Generator().manual_seed(0)
    tensors, expected = {}, {}
    for name, rank, alpha in zip(names, (2, 4), (3.0, 1.0), strict=True):
        down, up = torch.randn(rank, 256, generator=noise), torch.randn(256, rank, generator=noise)
        key = f"diffusion_model.{name}"
        tensors |= {
            f"{key}.lora_A.weight": down,
            f"{key}.lora_B.weight": up,
            f"{key}.alpha": torch.tensor(alpha),
        }
        expected[name] = alpha / rank * up @ down
    save_file(tensors, tmp_path / "x.safetensors")
    policy: Any = make_policy()
    file = read_lora_file(tmp_path / "x.safetensors", policy.transformer, no_place)
    policy.add_adapter(rank=file.rank, alpha=file.alpha, target=file.target, seed=0)
    policy.take_lora(file)
    again = make_policy()
    again.pipe.load_lora_weights(str(policy.save_lora(tmp_path / "saved").parent), adapter_name="default")
    for name in names:
        for transformer in (policy.transformer, again.transformer):
            delta = transformer.get_submodule(name).get_delta_weight("default")
            torch.testing.assert_close(delta, expected[name])
    with pytest.raises(UserError, match=r"(?s)several ranks or scales.*model\.fuse_lora"):
        policy.load_lora(tmp_path / "x.safetensors")


def test_inputs_in_bf16_are_not_cast_for_the_adapter_and_no_bit_changes(
    make_policy: MakePolicy, inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(rank=4, precision="bf16")
    train(policy)
    x, sigma, conditioning = inputs(policy)
    layers = [
        module for module in policy.transformer.modules() if hasattr(module, "cast_input_dtype_enabled")
    ]
    assert layers and not any(layer.cast_input_dtype_enabled for layer in layers)
    results = []
    casts = []
    for enabled in (False, True):
        for layer in layers:
            monkeypatch.setattr(layer, "cast_input_dtype_enabled", enabled)
        for parameter in policy.trainable_parameters():
            parameter.grad = None
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            velocity = policy.velocity(x, sigma, conditioning)
        casts.append(sum(event.count for event in profile.key_averages() if event.key == "aten::_to_copy"))
        velocity.square().mean().backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in policy.trainable_parameters()]
        results.append([velocity.detach(), *[grad for grad in gradients if grad is not None]])
    assert casts[1] - casts[0] > len(layers) / 2
    assert len(results[0]) == 1 + len(policy.trainable_parameters())
    assert all(map(torch.equal, *results))
