from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import BitImageProcessorPil, CLIPImageProcessorPil

import tiny_rewards as tiny
from customized_grpo.errors import UserError
from customized_grpo.rewards import ScoringBatch
from customized_grpo.rewards.clip import ClipImageReward, ClipTextReward
from customized_grpo.rewards.dino import DinoReward


def pil(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy())


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_clip(tmp_path_factory.mktemp("clip"))


def dino_features(folder: Path, images: list[Image.Image]) -> np.ndarray[Any, Any]:
    """Independently: transformers' own processor and model, class token, numpy for the rest."""
    from transformers import Dinov2Model

    processor, model = (
        BitImageProcessorPil.from_pretrained(folder),
        Dinov2Model.from_pretrained(folder).eval(),
    )
    with torch.no_grad():
        output = model(**processor(images, return_tensors="pt")).last_hidden_state[:, 0]
    features = output.double().numpy()
    return features / np.linalg.norm(features, axis=1, keepdims=True)


@pytest.mark.parametrize("size", [(64, 64), (96, 72), (50, 130)])
def test_dino_without_masks_equals_an_independent_computation(
    dino_folder: Path, size: tuple[int, int]
) -> None:
    batch = tiny.make_batch(3, *size, references=2)
    scores = DinoReward.load(str(dino_folder), segment="none").score(batch)
    images = dino_features(dino_folder, [pil(image) for image in batch.images])
    for row, references in enumerate(batch.references):
        cosines = dino_features(dino_folder, [pil(image) for image in references]) @ images[row]
        assert scores[row].item() == pytest.approx(cosines.mean(), abs=2e-6)
    assert scores.std() > 1e-3  # the comparison can fail


def test_dino_cuts_out_the_reference_and_not_the_image(dino_folder: Path) -> None:
    batch = tiny.make_batch(2)
    scores = DinoReward.load(str(dino_folder)).score(batch)
    neutral = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    cut = [image * tiny.disc() + neutral * (1 - tiny.disc()) for (image,) in batch.references]
    images = dino_features(dino_folder, [pil(image) for image in batch.images])
    references = dino_features(dino_folder, [pil(image) for image in cut])
    assert scores.tolist() == pytest.approx((images * references).sum(1).tolist(), abs=2e-6)


def other_background(image: Tensor, mask: Tensor) -> Tensor:
    return image * mask + (1 - image) * (1 - mask)


def test_what_is_outside_a_mask_does_not_count(dino_folder: Path) -> None:
    batch, mask = tiny.make_batch(2), tiny.disc()
    references = [[other_background(image, mask) for image in images] for images in batch.references]
    images = torch.stack([other_background(image, mask) for image in batch.images])
    changed_references = dataclasses.replace(batch, references=references)
    changed_images = dataclasses.replace(batch, images=images)
    reference, both, none = (
        DinoReward.load(str(dino_folder), segment=s) for s in ("reference", "both", "none")
    )

    def same(reward: DinoReward, other: ScoringBatch) -> bool:
        return bool(torch.allclose(reward.score(batch), reward.score(other), atol=1e-6))

    assert [same(reward, changed_references) for reward in (reference, both, none)] == [True, True, False]
    assert [same(reward, changed_images) for reward in (reference, both, none)] == [False, True, False]


def test_a_literal_copy_scores_one_without_masks_and_less_with_the_reference_cut_out(
    dino_folder: Path,
) -> None:
    batch = tiny.make_batch(2)
    copied = dataclasses.replace(batch, images=torch.stack([images[0] for images in batch.references]))
    assert DinoReward.load(str(dino_folder), segment="none").score(copied).tolist() == pytest.approx(
        [1, 1], abs=1e-6
    )
    assert (DinoReward.load(str(dino_folder)).score(copied) < 0.999).all()


