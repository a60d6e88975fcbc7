"""The parts of a checkpoint: classes of two libraries only, all weights, the right words."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from customized_grpo.config.schema import ModelConfig
from customized_grpo.errors import UserError
from customized_grpo.libraries import quiet
from customized_grpo.policies.checkpoint_files import read_architecture
from customized_grpo.policies.loading import load_pipeline
from customized_grpo.policies.parts import class_names, find_class


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with quiet():
        from customized_grpo.toybox.models import build_pipeline

        path = tmp_path_factory.mktemp("pipeline")
        build_pipeline(0).save_pretrained(path)
    return path


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def edit(file: Path, **entries: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **entries}))


@pytest.mark.parametrize("entry", [["evil", "Part"], ["os", "system"], ["diffusers"], [1, 2], ["evil", None]])
def test_a_class_of_another_library_is_refused_and_never_imported(
    folder: Path, monkeypatch: pytest.MonkeyPatch, entry: list[Any]
) -> None:
    for place in (folder, folder / "vae"):
        (place / "evil.py").write_text("raise SystemExit('ran')")
    monkeypatch.syspath_prepend(str(folder))
    edit(folder / "model_index.json", vae=entry)
    for attempt in (
        lambda: load_pipeline(str(folder)),
        lambda: read_architecture(ModelConfig(path=str(folder))),
    ):
        with pytest.raises(UserError, match="only classes of diffusers and transformers"):
            attempt()
    assert "evil" not in sys.modules


def test_code_that_a_config_names_is_not_run(folder: Path) -> None:
    (folder / "text_encoder" / "evil.py").write_text("raise SystemExit('ran')")
    edit(folder / "text_encoder" / "config.json", auto_map={"AutoModel": "evil.Model"})
    edit(folder / "tokenizer" / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Words", None]})
    assert type(load_pipeline(str(folder)).text_encoder).__name__ == "CLIPTextModel"
    edit(folder / "model_index.json", _class_name=["evil", "FluxKontextPipeline"])
    with pytest.raises(UserError, match=r"\['evil', 'FluxKontextPipeline'\]"):
        load_pipeline(str(folder))


def test_a_class_that_does_not_exist_is_named() -> None:
    for name in ("NoSuchModel", "pipelines"):
        with pytest.raises(UserError, match=f"vae is a {name}, which diffusers .* does not have"):
            find_class("diffusers", name, "vae")
    assert class_names({"_class_name": "x", "a": [None, None], "is_distilled": True}, "x") == {}


def test_a_missing_folder_and_a_missing_file_are_named(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer_config.json").unlink()
    with pytest.raises(UserError, match="tokenizer_config.json: no such file"):
        load_pipeline(str(folder))
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(UserError, match="text_encoder_2: no such folder"):
        load_pipeline(str(folder))


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("text_encoder", "model"),
        ("text_encoder_2", "model"),
        ("transformer", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
    ],
)
def test_no_part_runs_on_weights_made_up(folder: Path, part: str, file: str) -> None:
    path = folder / part / f"{file}.safetensors"
    tensors = load_file(path)
    name = next(key for key in tensors if key.endswith(".weight") and "layer" in key or "block" in key)
    for damage, message in ((None, "weights are missing"), (torch.nan, "not finite")):
        changed = dict(tensors)
        if damage is None:
            del changed[name]
        else:
            changed[name] = torch.full_like(tensors[name], damage)
        save_file(changed, path, {"format": "pt"})
        with pytest.raises(UserError, match=message) as refused:
            load_pipeline(str(folder))
        assert part in refused.value.message


def test_a_shallower_config_is_told_by_the_weights_it_leaves_out(folder: Path) -> None:
    edit(folder / "transformer" / "config.json", num_single_layers=2)
    with pytest.raises(
        UserError, match=r"transformer: its config has no place for .*single_transformer_blocks"
    ):
        load_pipeline(str(folder))


def test_the_words_of_another_encoder_are_told(folder: Path) -> None:
    tokenizer = folder / "tokenizer_2" / "tokenizer.json"
    content = json.loads(tokenizer.read_text())
    content["model"]["vocab"] = content["model"]["vocab"][:60]
    tokenizer.write_text(json.dumps(content))
    with pytest.raises(UserError, match="tokenizer_2 has only .* tokens, its text encoder"):
        load_pipeline(str(folder))
