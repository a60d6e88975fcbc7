"""Dynamic sampling: the prompts of an iteration against the stream of prompts walked by hand, and resume."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

import own_rewards
from children import in_child
from customized_grpo import extensions
from customized_grpo.algorithms.samplers import log_prob
from customized_grpo.config import Config, load_config
from customized_grpo.data.mixture import draw_rows
from customized_grpo.pages.run_data import read_run
from customized_grpo.pages.run_page import render_run_page
from customized_grpo.reporting.metrics import read_metrics
from customized_grpo.rollout.batches import sample_conditioning
from customized_grpo.training import trainer
from customized_grpo.training.drawing import Drawing, Groups
from customized_grpo.training.metrics import Clock
from customized_grpo.two_scale.source import rows
from own_rewards import is_dull
from same_run import assert_same_run

PROMPTS, GROUP, ITERATIONS = 6, 3, 4
SMALL = (
    f"train.prompts_per_iteration={PROMPTS}",
    f"train.group_size={GROUP}",
    f"train.iterations={ITERATIONS}",
    "rewards=[{name: 'own_rewards:sometimes'}]",
    "rollout.steps=3",
    "rollout.batch_size=4",  # cuts groups
    "evaluation.every=0",
    "evaluation.samples_per_prompt=1",
    "checkpoint.every=1",
)
TRAIN = rows(held_out=False)


@pytest.fixture(autouse=True)
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(extensions.TRUST, "own_rewards")
    monkeypatch.setattr(own_rewards, "SCORED", [])


def make(folder: Path, *overrides: str) -> Config:
    return load_config("two-scale", [*SMALL, f"run.dir={folder}", *overrides])


@dataclass
class Walk:
    """What a training draws, walked along the stream of prompts."""

    drawn: list[list[str]] = field(default_factory=list)
    kept: list[list[str]] = field(default_factory=list)


def walk(budget: int) -> Walk:
    """Take prompts from the stream; while some are dull and the budget lasts, one more for each of them."""
    stream = [TRAIN[row].id for row in draw_rows(TRAIN, 0, 2_000, 0)]
    walked = Walk()
    for _ in range(ITERATIONS):
        places, stream = stream[:PROMPTS], stream[PROMPTS:]
        drawn = list(places)
        left = budget
        while left and any(map(is_dull, places)):
            for place, row in enumerate(list(places)):
                if is_dull(row) and left:
                    places[place] = stream.pop(0)
                    drawn.append(places[place])
                    left -= 1
        walked.drawn.append(drawn)
        walked.kept.append(places)
    return walked


@pytest.mark.parametrize("algorithm", ["grpo", "nft"])
@pytest.mark.parametrize("budget", [1, 3, 50])
def test_an_iteration_takes_further_prompts_for_those_that_teach_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int, algorithm: str
) -> None:
    trained: list[Groups] = []
    update = trainer.Trainer.update

    def remember(self: trainer.Trainer, groups: Groups, *arguments: object) -> object:
        trained.append(groups)
        return update(self, groups, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer.Trainer, "update", remember)
    run = tmp_path / "run"
    overrides = (f"train.algorithm={algorithm}", f"train.dynamic_sampling.budget={budget}")
    assert trainer.train(make(run, *overrides)) == 0
    expected = walk(budget)
    held_out = {example.id for example in rows(held_out=True)}
    scored = [row for row in own_rewards.SCORED if row not in held_out]
    assert scored == [row for drawn in expected.drawn for row in drawn for _ in range(GROUP)]
    assert [[TRAIN[row].id for row in groups.rows] for groups in trained] == expected.kept
    stayed = [[place for place, row in enumerate(kept) if is_dull(row)] for kept in expected.kept]
    assert [groups.idle for groups in trained] == stayed
    lines = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "train"]
    for line, drawn, idle in zip(lines, expected.drawn, stayed, strict=True):
        counts = (line["sampling/drawn"], line["sampling/dropped"], line["sampling/stayed"])
        assert counts == (len(drawn), len(drawn) - PROMPTS, len(idle))
        assert line["sampling/budget"] == budget
        assert line["health/zero_std_groups"] == pytest.approx(len(idle) / PROMPTS)
    n_drawn, n_stayed = sum(map(len, expected.drawn)), sum(map(len, stayed))
    assert json.loads((run / "summary.json").read_text())["rollouts"] == GROUP * n_drawn
    dropped = n_drawn - PROMPTS * ITERATIONS
    assert dropped > 0 and (n_stayed == 0) == (budget == 50), "the cases came up"
    fact = f"{dropped} of {n_drawn} groups taught nothing and were dropped, with a budget of {budget} an"
    page = render_run_page(read_run(run))
    assert fact in page and f"iteration; {n_stayed} such groups stayed" in page


def test_what_is_trained_are_the_samples_of_the_further_prompts(tmp_path: Path) -> None:
    """Scores and samples stay together: the rollout's log-probabilities are those of the kept samples."""
    config = make(tmp_path / "run", "train.dynamic_sampling.budget=50", "train.trained_fraction=1")
    with trainer.open_parts(config, trainer.build_engine(config)) as parts:
        run = trainer.Trainer(trainer.RunFolder(tmp_path / "run"), parts)
        with run.log.open():
            groups = run.drawing.draw(Clock())
        trajectory = groups.samples
        assert groups.n_further > 0
        pixels = trajectory.images.double().mean(dim=(1, 2, 3)).float()
        assert torch.allclose(groups.scores[:, 0], pixels, atol=2 / 255)
        everyone = sample_conditioning(trajectory.conditionings, GROUP, slice(0, PROMPTS * GROUP))
        for number, step in enumerate(trajectory.steps):  # type: ignore[attr-defined]
            x, x_next = trajectory.x[number], trajectory.x_next[number]  # type: ignore[attr-defined]
            mean, std = parts.sampler.transition(parts.policy, x, step, everyone)
            again = log_prob(x_next, mean, std)
            assert torch.allclose(again, trajectory.log_prob[number], atol=1e-5)  # type: ignore[attr-defined]