@pytest.mark.parametrize(
    ("segment", "change", "text"),
    [
        ("reference", {"reference_masks": None}, r"sample 0 \(row 'row-0'\) has 1 references, 0 masks"),
        ("both", {"reference_masks": None}, "masks"),
        ("both", {"image_masks": None}, "segment: both needs masks"),
        ("reference", {"reference_masks": [[torch.ones(1, 64, 64)], []]}, "row-1"),
        (
            "reference",
            {"reference_masks": [[torch.ones(1, 64, 64)], [torch.ones(1, 32, 64)]]},
            r"row-1.*32, 64",
        ),
        ("reference", {"reference_masks": [[torch.zeros(1, 64, 64)]] * 2}, "empty"),
        ("none", {"references": [[torch.rand(3, 64, 64)], []]}, "row-1.*no reference"),
    ],
)
def test_a_missing_mask_or_reference_is_an_error_with_the_row(
    dino_folder: Path, segment: Any, change: dict[str, Any], text: str
) -> None:
    batch = dataclasses.replace(tiny.make_batch(2), **change)
    with pytest.raises(UserError, match=text):
        DinoReward.load(str(dino_folder), segment=segment).score(batch)


def test_without_segmentation_no_mask_is_needed(dino_folder: Path) -> None:
    batch = dataclasses.replace(tiny.make_batch(2), reference_masks=None, image_masks=None)
    assert DinoReward.load(str(dino_folder), segment="none").score(batch).isfinite().all()


def test_an_image_without_a_subject_is_not_scored(dino_folder: Path) -> None:
    masks = torch.stack([tiny.disc(), torch.zeros(1, 64, 64)])
    batch = dataclasses.replace(tiny.make_batch(2), image_masks=masks)
    assert DinoReward.load(str(dino_folder), segment="both").score(batch).isnan().tolist() == [False, True]


def test_references_of_many_sizes_are_scored_as_one_by_one(dino_folder: Path) -> None:
    sizes = [[(64, 64), (80, 96)], [(80, 96)], [(64, 64), (40, 50), (64, 64)]]
    references = [
        [tiny.random_image(7 * i + j, *s) for j, s in enumerate(row)] for i, row in enumerate(sizes)
    ]
    batch = dataclasses.replace(tiny.make_batch(3), references=references, reference_masks=None)
    together = DinoReward.load(str(dino_folder), segment="none").score(batch)
    for row in range(3):
        alone = DinoReward.load(str(dino_folder), segment="none").score(batch.select([row]))
        assert torch.allclose(alone, together[row], atol=1e-6)


