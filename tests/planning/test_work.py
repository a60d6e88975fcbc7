from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.config import load_config
from customized_grpo.errors import UserError
from customized_grpo.planning import work
from customized_grpo.planning.duration import UNPACKING_BYTES, dequantised_bytes


def test_the_released_recipe_costs_972_passes_a_prompt() -> None:
    config = load_config("flux1-uno")
    assert work.passes(config, 14, 1).iteration == 12 * 25 + 12 * 14 * 4 == 972


def test_a_window_of_three_of_ten_steps_costs_264() -> None:
    assert work.passes(load_config("flux1-kontext"), 3, 1).iteration == 12 * 10 + 12 * 3 * 4 == 264


def test_steps_before_a_window_count_once_a_group() -> None:
    assert work.passes(load_config("flux1-kontext"), 3, 1, n_shared=4).rollout == 12 * 6 + 4


def test_without_checkpointing_a_backward_pass_counts_twice() -> None:
    config = load_config("flux1-kontext", ["model.gradient_checkpointing=false"])
    assert work.passes(config, 2, 1).iteration == 12 * 10 + 12 * 2 * 3 == 192


def test_guidance_doubles_and_epochs_and_the_kl_term_add() -> None:
    config = load_config("flux1-kontext", ["train.inner_epochs=2", "train.kl_weight=0.01"])
    passes = work.passes(config, 3, 2)
    assert (passes.rollout, passes.update) == (2 * 120, 2 * 2 * 12 * 3 * 5)
    assert passes.evaluation == 2 * 10


@pytest.mark.parametrize(
    ("settings", "models"),
    [
        (["train.kl_weight=0"], 1),
        (["train.kl_weight=0.1"], 2),
        (["train.kl_weight=0.1", "train.kl_reference=old"], 1),
    ],
)
def test_nft_asks_the_old_policy_at_every_level_and_the_kl_reference_unless_it_is_that(
    settings: list[str], models: int
) -> None:
    config = load_config("flux1-kontext", ["train.algorithm=nft", *settings])
    # forward, backward with checkpointing, and the other models
    assert work.passes(config, 6, 1).update == 12 * 6 * (1 + 3 + models)


@pytest.mark.parametrize(("sampler", "calls"), [("ode", 10), ("heun", 19), ("dpmpp_2m", 10)])
def test_a_step_of_heun_takes_two_velocities_except_the_last(sampler: str, calls: int) -> None:
    settings = ["train.algorithm=nft", f"rollout.sampler={sampler}", "rollout.eta=0"]
    settings += ["rollout.shared_noise=false", "model.quantisation=nf4", "rollout.batch_size=12"]
    config = load_config("flux1-kontext", settings)
    assert config.rollout.steps == 10
    assert work.passes(config, 4, 2).rollout == 2 * 12 * calls
    batches = work.batches(config, 4, 1)
    update = batches.optimizer_steps * batches.micro_batches_per_step * 4  # with the old policy
    unpacked = dequantised_bytes(config, batches, 1, 1) / UNPACKING_BYTES["nf4"]
    assert unpacked == batches.rollout_batches * calls + update


def test_samples_are_divided_among_processes_updates_and_micro_batches() -> None:
    settings = ["train.prompts_per_iteration=16", "train.updates_per_iteration=2", "rollout.batch_size=10"]
    settings.append("train.micro_batch_size=12")
    divided = work.batches(load_config("flux1-kontext", settings), 3, 4)
    assert (divided.samples, divided.prompts_per_process, divided.samples_per_process) == (192, 4, 48)
    assert divided.rollout_batches == 5
    assert (divided.optimizer_steps, divided.samples_per_step) == (2, 96)
    assert divided.micro_batches_per_step == 3 * 2  # 24 samples a process in batches of 12, for three steps


def test_further_prompts_of_dynamic_sampling_count_as_if_one_process_drew_them_all() -> None:
    settings = ["train.prompts_per_iteration=8", "train.group_size=12", "rollout.batch_size=10"]
    settings += ["model.quantisation=nf4"]
    without = load_config("flux1-kontext", settings)
    config = load_config("flux1-kontext", [*settings, "train.dynamic_sampling.budget=5"])
    divided = [work.batches(recipe, 3, 2) for recipe in (without, config)]
    assert [batches.further_prompts for batches in divided] == [0, 5]
    unpacked = [
        dequantised_bytes(recipe, batches, 1, 1) / UNPACKING_BYTES["nf4"]
        for recipe, batches in zip((without, config), divided, strict=True)
    ]
    assert unpacked[1] - unpacked[0] == 5 * 2 * config.rollout.steps  # a group takes two batches


def test_prompts_that_cannot_be_shared_are_refused_with_a_number_that_can() -> None:
    with pytest.raises(UserError, match="multiple of 3"):
        work.batches(load_config("flux1-kontext"), 3, 3)


def test_seconds_are_operations_over_speed() -> None:
    assert work.seconds(100, 5 * 10**12, 250) == 2.0


@pytest.mark.parametrize(("kl", "reuse"), [("0.0", "never"), ("0.01", "never"), ("0.0", "auto")])
def test_a_real_iteration_calls_the_transformer_as_often_as_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kl: str, reuse: str
) -> None:
    import torch
    from diffusers import FluxTransformer2DModel

    from customized_grpo.rollout.sampler import plan_steps
    from customized_grpo.training.expected import TIMED_STEPS, timed_samples
    from customized_grpo.training.trainer import train

    samples: Counter[bool] = Counter()
    forward = FluxTransformer2DModel.forward

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        samples[torch.is_grad_enabled()] += len(kwargs["hidden_states"])
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(FluxTransformer2DModel, "forward", counted)
    config = load_config(
        "toybox-smoke",
        [
            f"run.dir={tmp_path / 'run'}",
            "train.iterations=1",
            "rollout.shared_noise=false",  # otherwise a first step that is not trained is drawn once a group
            f"train.kl_weight={kl}",
            f"train.reuse_rollout_graph={reuse}",
        ],
    )
    assert train(config) == 0
    samples[False] -= TIMED_STEPS * timed_samples(config, 1)  # before the first iteration, for its estimate

    plan = plan_steps(config.rollout, config.train.trained_fraction, 0, config.run.seed)
    passes, prompts = work.passes(config, len(plan.trained), 1), config.train.prompts_per_iteration
    held_out, evaluations = 2, 2  # two subjects with a prompt each, before and after
    if reuse == "auto":
        samples[True] -= 1 + 2  # the measurement of a graph
        assert samples[True] == config.train.group_size * len(plan.trained) * prompts
        drawn = passes.rollout * prompts + evaluations * held_out * passes.evaluation
        assert samples.total() == drawn
        return
    base = samples[True] if config.train.kl_weight else 0
    assert passes.update * prompts == 3 * samples[True] + base
    assert samples[False] == passes.rollout * prompts + base + evaluations * held_out * passes.evaluation
