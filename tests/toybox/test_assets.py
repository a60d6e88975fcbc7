from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from customized_grpo.errors import UserError
from customized_grpo.pretraining.pack import STAGES
from customized_grpo.toybox import assets
from customized_grpo.toybox.models import build_pipeline
from customized_grpo.toybox.prompts import vocabulary

FILES = [file for file in sorted(assets.ASSETS.rglob("*")) if file.is_file()]


def test_all_of_them_together_are_under_20_megabytes() -> None:
    assert 1e6 < sum(file.stat().st_size for file in FILES) < 20e6


def test_they_are_safetensors_and_json_and_nothing_else() -> None:
    """By content, not by name: nothing pickled."""
    for file in FILES:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                assert list(opened.keys())
        else:
            assert file.suffix == ".json", file
            json.loads(file.read_text())


def test_every_weight_is_finite() -> None:
    for file in FILES:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                assert all(opened.get_tensor(name).isfinite().all() for name in opened.keys()), file  # noqa: SIM118


def test_the_base_loads_in_fp32_as_the_architecture_of_models() -> None:
    pipe, fresh = assets.load_base_pipeline(), build_pipeline()
    for part in ("transformer", "text_encoder", "text_encoder_2", "vae"):
        loaded, built = getattr(pipe, part).state_dict(), getattr(fresh, part).state_dict()
        assert {k: v.shape for k, v in loaded.items()} == {k: v.shape for k, v in built.items()}
        assert {v.dtype for v in loaded.values()} == {torch.float32}
    assert pipe.scheduler.config.use_dynamic_shifting


def test_reward_models_load_and_take_64_pixel_pictures() -> None:
    pictures = torch.zeros(2, 3, 64, 64)
    dino, folder = assets.load_reward_model("dino")
    assert dino(pictures).last_hidden_state.shape[:2] == (2, 1 + 64)
    assert (folder / "preprocessor_config.json").exists()
    clip, folder = assets.load_reward_model("clip")
    assert clip.get_image_features(pixel_values=pictures).pooler_output.shape[0] == 2
    assert (folder / "tokenizer.json").exists()
    assert not dino.training and not clip.training


@pytest.mark.parametrize("part", ["base/tokenizer", "clip"])
def test_shipped_tokenizers_read_every_word_as_one_token(part: str) -> None:
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(assets.ASSETS / part)
    ids = [tokenizer(word).input_ids[1:-1] for word in vocabulary()]
    assert {len(one) for one in ids} == {1}
    assert len({one[0] for one in ids}) == len(vocabulary())


def test_the_card_says_how_each_part_was_made_and_what_it_measures() -> None:
    card = assets.card()
    assert set(card["stages"]) == set(STAGES)
    assert -1 <= card["judges"]["identity_threshold"] <= 1


def test_the_base_leaves_headroom_on_both_rewards() -> None:
    """Decent but not saturated: otherwise there is nothing to learn from it."""
    card = assets.card()
    assert 0.5 < card["base"]["judge/prompt"] < 0.9
    assert card["judges"]["identity_other"] < card["base"]["judge/identity"] < card["judges"]["identity_same"]
    assert all(card["stages"][name]["samples"] > 0 for name in card["stages"])


def test_no_file_names_a_folder_of_the_machine_that_made_it() -> None:
    for file in FILES:
        if file.suffix == ".json":
            assert not [
                value for value in strings(json.loads(file.read_text())) if Path(value).is_absolute()
            ], file


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for part in value.values() for text in strings(part)]
    if isinstance(value, list):
        return [text for part in value for text in strings(part)]
    return [value] if isinstance(value, str) and len(value) > 2 else []


@pytest.mark.parametrize(
    ("load", "part"),
    [
        (assets.load_base_pipeline, "base"),
        (lambda: assets.load_reward_model("dino"), "dino"),
        (lambda: assets.load_reward_model("clip"), "clip"),
        (assets.load_judges, "judges"),
        (assets.card, "card.json"),
    ],
)
def test_a_missing_part_is_named_with_the_fix(load: Callable[[], Any], part: str, tmp_path: Path) -> None:
    with assets.reading_from(tmp_path), pytest.raises(UserError, match=part) as caught:
        load()
    assert "Reinstall" in str(caught.value.hint)


def test_reading_from_another_folder_ends_with_the_block(tmp_path: Path) -> None:
    before = assets.card()
    (tmp_path / "card.json").write_text('{"another": 1}')
    with pytest.raises(ZeroDivisionError), assets.reading_from(tmp_path):
        assert assets.card() == {"another": 1}
        raise ZeroDivisionError
    assert assets.card() == before
