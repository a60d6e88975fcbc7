"""Whatever program wrote a LoRA, its layers get what the file means; or one message says why not."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from customized_grpo.errors import UserError
from customized_grpo.policies.lora_file import FILE_NAME, PEFT_FILE_NAME, LoraFile
from customized_grpo.policies.lora_reader import read_lora_file
from customized_grpo.policies.other_programs import flux1_place, flux2_place, qwen_image_place

DIM = 6
RANK = 4
ALPHA = 2.0
TO_Q = "transformer_blocks.0.attn.to_q"
OUT = "transformer_blocks.0.attn.to_out.0"
SINGLE = "single_transformer_blocks.0"
WIDTHS = {  # in, out
    TO_Q: (DIM, DIM),
    "transformer_blocks.0.attn.to_k": (DIM, DIM),
    "transformer_blocks.0.attn.to_v": (DIM, DIM),
    OUT: (DIM, DIM),
    "transformer_blocks.0.attn.add_q_proj": (DIM, DIM),
    "transformer_blocks.0.attn.add_k_proj": (DIM, DIM),
    "transformer_blocks.0.attn.add_v_proj": (DIM, DIM),
    "transformer_blocks.0.attn.to_add_out": (DIM, DIM),
    f"{SINGLE}.attn.to_q": (DIM, DIM),
    f"{SINGLE}.attn.to_k": (DIM, DIM),
    f"{SINGLE}.attn.to_v": (DIM, DIM),
    f"{SINGLE}.proj_mlp": (DIM, 3 * DIM),  # not 4 times as wide: rows are counted by the layers themselves
    f"{SINGLE}.proj_out": (4 * DIM, DIM),
    "x_embedder": (5, DIM),
}
FLUX2_WIDTHS = {TO_Q: (DIM, DIM), OUT: (DIM, DIM), f"{SINGLE}.attn.to_qkv_mlp_proj": (DIM, 9 * DIM)}
AB = (".lora_A.weight", ".lora_B.weight")
DOWN_UP = (".lora_down.weight", ".lora_up.weight")
DIFFSYNTH = (".lora_A.default.weight", ".lora_B.default.weight")
OLD_DIFFUSERS = (".lora.down.weight", ".lora.up.weight")

Tensors = dict[str, Tensor]


def transformer(widths: Mapping[str, tuple[int, int]] = WIDTHS) -> nn.Module:
    """Return nothing but linear layers under their names."""
    root = nn.Module()
    for name, (inputs, outputs) in widths.items():
        parent = root
        *folders, last = name.split(".")
        for folder in folders:
            if not hasattr(parent, folder):
                parent.add_module(folder, nn.Module())
            parent = parent.get_submodule(folder)
        parent.add_module(last, nn.Linear(inputs, outputs))
    return root


def matrices(inputs: int, outputs: int, rank: int = RANK, seed: int = 0) -> tuple[Tensor, Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return torch.randn(rank, inputs, generator=noise), torch.randn(outputs, rank, generator=noise)


A, B = matrices(DIM, DIM)


def pair(name: str, endings: tuple[str, str] = AB, **more: Any) -> Tensors:
    tensors = {name + endings[0]: A.clone(), name + endings[1]: B.clone()}
    return tensors | {f"{name}.{key}": torch.tensor(value) for key, value in more.items()}


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., LoraFile]:
    def make(
        tensors: Tensors,
        config: Any = None,
        model: nn.Module | None = None,
        place: Any = flux1_place,
        name: str = "x.safetensors",
    ) -> LoraFile:
        text = config if isinstance(config, str) else json.dumps(config)
        header = {"format": "pt"} if config is None else {"lora_adapter_metadata": text}
        save_file(tensors, tmp_path / name, header)
        return read_lora_file(tmp_path / name, model or transformer(), place)

    return make


Read = Callable[..., LoraFile]


def deltas(file: LoraFile) -> Tensors:
    return {name: update.scale * update.up.float() @ update.down.float() for name, update in file.updates()}


def check(file: LoraFile, expected: Tensors) -> None:
    """Compare the products, and those of the adapter that is made of the file."""
    found = deltas(file)
    assert found.keys() == expected.keys()
    adapter = file.adapter_tensors()
    for name, delta in expected.items():
        torch.testing.assert_close(found[name], delta)
        product = adapter[name + AB[1]] @ adapter[name + AB[0]]
        assert adapter[name + AB[0]].shape[0] == file.rank
        torch.testing.assert_close(file.scales()[name] * product, delta)


@pytest.mark.parametrize(
    "prefix", ["transformer.", "diffusion_model.", "model.diffusion_model.", "unet.", ""]
)
@pytest.mark.parametrize("endings", [AB, DOWN_UP, DIFFSYNTH, OLD_DIFFUSERS])
@pytest.mark.parametrize("alpha", [None, ALPHA])
def test_dotted_names_with_and_without_alpha(
    read: Read, prefix: str, endings: tuple[str, str], alpha: float | None
) -> None:
    tensors = pair(prefix + TO_Q, endings, **({} if alpha is None else {"alpha": alpha}))
    check(read(tensors), {TO_Q: (1.0 if alpha is None else alpha / RANK) * B @ A})


@pytest.mark.parametrize("prefix", ["lora_unet_", "lora_transformer_", "lycoris_"])
@pytest.mark.parametrize("name", [OUT, "double_blocks.0.img_attn.proj"])
def test_names_with_underscores(read: Read, prefix: str, name: str) -> None:
    check(read(pair(prefix + name.replace(".", "_"), DOWN_UP, alpha=ALPHA)), {OUT: ALPHA / RANK * B @ A})


@pytest.mark.parametrize("prefix", ["diffusion_model.", "transformer.", "lora_unet_", ""])
def test_original_matrices_give_every_layer_its_rows(read: Read, prefix: str) -> None:
    down, up = matrices(DIM, 6 * DIM)
    key = prefix + "single_blocks.0.linear1"
    if prefix == "lora_unet_":
        key = prefix + "single_blocks_0_linear1"
    rows = (up @ down * (ALPHA / RANK)).split([DIM, DIM, DIM, 3 * DIM])
    layers = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    expected = {f"{SINGLE}.{layer}": part for layer, part in zip(layers, rows, strict=True)}
    check(read({key + AB[0]: down, key + AB[1]: up, key + ".alpha": torch.tensor(ALPHA)}), expected)


def test_unos_and_xlabs_names(read: Read) -> None:
    down, up = matrices(DIM, 3 * DIM)
    both = {
        "double_blocks.0.processor.qkv_lora2": ("transformer_blocks.0.attn", "add_{}_proj"),
        "single_blocks.0.processor.qkv_lora": (f"{SINGLE}.attn", "to_{}"),
    }
    for name, (attention, layer) in both.items():
        parts = [f"{attention}.{layer.format(letter)}" for letter in "qkv"]
        rows = (up @ down).chunk(3)
        expected = dict(zip(parts, rows, strict=True))
        check(read({f"{name}.down.weight": down, f"{name}.up.weight": up}), expected)


def test_layers_outside_of_the_blocks(read: Read) -> None:
    down, up = matrices(5, DIM)
    check(
        read({"diffusion_model.img_in" + AB[0]: down, "diffusion_model.img_in" + AB[1]: up}),
        {"x_embedder": up @ down},
    )


def test_the_other_families(read: Read) -> None:
    down, up = matrices(DIM, 9 * DIM)
    key = "single_blocks.0.linear1"
    file = read({key + AB[0]: down, key + AB[1]: up}, model=transformer(FLUX2_WIDTHS), place=flux2_place)
    check(file, {f"{SINGLE}.attn.to_qkv_mlp_proj": up @ down})
    qwen = read(pair("lora_unet_" + TO_Q.replace(".", "_"), DOWN_UP, alpha=1.0), place=qwen_image_place)
    check(qwen, {TO_Q: B @ A / RANK})


METADATA = {"transformer.r": RANK, "transformer.lora_alpha": ALPHA}


@pytest.mark.parametrize(
    ("entries", "scale"),
    [
        ({}, ALPHA / RANK),
        ({"transformer.use_rslora": True}, ALPHA / math.sqrt(RANK)),
        ({"transformer.alpha_pattern": {TO_Q: 3.0}}, 3 / RANK),
        ({"transformer.alpha_pattern": {"to_q": 3.0}}, 3 / RANK),
        ({"transformer.alpha_pattern": {"to_k": 3.0}}, ALPHA / RANK),
        ({"transformer.r": 16, "transformer.rank_pattern": {"to_q": RANK}}, ALPHA / RANK),
        ({"transformer.lora_alpha": -2.0}, -2 / RANK),
        ({"transformer.init_lora_weights": "gaussian"}, ALPHA / RANK),
    ],
)
def test_the_scale_of_the_header_is_pefts(read: Read, entries: dict[str, Any], scale: float) -> None:
    check(read(pair("transformer." + TO_Q), METADATA | entries), {TO_Q: scale * B @ A})


def test_peft_itself_agrees_on_every_scale(read: Read) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    options: dict[str, Any] = {
        "rank_pattern": {"to_out.0": 2},
        "alpha_pattern": {"attn.to_q": 3},
        "use_rslora": True,
    }
    model: Any = inject_adapter_in_model(
        LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=[TO_Q, OUT], **options), transformer()
    )
    tensors = {}
    for name, rank in ((TO_Q, RANK), (OUT, 2)):
        down, up = matrices(DIM, DIM, rank)
        tensors |= {f"transformer.{name}{AB[0]}": down, f"transformer.{name}{AB[1]}": up}
        layer = model.get_submodule(name)
        layer.lora_A["default"].weight.data = down
        layer.lora_B["default"].weight.data = up
    config = {f"transformer.{key}": value for key, value in options.items()}
    expected = {name: model.get_submodule(name).get_delta_weight("default") for name in (TO_Q, OUT)}
    check(read(tensors, METADATA | config), expected)


def test_a_peft_folder_has_its_scale_beside_it(read: Read, tmp_path: Path) -> None:
    tensors = pair(f"base_model.model.{TO_Q}")
    with pytest.raises(UserError, match="adapter_config.json, which is not beside it"):
        read(tensors, name=PEFT_FILE_NAME)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 4, "lora_alpha": 2}')
    check(read_lora_file(tmp_path, transformer(), flux1_place), {TO_Q: ALPHA / RANK * B @ A})
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LOHA", "r": 4}')
    with pytest.raises(UserError, match="peft_type is LOHA"):
        read_lora_file(tmp_path, transformer(), flux1_place)


def test_several_ranks_and_scales_become_one_adapter(read: Read) -> None:
    down, up = matrices(DIM, DIM, rank=2, seed=1)
    tensors = pair("transformer." + TO_Q, alpha=1.0)
    tensors |= {f"transformer.{OUT}{AB[0]}": down, f"transformer.{OUT}{AB[1]}": up}
    file = read(tensors)
    assert (file.rank, file.alpha) == (RANK, RANK)
    check(file, {TO_Q: B @ A / RANK, OUT: up @ down})


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (f"transformer.{TO_Q}.lora_magnitude_vector", "DoRA"),
        ("lora_unet_double_blocks_0_img_attn_proj.dora_scale", "DoRA"),
        ("lycoris_x.hada_w1_a", "LoHa"),
        ("lycoris_x.lokr_w1", "LoKr"),
        ("lora_unet_x.oft_blocks", "OFT"),
        ("lora_unet_x.lora_mid.weight", "convolutions"),
        ("diffusion_model.double_blocks.0.img_attn.proj.diff", "whole differences"),
        ("diffusion_model.double_blocks.0.img_attn.proj.diff_b", "whole differences"),
        (f"transformer.{TO_Q}.lora_B.bias", "biases"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight", "text encoder"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "text encoder"),
        ("bundle_emb.x.clip_l", "new words"),
        ("transformer.norm_out.scale", "not a LoRA"),
        ("diffusion_model.final_layer.adaLN_modulation.1.lora_A.weight", "halves are in the other order"),
        ("lora_unet_final_layer_adaLN_modulation_1.lora_down.weight", "halves are in the other order"),
        (f"transformer.{TO_Q.replace('blocks.0', 'blocks.57')}.lora_A.weight", "another base"),
        (f"diffusion_model.{TO_Q}.lora_A.weight", "one matrix|one layer|no up matrix"),
        (f"transformer.{OUT}.lora_A.weight", "no up matrix"),
        (f"transformer.{OUT}.alpha", "no down matrix"),
    ],
)
def test_a_part_that_cannot_be_taken_refuses_the_file_by_its_name(read: Read, key: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as refused:
        read(pair("transformer." + TO_Q) | {key: torch.ones(RANK, DIM)})
    assert key.removesuffix(".lora_A.weight") in refused.value.message


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{r: 4}", "not JSON"),
        ("[]", "must be an object"),
        (METADATA | {"transformer.lora_alpha": None}, "lora_alpha of .* must be a number, not None"),
        (METADATA | {"transformer.lora_alpha": "4"}, "must be a number, not '4'"),
        (METADATA | {"transformer.lora_alpha": 0}, "no effect"),
        (METADATA | {"transformer.r": 8}, "has rank 8 there, 4 in its tensors"),
        (METADATA | {"transformer.use_rslora": "yes"}, "use_rslora must be"),
        (METADATA | {"transformer.alpha_pattern": [1]}, "alpha_pattern must map"),
        (METADATA | {"transformer.alpha_pattern": {"(": 1}}, "alpha_pattern has .*safe"),
        (METADATA | {"transformer.rank_pattern": {"(.+)+x": 1}}, "rank_pattern has .*safe"),
        (METADATA | {"transformer.rank_pattern": {".*.*.*.*": 1}}, "rank_pattern has .*safe"),
        (METADATA | {"transformer.use_dora": True}, "use_dora"),
        (METADATA | {"transformer.init_lora_weights": "pissa"}, "changed base weights"),
        ({"transformer.r": RANK}, "no lora_alpha"),
    ],
)
def test_a_damaged_configuration_is_one_message(read: Read, config: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        read(pair("transformer." + TO_Q), config)
    assert "x.safetensors" in refused.value.message


def test_an_alpha_that_contradicts_the_configuration_is_refused(read: Read) -> None:
    with pytest.raises(UserError, match=r"alpha is 3, but peft's configuration says 2"):
        read(pair("transformer." + TO_Q, alpha=3.0), METADATA)
    check(read(pair("transformer." + TO_Q, alpha=ALPHA), METADATA), {TO_Q: ALPHA / RANK * B @ A})


def test_shapes_types_and_values_are_checked(read: Read, tmp_path: Path) -> None:
    key = "transformer." + TO_Q
    wrong = {
        "wider": {key + AB[0]: torch.ones(RANK, 9), key + AB[1]: B},
        "ranks": {key + AB[0]: torch.ones(2, DIM), key + AB[1]: B},
        "convolution": {key + AB[0]: torch.ones(RANK, DIM, 1, 1), key + AB[1]: B},
    }
    for tensors in wrong.values():
        with pytest.raises(UserError, match=r"another base.*to_q\.lora_A\.weight \["):
            read(tensors)
    with pytest.raises(UserError, match="type I8, not of real numbers"):
        read({key + AB[0]: A.to(torch.int8), key + AB[1]: B})
    with pytest.raises(UserError, match=r"lora_B\.weight has values that are not finite"):
        deltas(read({key + AB[0]: A, key + AB[1]: B * math.inf}))
    check(read({key + AB[0]: A.half(), key + AB[1]: B.half()}), {TO_Q: B.half().float() @ A.half().float()})
    with pytest.raises(UserError, match="it has no tensors"):
        read({})


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\0" * 100])
def test_a_cut_file_is_no_safetensors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(UserError, match=rf"{FILE_NAME}: not a safetensors file, or only a part"):
        read_lora_file(tmp_path, transformer(), flux1_place)
    with pytest.raises(UserError, match="no such file"):
        read_lora_file(tmp_path / "absent", transformer(), flux1_place)


def test_an_adapter_of_the_hub_is_told_how_to_fetch_it() -> None:
    with pytest.raises(UserError) as refused:
        read_lora_file(Path("someone/some-lora"), transformer(), flux1_place)
    assert refused.value.hint is not None
    assert "hf download someone/some-lora --local-dir FOLDER" in refused.value.hint
