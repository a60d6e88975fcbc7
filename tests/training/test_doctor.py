"""The doctor through the command line: what it measures is what training would, and what it finds wrong."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from commands import status
from customized_grpo.algorithms.sars import sars_pull
from customized_grpo.config import Config
from customized_grpo.reporting.metrics import read_metrics
from customized_grpo.rollout.trajectory import Trajectory
from customized_grpo.training import algorithm, doctor, trainer

Recipe = Callable[..., Config]
OWN_REWARDS = """
import math
import torch
from customized_grpo.rewards import FunctionReward

def ones(batch):
    return torch.ones(len(batch))

def blind(batch):
    return torch.full((len(batch),), math.nan)

constant = FunctionReward("constant", "identity", ones)
blind_one = FunctionReward("blind", "identity", blind)
"""


def read(file: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(file.read_text())
    return result


# A healthy recipe

TWO_SUBJECTS = "data.subjects=64"  # the first two prompts then are about different ones, as intervals need
SMALL = ["--branch-prompts", "2", "--continuations", "2"]
HEALTHY = [TWO_SUBJECTS, "train.group_size=4", "advantage.gamma=0.3", "train.ratio_normalisation=true"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("doctor")


@pytest.fixture(scope="module")
def printed(folder: Path) -> str:
    """What the doctor says of a healthy recipe, asked in an otherwise empty folder."""
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
        patch.chdir(folder)
        arguments = [*HEALTHY, "--prompts", "2", *SMALL, "--json", "found.json", "--page", "found.html"]
        assert status("doctor", "toybox-smoke", *arguments) == 0
    return out.getvalue()


@pytest.fixture(scope="module")
def findings(printed: str, folder: Path) -> dict[str, Any]:
    return read(folder / "found.json")


def test_a_healthy_recipe_is_examined_and_no_other_file_is_left(
    findings: dict[str, Any], folder: Path
) -> None:
    assert findings["problems"] == []
    assert findings["ratio_deviation"] <= findings["ratio_tolerance"] == 1e-5
    assert sorted(path.name for path in folder.rglob("*")) == ["found.html", "found.json"]


def test_what_is_measured_is_the_first_iteration_of_training(
    findings: dict[str, Any], tmp_path: Path, recipe: Recipe
) -> None:
    config = recipe(*HEALTHY, "train.iterations=1", f"run.dir={tmp_path / 'run'}")
    assert trainer.train(config) == 0
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    line: dict[str, Any] = next(line for line in lines if line["kind"] == "train")
    assert findings["samples"] == line["rollouts"]
    for reward in findings["rewards"]:
        assert reward["mean"] == line[f"reward/{reward['kind']}"]
        assert reward["group_std"] == line[f"reward/{reward['kind']}_group_std"]
    for ours, theirs in {
        "rho": "advantage/rho",
        "conflict": "advantage/conflict",
        "conflict_null": "advantage/conflict_null",
        "ratio_deviation": "policy/ratio_max_deviation",
    }.items():
        assert findings[ours] == line[theirs], ours


def test_decisions_of_every_reward_and_judge_are_measured(findings: dict[str, Any]) -> None:
    decisions = findings["decisions"]
    assert (decisions["prompts"], decisions["continuations"], len(decisions["sigmas"])) == (2, 2, 5)
    assert decisions["points"] == decisions["noisy_steps"] == [0, 1, 2]
    kinds = {f"{source}/{kind}" for source in ("judge", "reward") for kind in ("prompt", "identity")}
    names = {f"score/{reward['name']}" for reward in findings["rewards"]}
    assert kinds | names <= decisions["curves"].keys()
    for curve in decisions["curves"].values():
        assert curve["open"][3:] == [0, 0], "the last step draws no noise"


def test_sars_is_put_as_constant_weights(findings: dict[str, Any]) -> None:
    sars = findings["sars"]
    pull = sars_pull(findings["rho"], 4)
    assert (sars["gamma"], sars["pull"]) == (0.3, pytest.approx(pull))
    scale = 1 + 0.6 * pull
    assert sars["step_scale"] == pytest.approx(scale)
    trained = findings["decisions"]["prompt_weights"][:-1]
    weights = [0.5, min(trained), max(trained)]
    assert sars["weights"] == [pytest.approx([w, (w + 0.3 * pull) / scale]) for w in weights]


def test_everything_is_printed(findings: dict[str, Any], printed: str) -> None:
    lines = printed.splitlines()
    assert lines[0].startswith("2 prompts, 4 samples each")
    for reward in findings["rewards"]:
        row = next(line.split() for line in lines if line.startswith(reward["name"]))
        assert row[1:] == [
            reward["kind"], f"{reward['mean']:.3f}", f"{reward['group_std']:.3f}", "0.0%", "0.0%"
        ]  # fmt: skip
    assert f"rho = {findings['rho']:+.3f}" in printed
    assert f"{findings['conflict']:.1%} of the samples ({findings['conflict_null']:.1%} in" in printed
    assert f"SARS at gamma 0.3 pulls towards equal weights by k = {findings['sars']['pull']:.3f}" in printed
    decisions = findings["decisions"]
    steps = [line.split() for line in lines if line[:1].isdigit()][1:5]
    for number, (step, sigma, weight, prompt, *_) in enumerate(steps):
        assert (step, sigma) == (str(number), f"{decisions['sigmas'][number]:.3f}")
        assert weight == f"{decisions['prompt_weights'][number]:.3f}"
        assert prompt == f"{decisions['curves']['judge/prompt']['share'][number]:.0%}"
    assert sum(line.startswith("share of the variance") for line in lines) == 2, "by judges and by rewards"
    for name in decisions["curves"]:
        assert any(line.startswith(f"{name} ") for line in lines), name
    assert decisions["premise"] in lines
    assert lines[-1].startswith("note: updates go back through the rollout's own passes")


def test_the_page_says_what_is_printed(findings: dict[str, Any], folder: Path) -> None:
    seen = (folder / "found.html").read_text()
    assert seen.count("<svg") == 4 and "no problem found" in seen
    for reward in findings["rewards"]:
        assert f"{reward['name']} ({reward['kind']})" in seen and f"{reward['mean']:.3f}" in seen
    assert findings["decisions"]["premise"].split(":")[0].replace("'", "&#39;") in seen


# What is wrong, and how to fix it


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """An override that replaces the identity reward by one of OWN_REWARDS."""
    (tmp_path / "rewards_of_ones_own.py").write_text(OWN_REWARDS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CGRPO_TRUST", "rewards_of_ones_own")
    clip = "{name: clip_t, segment: none, path: toybox}"
    return lambda name: f'rewards=[{{name: "rewards_of_ones_own:{name}"}}, {clip}]'


def examine(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, *overrides: str
) -> tuple[int, list[str], dict[str, Any], str]:
    """Return exit status, the printed problems with their fixes, the findings, and stderr."""
    file = tmp_path / "found.json"
    settings = [TWO_SUBJECTS, *overrides, "--prompts", "2", "--points", "0", "--json", str(file)]
    code = status("doctor", "toybox-smoke", *settings)
    printed = capsys.readouterr()
    _, _, problems = printed.out.partition("\nproblem: ")
    return code, problems.splitlines(), read(file), printed.err


def test_a_constant_reward_is_found(
    own: Callable[[str], str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, (problem, fix), found, error = examine(capsys, tmp_path, own("constant"))
    assert code == 2
    assert "reward 'constant'" in problem and "100% of the groups" in problem
    assert fix.startswith("    fix: ") and "rollout.eta" in fix
    assert error.endswith("\nerror: 1 problem found; see above for what to do\n")
    assert found["problems"] == [{"problem": problem, "fix": fix.removeprefix("    fix: ")}]
    assert (found["rho"], found["conflict_null"], found["sars"]) == (None, None, None)
    assert found["rewards"][0]["zero_std_groups"] == 1


def test_with_no_score_at_all_there_is_nothing_to_measure_and_no_crash(
    own: Callable[[str], str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, (problem, _), found, _ = examine(capsys, tmp_path, own("blind_one"))
    assert code == 2
    assert "'blind' could not score 100%" in problem
    assert found["ratio_deviation"] is None
    assert found["decisions"] is None, "--points 0 asks for no curves"


@pytest.mark.parametrize("change", [-1e-3, math.nan])
def test_a_policy_that_trains_on_other_transitions_than_it_drew_is_found(
    change: float, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect = algorithm.collect

    def drift(*arguments: Any, **options: Any) -> Trajectory:
        trajectory = collect(*arguments, **options)
        log_prob = trajectory.log_prob.clone()
        log_prob[-1, 3] += change
        return dataclasses.replace(trajectory, log_prob=log_prob)

    monkeypatch.setattr(algorithm, "collect", drift)
    code, (problem, fix), found, _ = examine(capsys, tmp_path)
    assert code == 2
    assert "deviates from 1 by " + ("nan" if math.isnan(change) else "1.0e-03") in problem
    assert "train.micro_batch_size" in fix
    assert found["ratio_deviation"] == (None if math.isnan(change) else pytest.approx(1e-3, rel=0.01))


def test_few_rows_in_many_updates_are_no_problem(tmp_path: Path) -> None:
    """A row that an iteration draws twice has other noise each time; and 2 prompts are no 3 updates."""
    settings = ["data.subjects=1", "train.prompts_per_iteration=30", "train.updates_per_iteration=3"]
    rule = "advantage.name=sars_recentred"  # takes statistics of whole groups
    file = tmp_path / "found.json"
    arguments = [*settings, rule, "--prompts", "2", "--points", "0", "--json", str(file)]
    assert status("doctor", "toybox-smoke", *arguments) == 0
    found = read(file)
    assert found["problems"] == []
    assert found["ratio_deviation"] < 1e-5


def test_nft_is_named_and_has_neither_ratios_nor_branches_without_noise(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ode = ["rollout.sampler=ode", "rollout.eta=0", "rollout.shared_noise=false"]
    assert status("doctor", "two-scale", "train.algorithm=nft", *ode, "--prompts", "2") == 0
    out = capsys.readouterr().out
    assert "as in the first iteration of training with train.algorithm=nft" in out
    assert "first-pass ratio: none, as nft has no ratios" in out
    assert "when qualities are decided was not measured" in out
    assert "advantage.name=sars gives groups of conflicting rewards a mean other than 0" in out


def test_what_alarms_would_let_pass_is_no_problem() -> None:
    good = doctor.RewardHealth("judge", "prompt", 0.5, 0.1, zero_std_groups=0.5, nan_samples=0.05)
    assert doctor.reward_problems([good]) == []
    bad = [
        dataclasses.replace(good, zero_std_groups=0.51),
        dataclasses.replace(good, nan_samples=0.051),
        dataclasses.replace(good, kind="quality", zero_std_groups=1.0),
    ]
    assert len(doctor.reward_problems(bad)) == 3


@pytest.mark.parametrize(
    ("overrides", "rho"),
    [
        (["train.group_size=3"], 0.1),
        (["advantage.name=linear"], 0.1),
        (["advantage.name=sars_no_flip"], 0.1),
        ([], math.nan),
        ([], 1.0),
    ],
)
def test_where_sars_has_no_constant_weights_none_are_given(
    recipe: Recipe, overrides: list[str], rho: float
) -> None:
    weights = torch.tensor([0.7, 0.3, 0.9])
    assert doctor.sars_worth(recipe("train.group_size=4", *overrides), rho, weights) is None
    worth = doctor.sars_worth(recipe("train.group_size=4"), 0.1, weights)
    assert worth is not None and [w for w, _ in worth.weights] == pytest.approx([0.5, 0.3, 0.7])


# The command line


def test_a_file_that_cannot_be_written_is_refused_before_anything_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise AssertionError("a model was loaded before the mistake was found")

    monkeypatch.setattr("customized_grpo.training.parts.build_data", load)
    for option in ("--json", "--page"):
        for file in (tmp_path / "absent" / "found.json", tmp_path):
            assert status("doctor", "toybox-smoke", option, str(file)) == 2
            assert f"{option} {file}" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--prompts", "--branch-prompts", "--continuations"])
def test_intervals_and_variances_need_two(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("doctor", "toybox-smoke", option, "1") == 2
    assert option in capsys.readouterr().err
