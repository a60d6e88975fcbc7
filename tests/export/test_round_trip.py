"""Exported adapters do elsewhere what they do here: in fresh pipelines, and merged into original weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import tiny_flux3
import tiny_qwen_image21
from customized_grpo.export import export_run
from customized_grpo.export.run import Merge
from customized_grpo.generation import open_generator
from customized_grpo.libraries import quiet
from customized_grpo.policies.loading import load_pipeline
from customized_grpo.rollout.ode import sample_images
from tiny_qwen_edit import token_types_forwarded

PROMPT = "a fox with a red hat on the left"
SIZE = (64, 64)
STEPS = 3
FAMILIES = ("flux1", "flux2", "qwen_edit", "qwen_image21", "flux3")
SCALES = {"alpha = rank": None, "alpha = 3 rank / 2": 6.0}
DOUBLE_BLOCKS = r"transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"

AnyTrained = Any


@pytest.fixture(scope="module", params=[(f, s) for f in FAMILIES for s in SCALES], ids=lambda p: " ".join(p))
def trained(request: pytest.FixtureRequest, make_trained: Callable[..., AnyTrained]) -> AnyTrained:
    family, scale = request.param
    return make_trained(family, alpha=SCALES[scale])


def ours(policy: Any, reference: Tensor) -> Tensor:
    conditioning = policy.encode([PROMPT], [[reference]], *SIZE)
    noise = [torch.Generator().manual_seed(1)]
    return sample_images(policy, conditioning, noise, policy.sigmas(STEPS, policy.n_tokens(*SIZE)), 1)


def theirs(family: str, pipe: Any, reference: Tensor, policy: Any) -> Tensor:
    """What the pipeline's own call makes of the same prompt, reference and noise."""
    pixels = (reference * 255).round().byte().permute(1, 2, 0).numpy()
    shared = {
        "image": [Image.fromarray(pixels)], "prompt": PROMPT, "height": 64, "width": 64,
        "num_inference_steps": STEPS, "generator": torch.Generator().manual_seed(1), "output_type": "pt",
    }  # fmt: skip
    if family == "qwen_edit":
        from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus

        with pytest.MonkeyPatch.context() as patch, token_types_forwarded(pipe):
            patch.setattr(plus, "VAE_IMAGE_SIZE", SIZE[0] * SIZE[1])
            return pipe(**shared, negative_prompt=" ", true_cfg_scale=policy.guidance).images
    if family == "flux3":
        seeded, guidance = shared["generator"], policy.guidance
        return tiny_flux3.run_pipeline(
            pipe, PROMPT, [reference], SIZE, generator=seeded, guidance=guidance, output="images"
        )
    if family == "qwen_image21":
        options = {"negative_prompt": " ", "true_cfg_scale": policy.guidance, "output_resolution": SIZE[0]}
        return tiny_qwen_image21.over_white(pipe(**shared, **options).images)
    shared |= {"guidance_scale": policy.guidance, "max_sequence_length": policy.max_text_tokens}
    if family == "flux1":
        return pipe(**shared, max_area=SIZE[0] * SIZE[1], _auto_resize=False).images
    return pipe(**shared, text_encoder_out_layers=policy.text_layers).images


def fresh_pipeline(trained: AnyTrained) -> Any:
    pipe = load_pipeline(str(trained.base), family=trained.family, precision="fp32")
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.text_encoder, pipe.transformer, pipe.vae):
        part.eval()
    return pipe


@pytest.mark.slow  # all of them together
@pytest.mark.parametrize("name", ["diffusers", "comfyui", "kohya"])
def test_a_fresh_pipeline_draws_the_trainers_image(
    trained: AnyTrained, name: Any, reference: Tensor, make_trained: Callable[..., AnyTrained], tmp_path: Path
) -> None:
    if (trained.family, name) == ("flux3", "kohya"):
        pytest.skip("diffusers reads no kohya names of FLUX.3")
    if (trained.family, name) == ("flux1", "kohya"):  # its converter has the published width of linear1 in it
        trained = make_trained("flux1", alpha=6.0, target=DOUBLE_BLOCKS)
    file = export_run(trained.path, name, out=tmp_path / name)
    pipe = fresh_pipeline(trained)
    before = theirs(trained.family, pipe, reference, trained.policy)
    with quiet():
        pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    after = theirs(trained.family, pipe, reference, trained.policy)
    assert torch.allclose(after, ours(trained.policy, reference), atol=2e-5, rtol=0)
    assert (after - before).abs().max() > 1e-3  # the comparison can fail


