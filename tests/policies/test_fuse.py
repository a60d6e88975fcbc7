"""UNO's LoRA, in its own layout, becomes W + up @ down of the layers its definition names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from customized_grpo.config.schema import FusedLora, ModelConfig
from customized_grpo.embedded import load_embedded
from customized_grpo.errors import UserError
from customized_grpo.libraries import quiet
from customized_grpo.policies.fuse import fuse_lora
from customized_grpo.policies.loading import load_policy

RANK = 2


@pytest.fixture
def pipe() -> Any:
    with quiet():
        from customized_grpo.toybox.models import build_pipeline
    return build_pipeline(0)


def uno_tensors(transformer: Any) -> dict[str, Tensor]:
    """Return a LoRA on the first double and the first single block, named as UNO's checkpoint names it."""
    dim = transformer.inner_dim
    mlp = transformer.single_transformer_blocks[0].proj_out.in_features
    sizes = {
        "double_blocks.0.processor.qkv_lora1": (dim, 3 * dim),
        "double_blocks.0.processor.proj_lora1": (dim, dim),
        "double_blocks.0.processor.qkv_lora2": (dim, 3 * dim),
        "double_blocks.0.processor.proj_lora2": (dim, dim),
        "single_blocks.0.processor.qkv_lora": (dim, 3 * dim),
        "single_blocks.0.processor.proj_lora": (mlp, dim),
    }
    noise = torch.Generator().manual_seed(0)
    tensors = {}
    for name, (inputs, outputs) in sizes.items():
        tensors[f"{name}.down.weight"] = 0.1 * torch.randn(RANK, inputs, generator=noise)
        tensors[f"{name}.up.weight"] = 0.1 * torch.randn(outputs, RANK, generator=noise)
    return tensors


def test_unos_layout_reaches_the_layers_of_its_definition(pipe: Any, tmp_path: Path) -> None:
    transformer = pipe.transformer
    before = {name: p.detach().clone() for name, p in transformer.named_parameters()}
    tensors = uno_tensors(transformer)
    save_file(tensors, tmp_path / "dit_lora.safetensors")
    fuse_lora(pipe, str(tmp_path / "dit_lora.safetensors"))

    def product(name: str) -> Tensor:
        return tensors[f"{name}.up.weight"] @ tensors[f"{name}.down.weight"]

    double, single = "double_blocks.0.processor.", "single_blocks.0.processor."
    expected = {
        "transformer_blocks.0.attn.to_out.0": product(double + "proj_lora1"),
        "transformer_blocks.0.attn.to_add_out": product(double + "proj_lora2"),
        "single_transformer_blocks.0.proj_out": product(single + "proj_lora"),
    }
    for block, names, fused in (
        ("transformer_blocks.0.attn.", ("to_q", "to_k", "to_v"), product(double + "qkv_lora1")),
        (
            "transformer_blocks.0.attn.",
            ("add_q_proj", "add_k_proj", "add_v_proj"),
            product(double + "qkv_lora2"),
        ),
        ("single_transformer_blocks.0.attn.", ("to_q", "to_k", "to_v"), product(single + "qkv_lora")),
    ):
        expected |= {block + name: part for name, part in zip(names, fused.chunk(3), strict=True)}
    after = dict(transformer.named_parameters())
    assert after.keys() == before.keys()  # nothing of peft is left
    for name, value in before.items():
        delta = expected.get(name.removesuffix(".weight"), torch.zeros(()))
        torch.testing.assert_close(after[name].detach(), value + delta, atol=1e-6, rtol=0)


def test_a_lora_of_another_base_names_the_tensor(pipe: Any, tmp_path: Path) -> None:
    tensors = uno_tensors(pipe.transformer)
    deeper = {name.replace("blocks.0", "blocks.18"): tensor for name, tensor in tensors.items()}
    wider = {name: torch.cat([t, t], dim=1) if "down" in name else t for name, t in tensors.items()}
    for name, wrong in (("deeper", deeper), ("wider", wider)):
        save_file({key: value.contiguous() for key, value in wrong.items()}, tmp_path / f"{name}.safetensors")
        with pytest.raises(UserError, match=r"another base.*blocks\.") as caught:
            fuse_lora(pipe, str(tmp_path / f"{name}.safetensors"))
        assert f"{name}.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing.safetensors", "no such file"),
        ("weights.bin", "pickled weights are refused"),
        ("broken.safetensors", "not a safetensors file, or only a part"),
        ("no/such/folder", "no such file"),
    ],
)
def test_what_is_no_lora_is_refused(pipe: Any, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "weights.bin").write_bytes(b"pickle")
    (tmp_path / "broken.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(UserError, match=message):
        fuse_lora(pipe, str(tmp_path / name))


def test_a_file_of_the_hub_that_cannot_be_reached_is_named(
    pipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"owner/none:dit_lora.safetensors.*cannot be reached \(dit_lora"):
        fuse_lora(pipe, "owner/none:dit_lora.safetensors")


def test_several_are_added_one_after_the_other_each_with_its_scale(pipe: Any, tmp_path: Path) -> None:
    file = tmp_path / "uno.safetensors"
    tensors = uno_tensors(pipe.transformer)
    save_file(tensors, file)
    linear = pipe.transformer.transformer_blocks[0].attn.to_out[0]
    before = linear.weight.detach().clone()
    fuse_lora(pipe, str(file), 0.5)
    fuse_lora(pipe, str(file), -2.0)
    name = "double_blocks.0.processor.proj_lora1"
    product = tensors[f"{name}.up.weight"] @ tensors[f"{name}.down.weight"]
    torch.testing.assert_close(linear.weight.detach(), before - 1.5 * product, atol=1e-6, rtol=0)


def test_a_recipe_names_several(tmp_path: Path, pipe: Any) -> None:
    file = tmp_path / "uno.safetensors"
    save_file(uno_tensors(pipe.transformer), file)
    loras = (FusedLora(path=str(file), scale=0.25), FusedLora(path=str(file)))
    model = ModelConfig(path="toybox", height=64, width=64, precision="fp32", device="cpu", fuse_lora=loras)
    plain = load_embedded("toybox").transformer.transformer_blocks[0].attn.to_out[0].weight
    tensors = uno_tensors(pipe.transformer)
    name = "double_blocks.0.processor.proj_lora1"
    product = tensors[f"{name}.up.weight"] @ tensors[f"{name}.down.weight"]
    fused = load_policy(model, seed=0).transformer.transformer_blocks[0].attn.to_out[0].weight
    torch.testing.assert_close(fused, plain + 1.25 * product, atol=1e-6, rtol=0)