def test_a_row_that_comes_again_has_other_samples(tmp_path: Path) -> None:
    config = make(tmp_path / "run", "train.dynamic_sampling.budget=9")
    with trainer.open_parts(config, trainer.build_engine(config)) as parts:
        dull = [row for row in TRAIN if is_dull(row.id)]
        others = [row for row in TRAIN if not is_dull(row.id)]
        few = dull[:2] + others[:2]
        again = dataclasses.replace(parts, data=dataclasses.replace(parts.data, train=few))
        run = trainer.Trainer(trainer.RunFolder(tmp_path / "run"), again)
        with run.log.open():
            groups = run.drawing.draw(Clock())
    assert groups.n_further > 0 and len(set(groups.rows)) < PROMPTS
    means = groups.samples.images.double().mean(dim=(1, 2, 3))
    assert len(means.unique()) == PROMPTS * GROUP


def test_without_it_nothing_is_replaced_and_nothing_counted(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert trainer.train(make(run, "train.iterations=1")) == 0
    lines = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "train"]
    assert len(lines) == 1 and not [key for key in lines[0] if key.startswith("sampling/")]
    assert lines[0]["health/zero_std_groups"] > 0
    assert "dynamic sampling" not in render_run_page(read_run(run))


def test_a_killed_run_goes_on_where_the_stream_of_prompts_was(tmp_path: Path) -> None:
    setting = "train.dynamic_sampling.budget=3"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert trainer.train(make(whole, setting)) == 0
    draw = Drawing.draw

    def kill(self: Drawing, clock: Clock) -> Groups:
        groups = draw(self, clock)
        if self.state.iteration == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return groups

    def train_to_the_kill() -> None:
        Drawing.draw = kill  # type: ignore[method-assign]
        trainer.train(make(cut, setting))

    assert os.WTERMSIG(in_child(train_to_the_kill)) == signal.SIGKILL
    assert trainer.resume(cut) == 0
    assert_same_run(cut, whole)
