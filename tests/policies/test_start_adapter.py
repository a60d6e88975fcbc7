"""Training that continues a user's adapter: its rank, alpha and layers, and the model it began with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from customized_grpo.config.schema import LoraConfig, ModelConfig
from customized_grpo.errors import UserError
from customized_grpo.policies.loading import load_policy
from customized_grpo.policies.policy import Policy
from customized_grpo.policies.start_adapter import shaped_like_start, target_of

TO_Q = r"transformer_blocks\.\d+\.attn\.to_q"
TWO_LAYERS = ("transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k")

Velocities = Callable[[Policy], Tensor]


def model(**settings: Any) -> ModelConfig:
    common = {"height": 64, "width": 64, "precision": "fp32", "device": "cpu", "max_text_tokens": 24}
    return ModelConfig(**{"path": "toybox", **common, **settings})


@pytest.fixture(scope="module")
def trained() -> Policy:
    """A policy of rank 3 and alpha 6 whose adapter does something."""
    policy = load_policy(model(lora=LoraConfig(rank=3, alpha=6.0, target=TO_Q)), seed=0)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
    return policy


@pytest.fixture(scope="module")
def sft(trained: Policy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained.save_lora(tmp_path_factory.mktemp("sft"))


def test_rank_alpha_and_layers_are_the_files(sft: Path, trained: Policy, velocities: Velocities) -> None:
    recipe = model(start_lora=str(sft), lora=LoraConfig(rank=32))
    assert shaped_like_start(recipe).lora == LoraConfig(rank=3, alpha=6.0, target=TO_Q)
    policy = load_policy(recipe, seed=5)
    assert policy.adapter_tensors().keys() == trained.adapter_tensors().keys()
    with torch.no_grad():
        assert torch.equal(velocities(policy), velocities(trained))


def test_the_start_comes_back_within_a_block_and_the_base_is_the_base(
    sft: Path, trained: Policy, velocities: Velocities
) -> None:
    policy = load_policy(model(start_lora=str(sft)), seed=0)
    plain = load_policy(model(lora=LoraConfig(rank=1)), seed=0)
    own = velocities(policy)  # its graph waits while the model is another
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.data = 2 * parameter.data
        moved = velocities(policy)
        with policy.start():
            assert torch.equal(velocities(policy), velocities(trained))
        with policy.reference():
            assert torch.equal(velocities(policy), velocities(plain))
        assert torch.equal(velocities(policy), moved)
        for parameter in policy.trainable_parameters():
            parameter.data = parameter.data / 2
    own.square().sum().backward()
    assert all(parameter.grad is not None for parameter in policy.trainable_parameters())
    with pytest.raises(RuntimeError, match="no_grad"), policy.start():
        velocities(policy)


def test_gradients_pass_a_block_with_the_start(sft: Path, velocities: Velocities) -> None:
    gradients = []
    for with_block in (False, True):
        policy = load_policy(model(start_lora=str(sft)), seed=0)
        loss = velocities(policy).square().sum()
        if with_block:
            with torch.no_grad(), policy.start():
                velocities(policy)
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in policy.trainable_parameters()])
    for without, with_start in zip(*gradients, strict=True):
        assert torch.equal(without, with_start)


def test_without_a_start_it_is_the_base(velocities: Velocities, make_policy: Any) -> None:
    policy = make_policy(rank=2)
    with torch.no_grad():
        for parameter in policy.trainable_parameters():
            parameter.add_(0.1)
        with policy.reference():
            base = velocities(policy)
        with policy.start():
            assert torch.equal(velocities(policy), base)


def test_layers_of_several_ranks_and_scales_become_one(tmp_path: Path, velocities: Velocities) -> None:
    """As kohya's files may have them; `--lora` takes them layer by layer, so both must draw the same."""
    noise = torch.Generator().manual_seed(2)
    tensors = {}
    for layer, (rank, alpha) in zip(TWO_LAYERS, ((2, 1.0), (4, 12.0)), strict=True):
        width = load_policy(model(), seed=0).transformer.get_submodule(layer).in_features
        key = f"lora_transformer_{layer.replace('.', '_')}"
        tensors[f"{key}.lora_down.weight"] = 0.1 * torch.randn(rank, width, generator=noise)
        tensors[f"{key}.lora_up.weight"] = 0.1 * torch.randn(width, rank, generator=noise)
        tensors[f"{key}.alpha"] = torch.tensor(alpha)
    file = tmp_path / "kohya.safetensors"
    save_file(tensors, file)
    policy = load_policy(model(start_lora=str(file)), seed=0)
    from customized_grpo.policies.lora_reader import read_lora_file
    from customized_grpo.policies.other_programs import flux1_place

    read = read_lora_file(file, policy.transformer, flux1_place)
    taken = load_policy(model(lora=LoraConfig(rank=4, alpha=4.0, target=read.target)), seed=0)
    taken.take_lora(read)
    with torch.no_grad():
        torch.testing.assert_close(velocities(policy), velocities(taken), atol=1e-5, rtol=0)
        assert (velocities(policy) - velocities(load_policy(model(), seed=0))).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {f"{k}.hada_w1_a": v for k, v in t.items()}, "a LoHa"),
        (lambda t: t | {"lora_te1_x.lora_down.weight": torch.ones(1, 2)}, "layers of a text encoder"),
        (
            lambda t: {k.replace("blocks.0", "blocks.77"): v for k, v in t.items()},
            r"another base.*blocks\.77",
        ),
    ],
)
def test_what_cannot_be_continued_is_refused_by_its_tensor(
    sft: Path, tmp_path: Path, change: Any, message: str
) -> None:
    from safetensors.torch import load_file

    save_file(change(load_file(sft)), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=message) as refused:
        shaped_like_start(model(start_lora=str(tmp_path / "x.safetensors")))
    assert refused.value.message.startswith("model.start_lora '")


def test_an_adapter_of_peft_needs_its_scale(sft: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    tensors = {f"base_model.model.{k.removeprefix('transformer.')}": v for k, v in load_file(sft).items()}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"adapter_config\.json"):
        shaped_like_start(model(start_lora=str(tmp_path)))
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 3, "lora_alpha": 6}))
    assert shaped_like_start(model(start_lora=str(tmp_path))).lora.alpha == 6.0


def test_a_pattern_stands_for_all_blocks_or_names_those_that_are_adapted() -> None:
    linears = ["a.0.q", "a.1.q", "a.0.k", "a.1.k", "a.1.out.0", "b.0.q", "head"]
    assert target_of(["a.0.q", "a.1.q", "head"], linears) == r"a\.\d+\.q|head"
    assert target_of(["a.1.q", "b.0.q"], linears) == r"a\.1\.q|b\.\d+\.q"
    assert target_of(["a.1.out.0"], linears) == r"a\.\d+\.out\.0"
