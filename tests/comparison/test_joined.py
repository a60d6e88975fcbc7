"""Results of earlier comparisons joined to a plan: read, checked, kept, not trained again."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.comparison.arms import Arm
from customized_grpo.comparison.joined import read_joined
from customized_grpo.comparison.plan import Plan, make_plan
from customized_grpo.comparison.run import run_comparison
from customized_grpo.errors import UserError

NAIVE = Arm(name="naive", label="Naive", role="front", overrides={"advantage.name": "linear"})
BOTH = Arm(name="both", label="Both", role="method", overrides={"advantage.gamma": 0.4})


def plan(folder: Path, *arms: Arm, seeds: tuple[int, ...] = (0, 1), override: str = "") -> Plan:
    overrides = [override] if override else []
    return make_plan("toybox-smoke", overrides, arms, seeds, folder=folder, threads=1)


def run(arm: str, seed: int, identity: float = 0.5, state: str = "finished") -> dict[str, Any]:
    entry: dict[str, Any] = {"arm": arm, "seed": seed, "state": state, "rollouts": 8, "wall_s": 1.0}
    entry |= {"evals": [], "train": [], "alarms": [], "degraded": False}
    if state == "finished":
        scores = {"judge/identity": [identity, 0.5], "judge/prompt": [0.25, 0.75]}
        entry |= {"subjects": ["a", "b"], "before": scores, "after": scores}
    return entry


def results(path: Path, *runs: dict[str, Any], arms: tuple[Arm, ...] = (NAIVE,), **changes: Any) -> Path:
    """Write results.json as another machine would have made it."""
    other = plan(path.parent / "elsewhere", *arms)
    content = {"format": 1, **other.to_json(), "versions": {"python": "3.11"}, "runs": list(runs), **changes}
    text = json.dumps(content)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def report(folder: Path, *also: Path, arms: tuple[Arm, ...] = (BOTH,)) -> dict[str, Any]:
    """Write the page of a comparison without training, and return its results."""
    assert run_comparison(plan(folder, *arms), jobs=1, examine=False, train=False, also=also) == 0
    content: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return content


@pytest.mark.parametrize("name", ["results.json", "results.json.gz"])
def test_runs_of_another_comparison_join_the_page_and_its_repetition(tmp_path: Path, name: str) -> None:
    other = results(tmp_path / name, run("naive", 0), run("naive", 7), run("naive", 8, state="unfinished"))
    found = report(tmp_path / "out", other)
    assert [arm["name"] for arm in found["arms"]] == ["both", "naive"]
    assert found["seeds"] == [0, 1, 7]  # of the plan and of what finished elsewhere
    assert [entry["runs"] for entry in found["analysis"]["arms"]] == [0, 2]
    assert found["joined"] == [{"runs": 2, "versions": {"python": "3.11"}}]
    assert "name: naive" in (tmp_path / "out" / "arms.yaml").read_text()
    assert "runs of other comparisons" in (tmp_path / "out" / "comparison.html").read_text()


def test_a_later_call_shows_them_without_being_told_again(tmp_path: Path) -> None:
    other = results(tmp_path / "results.json", run("naive", 0))
    first = report(tmp_path / "out", other)
    other.unlink()
    assert report(tmp_path / "out") == first


def test_the_same_results_twice_count_once(tmp_path: Path) -> None:
    other = results(tmp_path / "a.json", run("naive", 0))
    again = results(tmp_path / "b.json.gz", run("naive", 0))
    overlapping = results(tmp_path / "c.json", run("naive", 0), run("naive", 1))
    assert len(report(tmp_path / "out", other, again, overlapping)["runs"]) == 4  # two here, two joined


def test_runs_that_finished_elsewhere_are_not_planned_here(tmp_path: Path) -> None:
    joined = read_joined(tmp_path / "out", [results(tmp_path / "results.json", run("naive", 0))])
    here = plan(tmp_path / "out", NAIVE, BOTH)
    rest = replace(here, elsewhere=joined.done)
    assert [(one.arm, one.seed) for one in rest.runs()] == [("both", 0), ("naive", 1), ("both", 1)]


def test_a_run_with_two_different_scores_is_refused(tmp_path: Path) -> None:
    one = results(tmp_path / "a.json", run("naive", 0, identity=0.5))
    other = results(tmp_path / "b.json", run("naive", 0, identity=0.6))
    with pytest.raises(UserError, match=r"naive \(seed 0\) is there twice, with different scores"):
        report(tmp_path / "out", one, other)


def test_a_run_that_was_begun_here_and_finished_elsewhere_counts_as_finished(tmp_path: Path) -> None:
    begun = tmp_path / "out" / "runs" / "both" / "seed_0"
    assert report(tmp_path / "out", results(tmp_path / "a.json", run("naive", 0)))["runs"]
    begun.mkdir(parents=True)
    (begun / "metrics.jsonl").write_text(json.dumps({"kind": "train", "iteration": 1, "rollouts": 2}) + "\n")
    other = results(tmp_path / "b.json", run("both", 0), arms=(BOTH,))
    found = {(one["arm"], one["seed"]): one["state"] for one in report(tmp_path / "out", other)["runs"]}
    assert found == {("naive", 0): "finished", ("both", 0): "finished", ("both", 1): "missing"}


def test_one_name_for_two_arms_is_refused(tmp_path: Path) -> None:
    renamed = NAIVE.model_copy(update={"overrides": {"advantage.gamma": 0.1}})
    one = results(tmp_path / "a.json", run("naive", 0))
    other = results(tmp_path / "b.json", run("naive", 1), arms=(renamed,))
    # in two files, neither of which is of the plan
    with pytest.raises(UserError, match="arm 'naive': .*gamma.* there, .*linear.* elsewhere"):
        report(tmp_path / "out", one, other)
    # and where an earlier call has planned one of them
    report(tmp_path / "out", arms=(renamed,))
    with pytest.raises(UserError, match="arm 'naive': .*linear.* there, .*gamma.* now"):
        report(tmp_path / "out", one)
    assert not (tmp_path / "out" / "also").exists()


def test_runs_judged_on_other_subjects_are_refused(tmp_path: Path) -> None:
    strange = {**run("naive", 1), "subjects": ["a", "c"]}
    other = results(tmp_path / "results.json", run("naive", 0), strange)
    with pytest.raises(UserError, match="different held-out subjects"):
        report(tmp_path / "out", other)


def test_runs_of_another_base_are_refused(tmp_path: Path) -> None:
    def of_base(shift: float) -> Path:
        before = {"judge/identity": [0.5 + shift, 0.5], "judge/prompt": [0.25 + shift, 0.75]}
        return results(tmp_path / f"{shift}.json", run("naive", 0), {**run("naive", 1), "before": before})

    assert len(report(tmp_path / "out", of_base(0.001))["runs"]) == 4  # another machine's rounding
    with pytest.raises(UserError, match=r"naive \(seed 0\) and naive \(seed 1\) have other scores before"):
        report(tmp_path / "other", of_base(0.2))


def test_runs_judged_by_other_metrics_are_refused(tmp_path: Path) -> None:
    scores = {"judge/identity": [0.5, 0.5]}
    strange = {**run("naive", 1), "before": scores, "after": scores}
    other = results(tmp_path / "results.json", run("naive", 0), strange)
    with pytest.raises(UserError, match="by different metrics"):
        report(tmp_path / "out", other)


def test_results_of_other_settings_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    other = results(tmp_path / "results.json", run("naive", 0))
    changed = plan(tmp_path / "out", BOTH, override="train.learning_rate=0.5")
    with pytest.raises(UserError, match="train.learning_rate: .* there, 0.5 now"):
        run_comparison(changed, jobs=1, examine=False, train=False, also=[other])
    renamed = NAIVE.model_copy(update={"overrides": {"advantage.gamma": 0.1}})
    with pytest.raises(UserError, match="arm 'naive': .* there, .* now"):
        report(tmp_path / "out", other, arms=(renamed,))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.json", None, "cannot be read"),
        ("a.json.gz", b"no gzip", "cannot be read"),
        ("a.json.gz", gzip.compress(b"{}" * 1000)[:-9], "cannot be read"),
        ("a.json", b"{", "not results"),
        ("a.json", b"[]", "not results"),
        ("a.json", b"\xff\xfe", "not results"),
        ("a.json", b'{"format": 2}', "not results of this version of `cgrpo compare`: format"),
    ],
    ids=["missing", "no gzip", "cut gzip", "cut JSON", "a list", "not UTF-8", "another format"],
)
def test_a_file_that_holds_no_results_is_refused(
    tmp_path: Path, name: str, content: bytes | None, what: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=what):
        report(tmp_path / "out", file)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"after": None}, "after"),
        ({"subjects": ["a"]}, "judge/identity"),
        ({"before": {"judge/identity": [0.5, 0.5]}}, "judge/prompt"),
        ({"after": {"judge/identity": [0.5, 0.5]}}, "lacks scores of judge/prompt"),
        (
            {"after": {"judge/identity": [0.5, None], "judge/prompt": [0.5, 0.5]}},
            "too few scores of judge/id",
        ),
        (
            {"after": {"judge/identity": [0.5, math.nan], "judge/prompt": [0.5, 0.5]}},
            "after.judge/identity.1",
        ),
        (
            {"before": {"judge/identity": [0.5, math.inf], "judge/prompt": [0.5, 0.5]}},
            "before.judge/identity",
        ),
        ({"evals": [{"rollouts": 1e99}]}, "evals.0.rollouts"),
        ({"train": [{"iteration": 1.0, "rollouts": None}]}, "a record without iteration or rollouts"),
    ],
)
def test_a_finished_run_without_all_its_scores_is_refused(
    tmp_path: Path, changes: dict[str, Any], what: str
) -> None:
    file = results(tmp_path / "a.json", {**run("naive", 0), **changes})
    with pytest.raises(UserError, match=what):
        report(tmp_path / "out", file)


def test_results_without_a_finished_run_are_refused(tmp_path: Path) -> None:
    other = results(tmp_path / "a.json", run("naive", 0, state="missing"))
    with pytest.raises(
        UserError, match=r"none of its runs has finished\nCall its `cgrpo compare` command again"
    ):
        report(tmp_path / "out", other)