@pytest.fixture(scope="module")
def loras(make_trained: Callable[..., AnyTrained], tmp_path_factory: Any) -> list[str]:
    """Settings of a run that continues one LoRA on a base with another merged in, at half its strength."""
    folder = tmp_path_factory.mktemp("loras")
    make_trained("flux1", alpha=6.0).policy.save_lora(folder / "start")
    make_trained("flux1", target=DOUBLE_BLOCKS).policy.save_lora(folder / "fused")
    fuse = f"model.fuse_lora=[{{path: {folder}/fused, scale: 0.5}}]"
    return [fuse, f"model.start_lora={folder}/start"]


@pytest.fixture(scope="module")
def warm_started(make_trained: Callable[..., AnyTrained], loras: list[str]) -> AnyTrained:
    return make_trained("flux1", settings=loras)


def test_all_that_is_on_a_base_becomes_one_adapter(
    warm_started: AnyTrained, reference: Tensor, tmp_path: Path
) -> None:
    file = export_run(warm_started.path, "diffusers", out=tmp_path / "one", merge=Merge("adapter"))
    pipe = fresh_pipeline(warm_started)
    with quiet():
        pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    after = theirs("flux1", pipe, reference, warm_started.policy)
    assert torch.allclose(after, ours(warm_started.policy, reference), atol=2e-5, rtol=0)
    card = (file.parent / "README.md").read_text()
    assert "which is part of it now" in card and "Without that it is of no use" not in card
    alone = export_run(warm_started.path, "diffusers", out=tmp_path / "alone")
    assert "Without that it is of no use" in (alone.parent / "README.md").read_text()
    with quiet():
        pipe.unload_lora_weights()
        pipe.load_lora_weights(str(alone.parent), weight_name=alone.name)
    assert (theirs("flux1", pipe, reference, warm_started.policy) - after).abs().max() > 1e-3


def test_all_that_is_on_a_base_becomes_a_transformer(
    warm_started: AnyTrained, reference: Tensor, tmp_path: Path
) -> None:
    folder = export_run(warm_started.path, "diffusers", out=tmp_path / "all", merge=Merge("transformer"))
    pipe = fresh_pipeline(warm_started)
    pipe.transformer = type(pipe.transformer).from_pretrained(folder).eval()
    after = theirs("flux1", pipe, reference, warm_started.policy)
    assert torch.allclose(after, ours(warm_started.policy, reference), atol=2e-5, rtol=0)
    card = (folder.parent / "README.md").read_text()
    assert f'{type(pipe.transformer).__name__}.from_pretrained(".", subfolder="transformer"' in card
    assert "load_lora_weights" not in card


@pytest.mark.parametrize("into", ["adapter", "transformer"])
def test_a_run_whose_last_block_computes_the_image_alone_draws_the_same_once_merged(
    make_trained: Callable[..., AnyTrained], loras: list[str], reference: Tensor, tmp_path: Path, into: Any
) -> None:
    cut = make_trained("flux1", settings=[*loras, "model.last_block=image"])
    expected = ours(cut.policy, reference)
    written = export_run(cut.path, "diffusers", out=tmp_path / "out", merge=Merge(into))
    pipe = fresh_pipeline(cut)
    if into == "adapter":
        pipe.load_lora_weights(str(written.parent), weight_name=written.name)
    else:
        pipe.transformer = type(pipe.transformer).from_pretrained(written).eval()
    # elsewhere the last block computes every token
    assert torch.allclose(theirs("flux1", pipe, reference, cut.policy), expected, atol=2e-5, rtol=0)
    if into == "adapter":
        settings = ["model.last_block=image", "model.precision=fp32", "model.device=cpu"]
        generator = open_generator(str(cut.base), settings=settings, lora=written)
        assert torch.allclose(ours(generator.policy, reference), expected, atol=2e-5, rtol=0)


