"""The verbs as Python functions: real runs of small recipes, in a thread, beside an event loop, twice."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path

import pytest

import customized_grpo as cg

pytestmark = pytest.mark.slow

SHORT = {"train.iterations": 2, "checkpoint.every": 1, "evaluation.every": 0}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> cg.Report:
    folder = tmp_path_factory.mktemp("api") / "first"
    return cg.train("two-scale", run={"dir": folder}, **SHORT)


def test_a_run_is_trained_and_reported(report: cg.Report) -> None:
    assert report.is_finished and report.adapter.is_file()
    assert [record["iteration"] for record in report.training] == [1, 2]
    assert [record["iteration"] for record in report.evaluations] == [0, 2]
    assert set(report.summary["difference"]) >= {"reward/prompt", "reward/identity"}
    assert {path.parent.name for path in report.images} == {"iteration_000000", "iteration_000002"}
    assert "finished" in repr(report)
    shown = report._repr_html_()
    assert "<th>reward/prompt</th>" in shown and "first" in shown
    assert report.write().read_text().startswith("<!doctype html>")


def test_a_report_stays_with_its_run_when_the_working_directory_changes(
    report: cg.Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(report.folder.parent)
    here = cg.Report("first")
    monkeypatch.chdir(tmp_path)
    assert here.summary == report.summary and len(here.training) == len(report.training) > 0
    assert here.images == report.images and here.adapter.is_file()


def test_a_measure_that_a_resumed_run_lacks_is_refused_at_once(report: cg.Report) -> None:
    with pytest.raises(cg.UserError, match="did you mean reward/identity"):
        cg.resume(report.folder, train={"iterations": 3}, checkpoint={"best": "reward/identiy"})
    assert len(report.training) == 2 and report.is_finished


def test_a_run_goes_on_for_longer(report: cg.Report) -> None:
    longer = cg.resume(report.folder, train={"iterations": 3})
    assert [record["iteration"] for record in longer.training] == [1, 2, 3] and longer.is_finished


def test_a_run_is_evaluated(report: cg.Report) -> None:
    result = cg.evaluate(report.folder, seed=5)
    assert set(result) == {"base", "tuned", "difference"}
    assert json.loads((report.folder / "evaluation.json").read_text())["base"] == result["base"]


def test_a_thread_beside_an_event_loop_trains_the_same(report: cg.Report, tmp_path: Path) -> None:
    async def in_a_loop() -> cg.Report:
        # the way a notebook or a server would keep its loop free
        return await asyncio.to_thread(cg.train, "two-scale", run={"dir": tmp_path / "again"}, **SHORT)

    again = asyncio.run(in_a_loop())
    rewards = [record["reward/prompt"] for record in again.training]
    assert rewards == [record["reward/prompt"] for record in report.training[:2]]
    assert threading.active_count() < 50


def test_mistakes_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(cg.UserError, match="no preset 'toybxo'"):
        cg.train("toybxo")
    for verb in (cg.resume, cg.evaluate, cg.Report):
        with pytest.raises(
            cg.UserError, match=r"is not the folder of a run\nGive the folder that `cgrpo train` wrote"
        ):
            verb(tmp_path)
    with pytest.raises(cg.UserError, match="no such arm"):
        cg.compare("two-scale", only=["nobody"], out=tmp_path / "out")


def test_images_are_drawn(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(tmp_path / "toy.png")
    drawn = cg.generate(
        "toybox",
        "our toy by day",
        tmp_path / "toy.png",
        out=tmp_path / "images",
        steps=2,
        model={"precision": "fp32"},
    )
    assert [path.name for path in drawn] == ["0000.png"] and Image.open(drawn[0]).size == (64, 64)


def test_arms_are_compared(tmp_path: Path) -> None:
    results = cg.compare(
        "two-scale", only=["naive-0.5"], seeds=[3], out=tmp_path / "out", doctor=False, jobs=1, **SHORT
    )
    (run,) = results["runs"]
    assert (run["arm"], run["seed"], run["state"]) == ("naive-0.5", 3, "finished")
    assert results["analysis"]["verdicts"]