def test_a_reference_is_encoded_once_however_often_it_comes(dino_folder: Path) -> None:
    reward = DinoReward.load(str(dino_folder))
    encoded: list[int] = []
    reward.encoder.model.register_forward_hook(
        lambda _module, _args, kwargs, _out: encoded.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    batch = tiny.make_batch(3)
    group = batch.select([0, 0, 0, 1, 1, 1])
    first, second = reward.score(group), reward.score(group)
    assert encoded == [6, 1, 1, 6]  # images, two distinct references, images
    assert torch.equal(first, second)


def test_the_same_reference_with_another_mask_is_another_reference(dino_folder: Path) -> None:
    batch, reward = tiny.make_batch(2), DinoReward.load(str(dino_folder))
    whole = dataclasses.replace(batch, reference_masks=[[torch.ones(1, 64, 64)]] * 2)
    assert not torch.allclose(reward.score(batch), reward.score(whole), atol=1e-6)


def test_clip_text_equals_an_independent_computation(clip_folder: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    batch = tiny.make_batch(3, 96, 70)
    scores = ClipTextReward.load(str(clip_folder)).score(batch)
    model, tokenizer = (
        CLIPModel.from_pretrained(clip_folder).eval(),
        CLIPTokenizer.from_pretrained(clip_folder),
    )
    processor = CLIPImageProcessorPil.from_pretrained(clip_folder)
    tokens = tokenizer(batch.prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        pixels = processor([pil(image) for image in batch.images], return_tensors="pt").pixel_values
        output = model(pixel_values=pixels, **tokens)
    expected = output.logits_per_image.diagonal() / model.logit_scale.exp()
    assert torch.allclose(scores, expected, atol=2e-6)
    assert scores.std() > 1e-3


def test_clip_image_equals_an_independent_computation(clip_folder: Path) -> None:
    from transformers import CLIPModel

    batch = tiny.make_batch(3, 96, 70)
    scores = ClipImageReward.load(str(clip_folder), segment="none").score(batch)
    model, processor = (
        CLIPModel.from_pretrained(clip_folder).eval(),
        CLIPImageProcessorPil.from_pretrained(clip_folder),
    )
    images = [*batch.images, *(photos[0] for photos in batch.references)]
    with torch.no_grad():
        pooled = [
            model.visual_projection(
                model.vision_model(**processor([pil(image)], return_tensors="pt")).pooler_output
            )
            for image in images
        ]
    features = torch.nn.functional.normalize(torch.cat(pooled), dim=-1)
    assert torch.allclose(scores, (features[:3] * features[3:]).sum(1), atol=2e-6)


def test_a_prompt_is_encoded_once_and_too_long_ones_are_cut(clip_folder: Path) -> None:
    reward = ClipTextReward.load(str(clip_folder))
    encoded: list[int] = []
    reward.model.text_model.register_forward_hook(
        lambda _module, _args, kwargs, _out: encoded.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    batch = tiny.make_batch(2).select([0, 0, 1])
    assert torch.equal(reward.score(batch), reward.score(batch)) and encoded == [1, 1]
    long = dataclasses.replace(batch, prompts=["a fox " * 100] * 3)
    assert reward.score(long).isfinite().all()


def test_the_text_limit_is_where_more_words_change_nothing(clip_folder: Path) -> None:
    reward = ClipTextReward.load(str(clip_folder))
    limit = reward.text_limit()
    batch = tiny.make_batch(1)

    def score(prompt: str) -> float:
        return float(reward.score(dataclasses.replace(batch, prompts=[prompt])))

    words = 1
    while limit.count(["a " * words])[0] < limit.limit:
        words += 1
    fits = "a " * words
    assert score(fits) == score(fits + "a fox") and limit.count([fits + "a"])[0] > limit.limit
    assert score(fits) != score("a " * (words - 1))


def test_scores_can_take_part_in_a_loss(dino_folder: Path, clip_folder: Path) -> None:
    batch, weight = tiny.make_batch(2), torch.ones(2, requires_grad=True)
    for reward in (DinoReward.load(str(dino_folder)), ClipTextReward.load(str(clip_folder))):
        (reward.score(batch) * weight).sum().backward()
    assert weight.grad is not None


def test_scores_are_fp32_inside_a_callers_autocast(dino_folder: Path, clip_folder: Path) -> None:
    batch = tiny.make_batch(2)
    for load in (lambda: DinoReward.load(str(dino_folder)), lambda: ClipTextReward.load(str(clip_folder))):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = load().score(batch)
        assert torch.equal(inside, load().score(batch))


def test_a_fingerprint_follows_weights_preprocessing_and_segment(dino_folder: Path, tmp_path: Path) -> None:
    base = DinoReward.load(str(dino_folder))
    fingerprints = [
        base.fingerprint(),
        DinoReward.load(str(dino_folder), segment="none").fingerprint(),
        DinoReward.load(str(tiny.save_dino(tmp_path, seed=1))).fingerprint(),
        DinoReward(
            base.encoder.model, dataclasses.replace(base.encoder.preprocess, crop=(48, 48))
        ).fingerprint(),
    ]
    assert fingerprints[0] == DinoReward.load(str(dino_folder)).fingerprint()
    assert all(fingerprints[0] != other for other in fingerprints[1:])