# Original weights, by readers written from the formats' definitions


def original_weights(family: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The matrices of a diffusers transformer's blocks under their original names, by hand."""
    if family in ("qwen_edit", "qwen_image21"):
        return dict(weights)
    if family == "flux3":
        return {flux3_name(name): weight for name, weight in weights.items()}
    found = {}
    for i in range(1 + max(int(n.split(".")[1]) for n in weights if n.startswith("transformer_blocks."))):
        block, to = f"transformer_blocks.{i}.attn.", f"double_blocks.{i}."
        found[f"{to}img_attn.qkv"] = torch.cat([weights[f"{block}to_{x}"] for x in "qkv"])
        found[f"{to}txt_attn.qkv"] = torch.cat([weights[f"{block}add_{x}_proj"] for x in "qkv"])
        found[f"{to}img_attn.proj"] = weights[f"{block}to_out.0"]
        found[f"{to}txt_attn.proj"] = weights[f"{block}to_add_out"]
    singles = [n for n in weights if n.startswith("single_transformer_blocks.")]
    for i in range(1 + max(int(n.split(".")[1]) for n in singles)):
        block, to = f"single_transformer_blocks.{i}.", f"single_blocks.{i}."
        if family == "flux2":
            found[f"{to}linear1"] = weights[f"{block}attn.to_qkv_mlp_proj"]
            found[f"{to}linear2"] = weights[f"{block}attn.to_out"]
        else:
            parts = [weights[f"{block}attn.to_{x}"] for x in "qkv"] + [weights[f"{block}proj_mlp"]]
            found[f"{to}linear1"] = torch.cat(parts)
            found[f"{to}linear2"] = weights[f"{block}proj_out"]
    return found


def flux3_name(name: str) -> str:
    """The original name of a layer, by the inverse of diffusers' conversion of checkpoints."""
    renamed = {
        "attn.to_q": "q_proj", "attn.to_k": "k_proj", "attn.to_v": "v_proj", "attn.to_out.0": "attn_out",
        "ff.linear_in": "mlp_in", "ff.linear_out": "mlp_out",
    }  # fmt: skip
    for theirs_, original in renamed.items():
        name = name.replace(theirs_, original)
    if name.startswith("mode_blocks."):
        return f"content_{name}"
    return name.replace("single_transformer_blocks.", "single_blocks.")


def block_weights(transformer: Any, *, merged: bool) -> dict[str, Tensor]:
    """Weights of the blocks' linear layers by diffusers' names, if merged with what peft says is added."""
    found = {}
    for name, module in transformer.named_modules():
        in_a_block = "transformer_blocks." in name or "mode_blocks." in name
        if name.endswith("base_layer") or ".lora_" in name or not in_a_block:
            continue
        if hasattr(module, "get_delta_weight"):
            delta = module.get_delta_weight("default") if merged else 0.0
            found[name] = (module.base_layer.weight + delta).detach()
        elif isinstance(module, torch.nn.Linear):
            found[name] = module.weight.detach()
    return found


def apply_kohya(weights: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """W' = W + alpha / rank * up @ down, on the matrix whose name has "_" for "."; none is left over."""
    tensors = load_file(file)
    merged = {}
    for name, weight in weights.items():
        key = "lora_unet_" + name.replace(".", "_")
        merged[name] = weight
        if f"{key}.lora_up.weight" in tensors:
            up, down = tensors.pop(f"{key}.lora_up.weight"), tensors.pop(f"{key}.lora_down.weight")
            merged[name] = weight + tensors.pop(f"{key}.alpha").item() / down.shape[0] * (up @ down)
    assert not tensors, f"no such matrix: {list(tensors)}"
    return merged


def apply_comfyui(family: str, weights: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """As ComfyUI: "transformer." + diffusers' name is a matrix or rows of one; no alpha tensor is scale 1."""
    tensors = load_file(file)
    assert not [name for name in tensors if name.endswith(".alpha")]
    merged = {name: weight.clone() for name, weight in weights.items()}
    for key in sorted(tensors):
        if key.endswith(".lora_B.weight"):
            layer = key.removesuffix(".lora_B.weight")
            delta = tensors[key] @ tensors[f"{layer}.lora_A.weight"]
            name, row = comfyui_target(family, layer.removeprefix("transformer."), delta.shape[1])
            merged[name][row : row + len(delta)] += delta
    return merged


def comfyui_target(family: str, layer: str, width: int) -> tuple[str, int]:
    """(matrix, first row), a transcription of what ComfyUI's map says of attention layers."""
    if family == "flux3":
        return layer.removeprefix("diffusion_model."), 0
    if family in ("qwen_edit", "qwen_image21"):
        return layer, 0
    stack, i, rest = layer.split(".", 2)
    if stack == "transformer_blocks":
        order = {"to_q": 0, "to_k": 1, "to_v": 2, "add_q_proj": 0, "add_k_proj": 1, "add_v_proj": 2}
        part = rest.removeprefix("attn.")
        stream = "txt" if "add" in part else "img"
        if part in order:
            return f"double_blocks.{i}.{stream}_attn.qkv", order[part] * width
        return f"double_blocks.{i}.{stream}_attn.proj", 0
    order = {"attn.to_q": 0, "attn.to_k": 1, "attn.to_v": 2, "proj_mlp": 3, "attn.to_qkv_mlp_proj": 0}
    if rest in order:
        return f"single_blocks.{i}.linear1", order[rest] * width
    return f"single_blocks.{i}.linear2", 0


@pytest.mark.parametrize("name", ["comfyui", "kohya"])
def test_merged_into_the_original_matrices_it_adds_what_it_adds_here(
    trained: AnyTrained, name: Any, tmp_path: Path
) -> None:
    file = export_run(trained.path, name, out=tmp_path / name)
    family, transformer = trained.family, trained.policy.transformer
    base = original_weights(family, block_weights(transformer, merged=False))
    expected = original_weights(family, block_weights(transformer, merged=True))
    found = apply_kohya(base, file) if name == "kohya" else apply_comfyui(family, base, file)
    assert found.keys() == expected.keys()
    changed = 0
    for matrix, weight in expected.items():
        assert torch.allclose(found[matrix], weight, atol=1e-6, rtol=0), matrix
        changed += int((weight - base[matrix]).abs().max() > 1e-3)
    assert changed >= 4  # the comparison can fail


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [2.0, 5.0])
@pytest.mark.parametrize("with_mlp", [False, True])
def test_diffusers_reads_the_kohya_file_of_a_full_width_flux1_as_it_was(alpha: float, with_mlp: bool) -> None:
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

    from customized_grpo.config import load_config
    from customized_grpo.export.adapter import Layer, RunAdapter
    from customized_grpo.export.formats import kohya_tensors

    width, rank = 3072, 2
    names = {f"transformer_blocks.0.attn.{x}": width for x in ("to_q", "to_k", "to_v", "to_out.0")}
    names |= {f"transformer_blocks.3.attn.{x}": width for x in ("add_q_proj", "add_k_proj", "add_v_proj")}
    names |= {f"single_transformer_blocks.5.attn.{x}": width for x in ("to_q", "to_k", "to_v")}
    names |= {"single_transformer_blocks.5.proj_mlp": 4 * width} if with_mlp else {}
    chance = torch.Generator().manual_seed(0)
    layers = {
        name: Layer(torch.randn(rank, width, generator=chance), torch.randn(rows, rank, generator=chance))
        for name, rows in names.items()
    }
    adapter = RunAdapter(load_config("toybox-smoke"), 1, False, rank, alpha, layers, {})
    read = _convert_kohya_flux_lora_to_diffusers(kohya_tensors(adapter))
    for name, layer in layers.items():
        key = f"transformer.{name}"
        down, up = read.pop(f"{key}.lora_A.weight"), read.pop(f"{key}.lora_B.weight")
        assert torch.allclose(up @ down, alpha / rank * layer.up @ layer.down, atol=1e-4, rtol=1e-5), name
    for key in [key for key in read if key.endswith("lora_B.weight")]:  # rows of layers without an adapter
        assert not (read[key] @ read[key.replace("lora_B", "lora_A")]).any(), key
