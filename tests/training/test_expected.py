"""The expected time of a run, which is said before its first iteration."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from commands import run_here
from customized_grpo.config import Config, load_config
from customized_grpo.rollout.sampler import Sampler
from customized_grpo.training import expected, trainer
from customized_grpo.training.expected import announce, count_evaluations, passes_of_iteration, timed_samples
from customized_grpo.training.parts import build_engine, open_parts
from same_run import assert_same_run

SHORT = ["train.iterations=2", "evaluation.every=1", "evaluation.samples_per_prompt=1"]


def recipe(*settings: str) -> Config:
    return load_config("two-scale", settings)


def test_an_iteration_is_its_rollout_and_its_update() -> None:
    # 8 groups of 12 samples, 10 steps, of which 4 are trained: forward and twice as much backward
    config = recipe("train.reuse_rollout_graph=never")
    assert (config.train.prompts_per_iteration, config.train.group_size, config.rollout.steps) == (8, 12, 10)
    assert passes_of_iteration(config, 1) == 8 * 12 * (10 + 4 * 3)
    assert passes_of_iteration(config, 2) == 4 * 12 * (10 + 4 * 3)
    # graphs that are kept from the rollout spare the update its forward passes
    assert passes_of_iteration(recipe(), 1) == 8 * 12 * (10 + 4 * 2)


@pytest.mark.parametrize(
    ("iterations", "every", "count"), [(30, 10, 3), (30, 0, 1), (30, 8, 4), (30, 100, 1), (1, 1, 1)]
)
def test_evaluations_are_those_after_the_bases(iterations: int, every: int, count: int) -> None:
    assert count_evaluations(recipe(f"train.iterations={iterations}", f"evaluation.every={every}")) == count


def test_a_sentence_adds_iterations_and_evaluations() -> None:
    config = recipe("train.iterations=100", "evaluation.every=50", "train.reuse_rollout_graph=never")
    sentence = expected.expected(config, 1, step_s=0.01, evaluation_s=30.0)
    # 2112 passes of .01 s are 21.12 s an iteration; 100 of them and 2 evaluations are 2172 s
    assert sentence.startswith(
        "expected time: about 36 min 12 s: 100 iterations of 21 s, 2 evaluations of 30 s"
    )
    without = expected.expected(config, 1, step_s=0.001, evaluation_s=0.0)
    assert "about 3 min 31 s: 100 iterations of 2.1 s; by one timed denoising step" in without
    assert without.endswith("without the rewards")
    more = expected.expected(recipe("train.dynamic_sampling.budget=2"), 1, step_s=0.001, evaluation_s=0.0)
    assert more.endswith("without the rewards and further prompts of dynamic sampling")


def test_the_evaluation_of_the_base_is_said_to_have_compiled_a_compiled_model() -> None:
    config = load_config("toybox", ["model.compile=true"])
    assert "as of the base, which compiled the model too; by" in expected.expected(config, 1, 0.01, 30.0)


def test_a_step_of_heun_counts_twice() -> None:
    nft = ("train.algorithm=nft", "rollout.eta=0", "rollout.shared_noise=false", "train.forward.levels=4")
    update = 4 * (1 + 2 + 1)  # forward, backward, and the old policy
    assert passes_of_iteration(recipe(*nft, "rollout.sampler=ode"), 1) == 8 * 12 * (10 + update)
    assert passes_of_iteration(recipe(*nft, "rollout.sampler=heun"), 1) == 8 * 12 * (19 + update)


def test_the_timed_step_is_one_per_cent_of_a_run_at_most_unless_the_model_is_compiled() -> None:
    long = recipe("train.iterations=1000")
    assert timed_samples(long, 1) == long.rollout.batch_size == 96
    short = recipe("train.iterations=1")
    assert timed_samples(short, 1) == 8  # .01 x 1728 passes, in two steps
    assert (
        timed_samples(short.model_copy(update={"model": short.model.model_copy(update={"compile": True})}), 1)
        == 96
    )


def told(done: int, seconds: float, iterations: int = 10) -> list[str]:
    """Return what is said of a run that has done some iterations."""
    said: list[str] = []
    parts: Any = SimpleNamespace(config=recipe(f"train.iterations={iterations}"))
    state: Any = SimpleNamespace(iteration=done, seconds=seconds)
    example: Any = None
    announce(parts, state, example, 0.0, said.append)
    return said


def test_a_resumed_run_goes_by_what_it_has_done() -> None:
    assert told(4, 40.0) == ["expected time: about 1 min 00 s: 6 iterations left, by the 4 that are done"]
    assert told(10, 40.0) == []


def test_it_is_said_before_the_first_iteration_and_moves_no_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = run_here("train", "two-scale", f"run.dir={tmp_path / 'run'}", *SHORT).stderr
    (sentence,) = re.findall("^expected time: about (.*)$", begun, re.MULTILINE)
    assert "2 iterations of" in sentence and "2 evaluations of" in sentence
    assert begun.index("device:") < begun.index("expected time") < begun.index("iteration 1/2")
    monkeypatch.setattr(trainer, "announce", lambda *_: None)
    silent = run_here("train", "two-scale", f"run.dir={tmp_path / 'silent'}", *SHORT).stderr
    assert "expected time" not in silent
    assert_same_run(tmp_path / "run", tmp_path / "silent")
    monkeypatch.undo()
    resumed = run_here("resume", str(tmp_path / "run"), "train.iterations=3").stderr
    assert "1 iteration left, by the 2 that are done" in resumed


def test_the_step_is_timed_without_its_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    steps: list[int] = []
    transition = Sampler.transition

    def slow(self: Sampler, policy: Any, x: torch.Tensor, *rest: Any, **options: Any) -> Any:
        now[0] += 20.0 if steps else 500.0
        steps.append(len(x))
        return transition(self, policy, x, *rest, **options)

    monkeypatch.setattr(Sampler, "transition", slow)
    monkeypatch.setattr(expected, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    config = recipe()
    with open_parts(config, build_engine(config)) as parts:
        assert expected.time_step(parts, parts.data.train[0], 4) == 5.0
    assert steps == [4, 4]
