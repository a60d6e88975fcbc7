from __future__ import annotations

import pytest
import torch

from customized_grpo.config import load_config
from customized_grpo.errors import UserError
from customized_grpo.policies.base_files import fingerprint_base
from customized_grpo.policies.checkpoint_files import read_architecture
from customized_grpo.policies.loading import load_policy
from customized_grpo.policies.policy import Policy
from customized_grpo.rollout.ode import sample_images
from customized_grpo.seeding import generator
from customized_grpo.two_scale.judging import TwoScaleJudges
from customized_grpo.two_scale.source import rows

MODEL = load_config("two-scale").model


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy(MODEL, seed=0)


def test_the_base_knows_held_out_toys_as_often_as_it_was_taught(policy: Policy) -> None:
    examples = rows(held_out=True) * 6
    encoded = policy.encode([e.prompt for e in examples], [e.references for e in examples], 16, 16)
    generators = [generator(0, "test", index) for index in range(len(examples))]
    images = sample_images(policy, encoded, generators, policy.sigmas(10, 4), 600)
    columns = TwoScaleJudges().columns(images, examples)
    shares = {name: float(values.mean()) for name, values in columns.items()}
    assert shares["judge/prompt"] == pytest.approx(0.6, abs=0.08)
    assert shares["judge/identity"] == pytest.approx(0.55, abs=0.08)
    # every image shows one of the four kinds of pairs, none a mixture
    assert shares["mode/other"] < 0.02


def test_noise_levels_are_equal_steps(policy: Policy) -> None:
    torch.testing.assert_close(policy.sigmas(10, 4), torch.linspace(1, 0, 11))


def test_its_files_are_fingerprinted_and_it_is_no_pipeline_of_diffusers() -> None:
    assert any(name.endswith("safetensors") for name in fingerprint_base(MODEL))
    with pytest.raises(UserError, match="no pipeline of diffusers"):
        read_architecture(MODEL)


@pytest.mark.parametrize("change", [{"family": "flux1"}, {"path": "toybox"}])
def test_a_base_and_a_family_that_do_not_fit_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(UserError, match="does not draw with"):
        load_policy(MODEL.model_copy(update=change), seed=0)


def test_a_prompt_of_another_world_is_refused(policy: Policy) -> None:
    with pytest.raises(UserError, match="names no scene"):
        policy.encode(["a dog on the moon"], [rows(held_out=True)[0].references], 16, 16)
