"""A tokenizer has its whole vocabulary, and that of its text encoder."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from customized_grpo.errors import UserError
from customized_grpo.libraries import quiet
from customized_grpo.weights.tokenizers import check_tokenizer, load_tokenizer


def encoder(rows: int, *, model_type: str = "t5", end: int = 1) -> Any:
    embedding = nn.Embedding(rows, 1, device="meta")
    config = SimpleNamespace(model_type=model_type, eos_token_id=end)
    return SimpleNamespace(get_input_embeddings=lambda: embedding, config=config)


@pytest.fixture(scope="module")
def clip() -> Any:
    with quiet():
        from customized_grpo.toybox.tokenizers import clip_tokenizer
    return clip_tokenizer()


@pytest.fixture
def folder(clip: Any, tmp_path: Path) -> Path:
    clip.save_pretrained(tmp_path)
    return tmp_path


def load(folder: Path, rows: int) -> Any:
    from transformers import CLIPTokenizer

    return load_tokenizer(CLIPTokenizer, str(folder), what="the tokenizer", encoder=encoder(rows))


def test_a_whole_one_loads_as_it_was_saved(folder: Path, clip: Any) -> None:
    assert load(folder, len(clip))("a red hat").input_ids == clip("a red hat").input_ids


def test_without_its_vocabulary_there_is_none(folder: Path, clip: Any) -> None:
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="vocabulary is missing"):
        load(folder, len(clip))
    (folder / "vocab.json").write_text("{}")  # of two files one
    with pytest.raises(UserError, match="vocabulary is missing"):
        load(folder, len(clip))


@pytest.mark.parametrize("number", [2**31, -1, "4", None])
def test_a_token_of_an_absurd_number_fills_no_memory(folder: Path, clip: Any, number: object) -> None:
    """Found by `make fuzz`: 2^31 took 8 GB."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"]["a</w>"] = number
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="token 'a</w>' has the number"):
        load(folder, len(clip))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_damaged_file_is_named(folder: Path, clip: Any, name: str, content: str) -> None:
    (folder / name).write_text(content)
    with pytest.raises(UserError, match=name):
        load(folder, len(clip))


def cut(folder: Path, share: float, part: str) -> None:
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    model = content["model"]
    if part == "merges":
        model["merges"] = model["merges"][: int(len(model["merges"]) * share)]
    else:
        entries = list(model["vocab"].items())
        model["vocab"] = dict(entries[: int(len(entries) * share)])
        model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    file.write_text(json.dumps(content))


def test_a_cut_vocabulary_is_told_by_the_encoders_rows(folder: Path, clip: Any) -> None:
    cut(folder, 0.7, "vocab")
    with pytest.raises(UserError, match=rf"only [\d,]+ tokens, its text encoder {len(clip)}"):
        load(folder, len(clip))


def test_cut_merges_are_told_by_tokens_that_nothing_makes(folder: Path, clip: Any) -> None:
    cut(folder, 0.5, "merges")
    with pytest.raises(UserError, match="no merge makes"):
        load(folder, len(clip))


def test_rows_may_be_filled_up_but_not_run_out(clip: Any) -> None:
    size = len(clip)
    check_tokenizer(clip, "x", encoder(size + size // 120))
    with pytest.raises(UserError, match=f"x has {size} tokens, its text encoder only {size - 1}"):
        check_tokenizer(clip, "x", encoder(size - 1))
    with pytest.raises(UserError, match="vocabulary is cut"):
        check_tokenizer(clip, "x", encoder(2 * size))


def test_clips_end_token_is_the_one_that_is_looked_for(clip: Any) -> None:
    size = len(clip)
    for end in (2, clip.eos_token_id):
        check_tokenizer(clip, "x", encoder(size, model_type="clip_text_model", end=end))
    with pytest.raises(UserError, match="looks for 5"):
        check_tokenizer(clip, "x", encoder(size, model_type="clip_text_model", end=5))


@pytest.mark.parametrize(("name", "words"), [("pad_token", "fill up"), ("eos_token", "ends a text")])
def test_special_tokens_are_there(folder: Path, clip: Any, name: str, words: str) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder)
    setattr(tokenizer, name, None)
    with pytest.raises(UserError, match=words):
        check_tokenizer(tokenizer, "x")
