"""Subjects found in generated images by words: the boxes and masks of the models, and scores made of them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_rewards as tiny
import tiny_segmenter
from customized_grpo.config import load_config
from customized_grpo.config.schema import RewardConfig
from customized_grpo.config.segmenter import SegmenterConfig
from customized_grpo.data.examples import Example
from customized_grpo.errors import UserError
from customized_grpo.pixels import to_pil
from customized_grpo.rewards import FunctionReward, ScoringBatch
from customized_grpo.rewards.dino import DinoReward
from customized_grpo.rewards.executors import InlineExecutor, Scorer
from customized_grpo.rewards.matching import crop_to_subject, matched_score
from customized_grpo.rewards.preprocessing import Preprocess
from customized_grpo.rewards.segmenter import TextSegmenter, words_of
from customized_grpo.toybox.export import export_manifest
from customized_grpo.training.choices import check_words
from customized_grpo.training.parts import build_data


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SegmenterConfig:
    folder = tmp_path_factory.mktemp("segmenter")
    detector = tiny_segmenter.save_detector(folder / "detector")
    cutter = tiny_segmenter.save_cutter(folder / "cutter")
    return SegmenterConfig(detector=str(detector), cutter=str(cutter), min_score=0.9)


@pytest.fixture(scope="module")
def segmenter(config: SegmenterConfig) -> TextSegmenter:
    return TextSegmenter.load(config)


def rows(count: int = 2, **meta: Any) -> ScoringBatch:
    batch = tiny.make_batch(count)
    return dataclasses.replace(batch, image_masks=None, meta=[{"id": "r", "class": "toy", **meta}] * count)


def test_boxes_and_masks_are_those_of_the_models(segmenter: TextSegmenter) -> None:
    image = tiny.random_image(0)
    found = segmenter.find(image, "a toy.")
    inputs = segmenter.detector_processor(images=[to_pil(image)], text="a toy.", return_tensors="pt")
    with torch.no_grad():
        outputs = segmenter.detector(**inputs)
    scores = outputs.logits.sigmoid().amax(-1)[0]
    assert 1 < len(found.boxes) == int((scores > 0.9).sum()) < 10
    centre_x, centre_y, width, height = outputs.pred_boxes[0, scores.argmax()].tolist()
    best = [centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2]
    torch.testing.assert_close(found.boxes[0], 64 * torch.tensor(best), atol=1e-3, rtol=1e-4)
    assert found.masks.shape == (len(found.boxes), 64, 64) and found.masks.dtype == torch.bool
    assert found.union.shape == (1, 64, 64)
    assert torch.equal(found.union[0] > 0, found.masks.any(0)) and 0 < found.union.mean() < 1


def test_a_batch_gets_the_masks_of_its_images_one_by_one(segmenter: TextSegmenter) -> None:
    batch = rows()
    found = segmenter.with_masks(batch)
    assert found.image_masks is not None and found.image_masks.shape == (2, 1, 64, 64)
    assert found.image_instances is not None
    for row in range(2):
        alone = segmenter.find(batch.images[row], "toy.")
        assert torch.equal(found.image_masks[row], alone.union)
        assert torch.equal(found.image_instances[row], alone.masks)
    chosen = found.select([1])
    assert chosen.image_instances is not None and torch.equal(
        chosen.image_instances[0], found.image_instances[1]
    )
    joined = ScoringBatch.join([chosen, found])
    assert joined.image_instances is not None and len(joined.image_instances) == 3


def test_an_image_without_a_subject_has_an_empty_mask_and_no_score(segmenter: TextSegmenter) -> None:
    picky = TextSegmenter(
        (segmenter.detector, segmenter.detector_processor),
        (segmenter.cutter, segmenter.cutter_processor),
        min_score=1.0,
    )
    found = picky.find(tiny.random_image(0), "toy.")
    assert len(found.boxes) == 0 and not found.union.any() and found.union.shape == (1, 64, 64)
    assert dino("both", picky).score(rows()).isnan().all()


def dino(segment: Any, segmenter: TextSegmenter | None, *, match: bool = False) -> Scorer:
    reward = DinoReward(tiny.tiny_dino(), Preprocess(72, (64, 64), (0.5, 0.4, 0.3), (0.3, 0.3, 0.3)), segment)
    reward.match = match
    return Scorer([InlineExecutor(reward)], ["stop"], segmenter=segmenter)


def test_segment_both_scores_what_the_mask_shows(segmenter: TextSegmenter) -> None:
    batch = rows()
    masks = torch.stack([segmenter.find(image, "toy.").union for image in batch.images])
    with_masks = dataclasses.replace(batch, image_masks=masks)
    expected = dino("both", None).score(with_masks)
    assert torch.equal(dino("both", segmenter).score(batch), expected)
    assert not torch.equal(expected, dino("reference", None).score(batch))
    assert "masks" in dino("both", segmenter).fingerprints()[0]
    assert "masks" not in dino("reference", segmenter).fingerprints()[0]


def test_words_are_the_class_or_the_subject_without_digits() -> None:
    assert words_of({"class": "Corgi dog", "subject": "x"}) == "corgi dog."
    assert words_of({"subject": "red_backpack2"}) == "red backpack."
    assert words_of({"class": ["dog", "a red. hat"]}) == "dog. a red hat."
    with pytest.raises(UserError, match="row 'r' does not say what its subject is"):
        words_of({"id": "r", "subject": "12"})
    # a row without a subject is one of its own, under its id
    with pytest.raises(UserError, match="row 'beach-1' does not say what its subject is"):
        words_of({"id": "beach-1", "subject": "beach-1"})
    assert words_of({"id": "beach-1", "subject": "beach-1", "class": "dog"}) == "dog."


def test_rows_without_words_are_refused_at_the_start_unless_nobody_looks_there(tmp_path: Path) -> None:
    manifest = export_manifest(tmp_path / "tb", 2, 0)
    items = [json.loads(line) for line in manifest.read_text().splitlines()]
    items[0] = items[0] | {"subject": None, "meta": {}}
    items[1] = items[1] | {"subject": None, "meta": {"rewards": ["clip_t"]}}
    manifest.write_text("".join(json.dumps(item) + "\n" for item in items))
    config = load_config("toybox-smoke", [f"data={{kind: manifest, train: {manifest}}}"])
    rows = build_data(config).train
    with pytest.raises(UserError) as error:
        check_words(rows, (), ["dino"], judged=False)
    assert error.value.message.count("does not say what its subject is") == 1
    assert repr(items[0]["id"]) in error.value.message
    check_words(rows, (), [], judged=True)
    held_out = [Example("a", "p", (), None, None, "a"), Example("b", "p", (), None, None, "dog")]
    with pytest.raises(UserError, match="no words for 1 rows"):
        check_words(rows, held_out, [], judged=True)


def test_nothing_is_looked_for_where_no_reward_asks(segmenter: TextSegmenter) -> None:
    batch = rows(2)
    meta = [{"id": "r", "subject": "r", "rewards": ["other"]}, {"id": "s", "class": "toy"}]
    batch = dataclasses.replace(batch, meta=meta)
    seen: list[ScoringBatch] = []

    def keep(batch: ScoringBatch) -> torch.Tensor:
        seen.append(batch)
        return torch.zeros(len(batch))

    rewards = [InlineExecutor(FunctionReward(name, "identity", keep)) for name in ("looking", "other")]
    Scorer(rewards, ["stop"] * 2, segmenter=segmenter, segmented=[True, False]).score(batch)
    (of_looking, of_other) = seen
    assert of_looking.image_instances is not None and len(of_looking.image_instances[0]) > 0
    assert of_other.image_instances is not None and len(of_other.image_instances[0]) == 0


def test_a_box_in_which_nothing_is_cut_out_is_no_subject(
    segmenter: TextSegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = tiny.random_image(0)
    whole = segmenter.find(image, "toy.")
    processor = segmenter.cutter_processor
    original = processor.post_process_masks

    def without_the_first(*args: Any) -> list[torch.Tensor]:
        (masks,) = original(*args)
        masks[0] = False
        return [masks]

    monkeypatch.setattr(processor, "post_process_masks", without_the_first)
    found = segmenter.find(image, "toy.")
    assert torch.equal(found.masks, whole.masks[1:]) and torch.equal(found.boxes, whole.boxes[1:])


# Several subjects


def test_each_reference_is_matched_with_another_subject() -> None:
    references = torch.eye(4)[:2]
    near_both = torch.tensor([0.8, 0.6, 0.0, 0.0])
    near_first = torch.tensor([0.6, 0.0, 0.8, 0.0])
    # the first subject is the nearest of both references, but can be one of them only: .6 + .6 beats .8 + 0
    assert matched_score(torch.stack([near_both, near_first]), references) == pytest.approx((0.6 + 0.6) / 2)
    assert matched_score(near_both[None], references) == pytest.approx(0.8 / 2)
    assert matched_score(
        torch.stack([references[1], near_first, references[0]]), references
    ) == pytest.approx(1)
    assert torch.tensor(matched_score(torch.zeros(0, 4), references)).isnan()


def test_a_subject_is_seen_cut_out_and_from_near_by() -> None:
    image = torch.rand(3, 40, 60)
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[10:20, 5:25] = True
    neutral = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    seen = crop_to_subject(image, mask, neutral)
    assert seen.shape == (3, 24, 24)
    assert torch.equal(seen[:, 7:17, 2:22], image[:, 10:20, 5:25])
    assert torch.equal(seen[:, :7], neutral.expand(3, 7, 24))
    assert crop_to_subject(image, torch.zeros_like(mask), neutral).shape == (3, 72, 72)


def test_a_matching_reward_scores_the_subjects_whatever_their_order_and_place() -> None:
    first, second = tiny.random_image(1, 20, 20), tiny.random_image(2, 20, 20)
    image = torch.full((3, 64, 64), 0.5)
    image[:, 2:22, 40:60] = first
    image[:, 40:60, 2:22] = second
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, 40:60, 2:22] = True
    masks[1, 2:22, 40:60] = True
    batch = ScoringBatch(
        images=image[None],
        prompts=["p"],
        references=[[first, second]],
        reference_masks=[[torch.ones(1, 20, 20)] * 2],
        image_masks=None,
        meta=[{"id": "r"}],
        image_instances=[masks],
    )
    scorer = dino("reference", None, match=True)
    assert scorer.score(batch).item() == pytest.approx(1, abs=1e-3)
    swapped = dataclasses.replace(batch, references=[[second, first]], image_instances=[masks.flip(0)])
    assert scorer.score(swapped).item() == pytest.approx(1, abs=1e-3)
    one = dataclasses.replace(batch, image_instances=[masks[:1]])
    assert scorer.score(one).item() == pytest.approx(0.5, abs=1e-3)
    nothing = dataclasses.replace(batch, image_instances=[masks[:0]])
    assert scorer.score(nothing).isnan().all()
    with pytest.raises(UserError, match="options.match needs the subjects"):
        scorer.score(dataclasses.replace(batch, image_instances=None))
    assert scorer.fingerprints()[0]["match"] is True


def test_noise_around_a_mask_is_no_part_of_the_subject() -> None:
    subject = tiny.random_image(1, 20, 20)
    photo = torch.full((3, 64, 64), 0.9)
    photo[:, 2:22, 40:60] = subject
    mask = torch.full((1, 64, 64), 4 / 255)  # as a JPEG leaves it
    mask[:, 2:22, 40:60] = 1.0
    batch = ScoringBatch(
        images=photo[None],
        prompts=["p"],
        references=[[photo]],
        reference_masks=[[mask]],
        image_masks=None,
        meta=[{"id": "r"}],
        image_instances=[mask > 0.5],
    )
    assert dino("reference", None, match=True).score(batch).item() == pytest.approx(1, abs=1e-4)


# Recipes


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rewards.dino.segment=both"], "segment: both or options.match (dino) needs masks of the images"),
        (["rewards.dino.options={match: true}"], "segment: both or options.match (dino) needs masks"),
        (["segmenter={}"], "segmenter: no reward or judge has segment: both or options.match"),
        (["segmenter={min_score: 2}", "rewards.dino.segment=both"], "segmenter.min_score"),
    ],
)
def test_a_recipe_names_a_segmenter_where_one_is_needed_and_nowhere_else(
    overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError) as error:
        load_config("toybox-smoke", overrides)
    assert message in error.value.message


def test_a_recipe_with_a_segmenter_loads() -> None:
    config = load_config("toybox-smoke", ["segmenter={}", "rewards.dino.segment=both"])
    assert config.segmenter is not None and config.segmenter.cutter == "facebook/sam-vit-base"
    assert RewardConfig(name="dino", options={"match": True})
