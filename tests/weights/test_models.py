"""A model is loaded whole, finite and as its config says; or one message names file, tensor or key."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from customized_grpo.errors import UserError
from customized_grpo.weights.models import check_finite, explained, load_model

WIDTH = 8
Change = Callable[[dict[str, Tensor]], None]


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A T5 with its decoder, of which the encoder is loaded, as generators do."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": WIDTH, "d_kv": 4, "d_ff": 16, "num_heads": 2, "vocab_size": 20}
    folder = tmp_path_factory.mktemp("t5")
    T5ForConditionalGeneration(T5Config(**sizes, num_layers=2, num_decoder_layers=1)).save_pretrained(folder)
    return folder


@pytest.fixture
def copy(t5: Path, tmp_path: Path) -> Path:
    for file in t5.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def load(folder: Path) -> Any:
    from transformers import T5EncoderModel

    return load_model(T5EncoderModel, str(folder), what="the encoder", only_part=True, dtype=torch.float32)


def change(folder: Path, how: Change) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    how(tensors)
    save_file(tensors, file, {"format": "pt"})


LAST = "encoder.block.1.layer.1.DenseReluDense.wo.weight"


def test_tied_and_foreign_tensors_are_no_fault(t5: Path) -> None:
    model = load(t5)  # its embedding is tied, the decoder's tensors are not its own
    saved = load_file(t5 / "model.safetensors")
    assert any(name.startswith("decoder.") for name in saved)
    assert torch.equal(model.state_dict()[LAST], saved[LAST])


def drop(tensors: dict[str, Tensor]) -> None:
    del tensors[LAST]


def widen(tensors: dict[str, Tensor]) -> None:
    tensors[LAST] = torch.zeros(WIDTH, 17)


def deepen(tensors: dict[str, Tensor]) -> None:
    tensors[LAST.replace("block.1", "block.2")] = torch.zeros(WIDTH, 16)


def poison(tensors: dict[str, Tensor]) -> None:
    tensors[LAST][3, 5] = math.nan


def overflow(tensors: dict[str, Tensor]) -> None:
    tensors[LAST][0, 0] = -math.inf


def quantise(tensors: dict[str, Tensor]) -> None:
    tensors[LAST] = tensors[LAST].to(torch.int8)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, "1 weights are missing"),
        (widen, "other shapes"),
        (deepen, "no place for 1 of its weights"),
        (poison, "not finite"),
        (overflow, "not finite"),
        (quantise, r"model\.safetensors: .*stored as I8"),
    ],
)
def test_a_wrong_tensor_is_named(copy: Path, damage: Change, message: str) -> None:
    change(copy, damage)
    with pytest.raises(UserError, match=message) as refused:
        load(copy)
    number = "block.2" if damage is deepen else "block.1"
    assert LAST.replace("block.1", number) in refused.value.message


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html>"]
)
def test_a_file_that_is_not_the_weights_is_named(copy: Path, content: bytes) -> None:
    (copy / "model.safetensors").write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: not a safetensors file, or only a part"):
        load(copy)


def test_a_half_downloaded_file_and_a_missing_one_are_named(copy: Path) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model\.safetensors: not a safetensors file, or only a part"):
        load(copy)
    file.rename(copy / "model.fp16.safetensors")
    with pytest.raises(UserError, match="there are no weights, model.safetensors") as refused:
        load(copy)
    assert "rename model.fp16.safetensors to model.safetensors" in (refused.value.hint or "")
    (copy / "model.fp16.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match="there are no weights, model.safetensors"):
        load(copy)


def test_a_missing_shard_is_named(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {LAST: "model-00001-of-00002.safetensors"}}))
    with pytest.raises(UserError, match=r"model-00001-of-00002\.safetensors: no such file"):
        load(copy)
    index.write_text('{"weight_map": []}')
    with pytest.raises(UserError, match=r"index\.json: weight_map must say"):
        load(copy)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"d_model": "wide"}, "d_model"),
        ({"num_heads": None}, "num_heads"),
        ({"d_ff": -3}, "config.json describes no T5EncoderModel"),
        ({"num_layers": 10**9}, "num_layers asks for 1,000,000,000 layers"),
        ({"num_decoder_blocks": [3, 2**31, "0x10"]}, "num_decoder_blocks asks for 2,147,483,648 layers"),
        ({"text_config": {"num_hidden_layers": 10**9}}, "num_hidden_layers asks for 1,000,000,000 layers"),
        ({"block_out_channels": [8] * 1001}, "block_out_channels asks for 1,001 layers"),
    ],
)
def test_a_wrong_entry_of_the_config_is_named(copy: Path, entry: dict[str, Any], message: str) -> None:
    file = copy / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **entry}))
    with pytest.raises(UserError, match=message) as refused:
        load(copy)
    assert "config.json" in refused.value.message


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_config_that_is_none_is_named(copy: Path, content: str | None) -> None:
    (copy / "config.json").unlink()
    if content is not None:
        (copy / "config.json").write_text(content)
    with pytest.raises(UserError, match="config.json"):
        load(copy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_value_among_many_is_found(dtype: torch.dtype) -> None:
    layer = nn.Linear(64, 64).to(dtype)
    check_finite(layer, "x")
    layer.bias.data[7] = math.nan
    with pytest.raises(UserError, match="x: bias has values that are not finite"):
        check_finite(layer, "x")


def test_memory_errors_and_our_own_pass() -> None:
    for error in (UserError("mine"), torch.OutOfMemoryError("CUDA"), MemoryError()):
        with pytest.raises(type(error)), explained("loading failed"):
            raise error
    with pytest.raises(RuntimeError, match="can't allocate"), explained("loading failed"):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    with (
        pytest.raises(UserError, match="loading failed: KeyError|loading failed: 'a'"),
        explained("loading failed"),
    ):
        raise KeyError("a")
