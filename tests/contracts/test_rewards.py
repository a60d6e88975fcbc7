"""What every registered reward promises. Registering one enrols it; helpers/reward_cases.py makes it tiny."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch

from customized_grpo.kinds import KINDS
from customized_grpo.rewards import REWARDS, Reward, score_all
from reward_cases import build_tiny, make_batch


def slow_if_large(name: str) -> object:
    """Return a parameter; lite_t has no tiny weights, and loads its sentence encoder for seconds."""
    return pytest.param(name, marks=pytest.mark.slow) if name == "lite_t" else name


@pytest.fixture(scope="module", params=map(slow_if_large, sorted(REWARDS)))
def reward(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reward]:
    with ExitStack() as stack:
        reward = build_tiny(request.param, tmp_path_factory.mktemp(request.param), stack)
        assert reward.name == request.param
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
