"""The fingerprint of a base: a folder's, a snapshot's in the hub's cache, and a fused LoRA's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest

from customized_grpo.config.schema import ModelConfig
from customized_grpo.policies.base_files import fingerprint_base

INDEX = {"_class_name": "P", "transformer": ["diffusers", "T"], "tokenizer": ["transformers", "C"]}


def base(folder: Path) -> Path:
    for name, content in {
        "model_index.json": json.dumps(INDEX),
        "transformer/config.json": "{}",
        "transformer/diffusion_pytorch_model.safetensors": "weights",
        "tokenizer/tokenizer.json": "{}",
        "flux1-dev.safetensors": "a single file for other programs",
        "README.md": "words",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def test_the_files_of_the_parts_count_wherever_the_folder_is(tmp_path: Path) -> None:
    one = base(tmp_path / "one")
    before = fingerprint_base(ModelConfig(path=str(one)))
    assert list(before) == [
        "model_index.json",
        "tokenizer/tokenizer.json",
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
    ]
    shutil.move(one, tmp_path / "two")
    (tmp_path / "two" / "flux1-dev.safetensors").unlink()
    assert fingerprint_base(ModelConfig(path=str(tmp_path / "two"))) == before


def test_weights_of_the_same_size_are_told_apart(tmp_path: Path) -> None:
    folder = base(tmp_path / "base")
    model = ModelConfig(path=str(folder))
    before = fingerprint_base(model)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_text("weightz")
    now = fingerprint_base(model)
    assert [name for name in now if now[name] != before[name]] == [
        "transformer/diffusion_pytorch_model.safetensors"
    ]


def test_a_hub_id_is_looked_up_in_the_download_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--name"
    base(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert len(fingerprint_base(ModelConfig(path="owner/name"))) == 4
    assert fingerprint_base(ModelConfig(path="owner/other")) == {}


def test_a_fused_lora_counts(tmp_path: Path) -> None:
    lora = tmp_path / "lora.safetensors"
    lora.write_text("lora")
    start = tmp_path / "sft" / "pytorch_lora_weights.safetensors"
    start.parent.mkdir()
    start.write_text("sft")
    model = ModelConfig(path="toybox", fuse_lora=("none/such", str(lora)), start_lora=str(start.parent))
    before = fingerprint_base(model)
    lora.write_text("arol")
    start.write_text("tfs")
    now = fingerprint_base(model)
    assert [name for name in now if now[name] != before[name]] == ["fuse_lora.1", "start_lora"]
