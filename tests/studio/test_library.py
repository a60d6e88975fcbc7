"""Which runs the studio finds, and what it says of each: from what runs write."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from customized_grpo.flat import flat
from customized_grpo.reporting.ending import write_ending
from customized_grpo.reporting.metrics import MetricsWriter
from customized_grpo.runs.lock import RunLock
from customized_grpo.studio import library
from customized_grpo.studio.library import Library, Run
from customized_grpo.studio.views import differences, run_view


def names(*folders: Path) -> list[str]:
    return [run.name for run in Library(folders).runs()]


def only(folder: Path) -> Run:
    (run,) = Library([folder]).runs()
    return run


def test_runs_are_found_at_any_depth_and_other_folders_are_not(runs: Path) -> None:
    shutil.copytree(runs / "done", runs / "old" / "2025" / "deep")
    (runs / "notes").mkdir()
    (runs / "notes" / "config.yaml").write_text("run: {}\n")  # not enough to be a run
    (runs / ".hidden").mkdir()
    shutil.copytree(runs / "done", runs / ".hidden" / "run")
    os.symlink(runs / "old", runs / "link")
    assert names(runs) == ["done", "half", "old/2025/deep"]
    assert names(runs / "done") == ["done"]
    assert names(runs, runs / "done") == ["done", "half", "old/2025/deep"]


def test_the_search_is_bounded(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(30):
        (runs / f"a{number:02d}").mkdir()
    monkeypatch.setattr(library, "MAX_FOLDERS", 10)
    assert len(names(runs)) <= 10


def test_a_run_of_a_comparison_knows_it(runs: Path) -> None:
    shutil.copytree(runs / "done", runs / "compared" / "runs" / "naive" / "seed_0")
    (runs / "compared" / "plan.json").write_text("{}")
    found = Library([runs])
    by_name = {run.name: run.comparison for run in found.runs()}
    (comparison,) = found.comparisons()
    assert comparison.name == "compared"
    assert by_name == {"done": None, "half": None, "compared/runs/naive/seed_0": comparison.id}


def test_runs_of_two_comparisons_have_names_of_their_own(runs: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        shutil.copytree(runs / "done", tmp_path / name / "runs" / "naive" / "seed_0")
        (tmp_path / name / "plan.json").write_text("{}")
    assert names(tmp_path / "first", tmp_path / "second") == [
        "first/runs/naive/seed_0",
        "second/runs/naive/seed_0",
    ]


def test_states_are_what_the_folders_say(runs: Path) -> None:
    states = {run.name: run.state() for run in Library([runs]).runs()}
    assert states == {"done": "ended", "half": "stopped"}


def test_why_a_run_ended_is_said_and_a_killed_one_says_nothing(runs: Path, tmp_path: Path) -> None:
    assert "it was killed" in run_view(only(runs / "half")).ending
    write_ending(runs / "half", "interrupted", "SIGTERM")
    assert run_view(only(runs / "half")).ending == "The run was interrupted by SIGTERM."
    assert run_view(only(runs / "done")).ending == ""
    (runs / "half" / "ended.json").write_text("[]")
    assert "ended.json" in run_view(only(runs / "half")).ending
    (runs / "half" / "ended.json").rename(tmp_path / "private.json")
    os.symlink(tmp_path / "private.json", runs / "half" / "ended.json")
    assert "it was killed" in run_view(only(runs / "half")).ending
    with RunLock(runs / "half"):
        assert run_view(only(runs / "half")).ending == ""


def test_a_run_whose_trainer_lives_is_running_and_one_elsewhere_cannot_be_asked(runs: Path) -> None:
    half = only(runs / "half")
    with RunLock(runs / "half"):
        assert half.state() == "running"
    lock = runs / "half" / "lock"
    lock.write_text(json.dumps({**json.loads(lock.read_text()), "host": "gpu7"}))
    assert half.state() == "elsewhere" and run_view(half).host == "gpu7"


def test_a_damaged_metrics_file_is_said_and_the_other_runs_are_shown(runs: Path) -> None:
    (runs / "half" / "metrics.jsonl").write_text('nonsense\n{"kind": "train", "iteration": 1}\n')
    views = {run.name: run_view(run) for run in Library([runs]).runs()}
    assert views["half"].state == "damaged" and "line 1: not a JSON object" in views["half"].problem
    assert views["done"].state == "ended"


def test_a_metrics_file_that_leads_out_is_not_read(runs: Path, tmp_path: Path) -> None:
    metrics = runs / "half" / "metrics.jsonl"
    metrics.rename(tmp_path / "elsewhere.jsonl")
    os.symlink(tmp_path / "elsewhere.jsonl", metrics)
    half = only(runs / "half")
    assert half.state() == "damaged" and half.last == {}


def test_the_list_has_the_newest_numbers_beside_those_of_the_base(runs: Path) -> None:
    view = run_view(only(runs / "done"))
    records = [json.loads(line) for line in (runs / "done" / "metrics.jsonl").read_text().splitlines()]
    evals = [record for record in records if record["kind"] == "eval"]
    assert (view.iteration, view.total) == (6, 6)
    assert view.held_out["judge/identity"].base == evals[0]["judge/identity"]
    assert view.held_out["judge/identity"].now == evals[-1]["judge/identity"]
    assert view.rewards.keys() == {"prompt", "identity"}


def test_an_alarm_stands_until_the_next_evaluation_without_it(runs: Path) -> None:
    half = only(runs / "half")
    alarm = {"kind": "event", "event": "alarm", "alarm": "copy", "message": "it copies"}
    with MetricsWriter(runs / "half" / "metrics.jsonl") as metrics:
        metrics.write({"kind": "eval", "iteration": 9})
        metrics.write({**alarm, "iteration": 9})
    half.look()
    assert half.standing_alarms() == ["it copies"]
    with MetricsWriter(runs / "half" / "metrics.jsonl") as metrics:
        metrics.write({"kind": "eval", "iteration": 12})
    half.look()
    assert half.standing_alarms() == []


def test_recipes_differ_where_they_differ(runs: Path) -> None:
    by_name = {run.name: run for run in Library([runs]).runs()}
    (difference,) = differences(by_name["done"], by_name["half"])
    assert (difference.key, difference.first, difference.second) == ("run.seed", 0, 7)


def test_a_flat_recipe_names_rewards_and_keeps_other_lists() -> None:
    recipe = {"rewards": [{"name": "dino", "options": {"a": 1}}], "targets": ["q", "k"], "empty": {}}
    assert flat(recipe) == {
        "rewards.dino.name": "dino",
        "rewards.dino.options.a": 1,
        "targets": ["q", "k"],
        "empty": {},
    }
