"""The presets of published checkpoints: what they promise in their first line."""

from __future__ import annotations

import math
import re
from importlib import resources

import pytest

from customized_grpo.config import Config, load_config, preset_names
from customized_grpo.config.loading import preset_summaries
from customized_grpo.embedded import EMBEDDED
from customized_grpo.planning.dry_run import DryRun
from customized_grpo.planning.duration import CARDS
from customized_grpo.planning.estimate import Planner
from customized_grpo.planning.memory import GIB
from customized_grpo.policies.reference_rule import reference_size_of

pytestmark = pytest.mark.slow

REAL = [name for name in preset_names() if not name.startswith(tuple(EMBEDDED))]


# Settings of the model that a dry run does not depend on: where weights are, and in which form.
PLACEMENT = {
    *("quantisation", "gradient_checkpointing", "text_encoders", "offload_vae", "shard", "compile", "cache"),
    "fuse_lora",
}
DRY_RUNS: dict[str, DryRun] = {}


def planner(config: Config, processes: int = 1) -> Planner:
    """Return a planner; those of one model share its dry run, which takes half a minute."""
    key = f"{config.model.model_dump_json(exclude=PLACEMENT)} {reference_size_of(config)}"
    made = Planner(config, processes=processes, dry_run=DRY_RUNS.get(key))
    DRY_RUNS[key] = made.dry_run
    return made


def text_of(name: str) -> str:
    return (resources.files("customized_grpo.config") / "presets" / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", REAL)
def test_a_preset_fits_the_gpus_it_names(name: str) -> None:
    gib = 24 if name.endswith("-24gb") else 80
    processes = 8 if name.endswith("-8gpu") else 1
    words = {1: "one", 8: "eight"}[processes]
    assert f"{words} {gib} GB" in preset_summaries()[name]
    plan = planner(load_config(name), processes).estimate()
    assert plan.memory.not_counted == ()
    seen_by_torch = {24: CARDS["4090"].gib, 80: CARDS["h100"].gib}[gib]
    assert seen_by_torch is not None and plan.memory.needed <= seen_by_torch * GIB
    assert plan.batches.samples_per_process % load_config(name).rollout.batch_size == 0


@pytest.mark.parametrize("name", REAL)
def test_every_value_says_where_it_comes_from(name: str) -> None:
    lines = [line for line in text_of(name).splitlines() if line and not line.startswith("#")]
    values = [line for line in lines if not re.fullmatch(r"\s*(\w+:|extends: \S+)", line)]
    assert values
    assert [line for line in values if " # " not in line] == []


@pytest.mark.parametrize("name", REAL)
def test_rollout_and_training_use_one_batch_size(name: str) -> None:
    config = load_config(name)
    assert config.rollout.batch_size == config.train.micro_batch_size


def test_the_papers_values_are_in_its_preset() -> None:
    config = load_config("flux1-uno")
    model, rollout, train = config.model, config.rollout, config.train
    assert (model.path, model.options["reference_ids"]) == ("black-forest-labs/FLUX.1-dev", "uno")
    assert model.fuse_lora and model.mu is not None
    assert (model.lora.rank, model.height, model.width, model.guidance) == (512, 512, 512, 3.5)
    assert math.exp(model.mu) == pytest.approx(3)
    assert (rollout.steps, rollout.sampler, rollout.eta, rollout.shared_noise) == (25, "dance", 0.4, True)
    assert (train.group_size, train.trained_fraction, train.clip_range) == (12, 0.6, 1e-4)
    assert (train.learning_rate, train.weight_decay, train.max_grad_norm) == (2e-5, 1.1e-4, 1.0)
    assert (train.kl_weight, train.ema_decay) == (0.0, None)
    assert [reward.name for reward in config.rewards] == ["dino", "hpsv3"]
    assert (config.advantage.name, config.advantage.options, config.schedule.name) == (
        "sars",
        {"gamma": 0.4},
        "tdw",
    )


def test_advice_is_the_setting_that_was_missing_and_nothing_else() -> None:
    config = load_config("flux1-kontext", ["model.gradient_checkpointing=false"])
    advice = planner(config).find_fit(80)
    assert advice.fits and advice.overrides == ("model.gradient_checkpointing=true",)
    told = load_config("flux1-kontext", ["model.gradient_checkpointing=false", *advice.overrides])
    assert planner(told).estimate().memory == advice.memory


def test_what_cannot_fit_is_not_promised() -> None:
    advice = planner(load_config("flux1-uno")).find_fit(24)
    assert not advice.fits
    assert "model.quantisation=nf4" in advice.overrides
