"""`train.algorithm`: what a setting of another algorithm is told, and what an override takes out."""

from __future__ import annotations

import pytest

from customized_grpo.config import load_config
from customized_grpo.errors import UserError

NFT = "train.algorithm=nft"
AWM = "train.algorithm=awm"
ODE = ("rollout.sampler=ode", "rollout.eta=0")


@pytest.mark.parametrize(
    ("algorithm", "setting"),
    [
        (NFT, "train.clip_range=0.2"),
        (AWM, "train.clip_range=0.2"),
        (NFT, "train.ratio_normalisation=true"),
        (AWM, "train.trained_fraction=0.5"),
        (NFT, "rollout.sde_window.size=2"),
        (NFT, "train.awm.clip_range=0.5"),
        (AWM, "train.nft.beta=0.1"),
        ("train.algorithm=grpo", "train.nft.beta=0.1"),
        ("train.algorithm=grpo", "train.awm.weighting=sigma"),
        ("train.algorithm=grpo", "train.forward.levels=2"),
        ("train.algorithm=grpo", "train.kl_reference=old"),
    ],
)
def test_a_setting_that_the_algorithm_ignores_is_refused_by_name(algorithm: str, setting: str) -> None:
    key = setting.partition("=")[0]
    with pytest.raises(UserError) as refused:
        load_config("two-scale", [algorithm, setting])
    message = str(refused.value)
    assert any(f"  {'.'.join(key.split('.')[:count])}: " in message for count in (2, 3)), message


@pytest.mark.parametrize("algorithm", [NFT, AWM])
def test_choosing_the_algorithm_takes_out_what_the_recipe_sets_for_another(algorithm: str) -> None:
    assert load_config("two-scale").train.trained_fraction == 0.45
    config = load_config("two-scale", [algorithm])
    assert config.train.trained_fraction == 0.6, "the default, which nothing reads"
    assert (config.rollout.sampler, config.train.learning_rate) == ("dance", 1e-3)
    back = load_config("two-scale", [algorithm, "train.forward.levels=2"])
    assert back.train.forward.levels == 2


def test_going_back_to_grpo_takes_out_what_only_the_others_have(tmp_path) -> None:  # type: ignore[no-untyped-def]
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: two-scale\ntrain: {algorithm: nft, nft: {beta: 0.1}, forward: {levels: 2}}\n")
    assert load_config(str(recipe)).train.nft.beta == 0.1
    config = load_config(str(recipe), ["train.algorithm=grpo"])
    assert (config.train.nft.beta, config.train.forward.levels) == (1.0, 4)


def test_a_rollout_without_noise_is_for_algorithms_that_need_none() -> None:
    with pytest.raises(UserError, match="leaves nothing to train"):
        load_config("two-scale", [*ODE, "rollout.shared_noise=false"])
    assert load_config("two-scale", [NFT, *ODE, "rollout.shared_noise=false"]).rollout.eta == 0


@pytest.mark.parametrize("sampler", ["ode", "dance"])
def test_samples_that_would_all_be_equal_are_refused(sampler: str) -> None:
    with pytest.raises(UserError, match=r"rollout\.shared_noise=false"):
        load_config("two-scale", [NFT, f"rollout.sampler={sampler}", "rollout.eta=0"])
