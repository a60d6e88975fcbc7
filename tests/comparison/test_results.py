"""The results of finished run folders."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from customized_grpo.comparison.arms import Arm
from customized_grpo.comparison.plan import PlannedRun, adopt, make_plan
from customized_grpo.comparison.run import run_comparison
from customized_grpo.evaluation.scores import HeldOutScores
from customized_grpo.files import write_json

NAIVE = Arm(name="naive", label="Naive", role="front", overrides={"advantage.name": "linear"})
SUBJECTS = ["a", "b", "c"]


def finish(run: PlannedRun, identity: Sequence[float]) -> None:
    """Write the files of a run that has ended, with the identity of each subject after training."""
    folder = run.folder.path
    (folder / "evaluations").mkdir(parents=True)
    write_json(folder / "summary.json", {"finished": True, "rollouts": 8, "wall_s": 1.0, "iterations": 1})
    for iteration, scores in enumerate(([0.5, 0.5, 0.5], identity)):
        columns = {"judge/identity": list(scores), "judge/prompt": [0.2, 0.3, 0.4]}
        table = HeldOutScores(columns, ids=SUBJECTS, subjects=SUBJECTS)
        write_json(folder / f"evaluations/iteration_{iteration:06d}.json", table.to_json())


def test_a_run_in_which_hardly_any_subject_was_measured_is_left_out_and_named(tmp_path: Path) -> None:
    plan = make_plan("toybox-smoke", [], [NAIVE], (0, 1, 2), folder=tmp_path / "out", threads=1)
    adopt(plan)
    for run, identity in zip(plan.runs(), (0.6, math.nan, 0.7), strict=True):
        finish(run, [0.5, identity, identity])
    assert run_comparison(plan, jobs=1, examine=False, train=False) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [run["seed"] for run in results["runs"] if "after" in run] == [0, 2]
    (final,) = (arm["final"]["judge/identity"] for arm in results["analysis"]["arms"])
    assert final["mean"] == (0.5 + 2 * 0.6 + 0.5 + 2 * 0.7) / 6
    sentence = (
        "Naive with seed 1 is left out of all figures: fewer than 2 subjects have a score of judge/identity"
    )
    assert any(verdict.startswith(sentence) for verdict in results["analysis"]["verdicts"])
    assert sentence in (tmp_path / "out" / "comparison.html").read_text()


def test_arms_that_measured_different_subjects_are_not_paired(tmp_path: Path) -> None:
    other = NAIVE.model_copy(update={"name": "sars", "role": "method", "control": "naive", "label": "SARS"})
    plan = make_plan("toybox-smoke", [], [NAIVE, other], (0,), folder=tmp_path / "out", threads=1)
    adopt(plan)
    first, second = plan.runs()
    finish(first, [0.5, 0.6, math.nan])
    finish(second, [math.nan, 0.6, 0.7])
    assert run_comparison(plan, jobs=1, examine=False, train=False) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [arm["against_control"] for arm in results["analysis"]["arms"]] == [None, None]
    finals = [arm["final"] for arm in results["analysis"]["arms"]]
    assert all("judge/identity" in final for final in finals)
