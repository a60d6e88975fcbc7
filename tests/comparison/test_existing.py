"""Existing runs compared: what is computed, what is refused, and what is said."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from commands import run_here
from customized_grpo.comparison.existing import read_runs, short_names
from customized_grpo.comparison.existing_results import compare
from customized_grpo.comparison.existing_run import compare_runs
from customized_grpo.comparison.existing_verdicts import verdicts
from customized_grpo.config import dump_config, load_config
from customized_grpo.errors import UserError
from customized_grpo.evaluation.scores import HeldOutScores
from customized_grpo.files import write_json

SUBJECTS = sorted([*"abcdefghi"] * 2)
IDS = [f"{subject}-{number % 2}/0" for number, subject in enumerate(SUBJECTS)]
BASE = [0.5, 0.4, 0.6, 0.5, 0.3, 0.4, 0.5, 0.6, 0.4, 0.5, 0.6, 0.4, 0.7, 0.6, 0.5, 0.6, 0.4, 0.3]


def raised(by: float | Sequence[float]) -> list[float]:
    """Return BASE plus a number, or plus one for each subject."""
    if isinstance(by, float):
        return [value + by for value in BASE]
    return [value + by[number // 2] for number, value in enumerate(BASE)]


def make(
    folder: Path,
    identity: Sequence[float],
    prompt: Sequence[float] = BASE,
    *,
    settings: Sequence[str] = (),
    ids: Sequence[str] = IDS,
    subjects: Sequence[str] = SUBJECTS,
    base: Sequence[float] = BASE,
    iteration: int = 3,
    finished: bool = True,
    contents: Mapping[str, Any] | None = None,
    kind: str = "judge",
    events: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the folder of a run as the trainer leaves it, with held-out scores of identity and prompt."""
    folder.mkdir(parents=True)
    config = load_config("toybox-smoke", [f"run.dir={folder}", *settings])
    (folder / "config.yaml").write_text(dump_config(config))
    write_json(folder / "versions.json", {"customized_grpo": "0.2.0"})
    lines = [{"kind": "eval", "iteration": number, "rollouts": number} for number in (0, iteration)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in [*lines, *events]))
    if finished:
        write_json(folder / "summary.json", {"finished": True})
    (folder / "evaluations").mkdir()
    for number, scores in ((0, (base, base)), (iteration, (identity, prompt))):
        columns = {f"{kind}/identity": list(scores[0]), f"{kind}/prompt": list(scores[1])}
        table = HeldOutScores(columns, ids=list(ids), subjects=list(subjects))
        write_json(folder / f"evaluations/iteration_{number:06d}.json", table.to_json())
    step = folder / "checkpoints" / f"step_{iteration:06d}"
    step.mkdir(parents=True)
    write_json(step / "COMMIT.json", {})
    write_json(step / "state.json", {"contents": contents or {"data.held_out.rows": "1"}})
    return folder


def test_differences_are_paired_by_image(tmp_path: Path) -> None:
    first = make(tmp_path / "first", raised(0.1))
    # every image is .05 better than the first run's: no width, however much the images differ
    other = make(tmp_path / "other", raised(0.15), [value - 0.2 for value in BASE])
    results = compare(read_runs([first, other]))
    (pair,) = results["pairs"]
    identity = pair["difference"]["judge/identity"]
    assert [identity[name] for name in ("mean", "low", "high")] == pytest.approx([0.05] * 3)
    assert pair["difference"]["judge/prompt"]["mean"] == pytest.approx(-0.2)
    assert identity["images"] == 18 and identity["subjects"] == 9
    changes = [run["change"]["judge/identity"]["mean"] for run in results["runs"]]
    assert changes == pytest.approx([0.1, 0.15])
    before = results["runs"][0]["before"]["judge/identity"]
    assert before["mean"] == pytest.approx(sum(BASE) / 18) and before["low"] < before["mean"] < before["high"]


def test_an_interval_is_over_subjects_and_p_values_are_corrected(tmp_path: Path) -> None:
    first = make(tmp_path / "first", BASE)
    mixed = make(tmp_path / "mixed", raised([0.3, -0.3, 0.2, -0.2, 0.1, -0.1, 0.2, -0.2, 0.1]), raised(0.2))
    third = make(tmp_path / "third", raised([0.2, 0.21, 0.19, 0.2, 0.22, 0.18, 0.2, 0.2, 0.2]), BASE)
    results = compare(read_runs([first, mixed, third]))
    mixed_pair, third_pair = (pair["difference"] for pair in results["pairs"])
    assert mixed_pair["judge/identity"]["low"] < 0 < mixed_pair["judge/identity"]["high"]
    assert mixed_pair["judge/identity"]["p_holm"] > 0.5
    assert third_pair["judge/identity"]["low"] > 0
    tested = [
        pair[metric] for pair in (mixed_pair, third_pair) for metric in ("judge/identity", "judge/prompt")
    ]
    smallest = min(test["p"] for test in tested)
    assert min(test["p_holm"] for test in tested) == pytest.approx(len(tested) * smallest)
    sentences = verdicts(results)
    assert sentences[0].startswith("mixed against first: held-out identity +0.011 [")
    assert (
        "no difference beyond chance; held-out prompt accuracy +0.200 [+0.200, +0.200], higher."
        in sentences[0]
    )
    assert "third against first: held-out identity +0.200" in sentences[1] and ", higher;" in sentences[1]


def test_a_score_that_is_missing_in_one_run_counts_in_neither(tmp_path: Path) -> None:
    lacking = raised(0.1)
    lacking[0] = float("nan")
    first = make(tmp_path / "first", lacking)
    other = make(tmp_path / "other", [9.0, *raised(0.2)[1:]])
    (pair,) = compare(read_runs([first, other]))["pairs"]
    difference = pair["difference"]["judge/identity"]
    assert difference["images"] == 17 and difference["mean"] == pytest.approx(0.1)


def test_runs_of_other_held_out_images_are_refused(tmp_path: Path) -> None:
    first = make(tmp_path / "first", BASE)
    other = make(tmp_path / "other", BASE, ids=[f"new-{name}" for name in IDS])
    with pytest.raises(UserError, match="other held-out images.*18 and 18, of which 0") as error:
        read_runs([first, other])
    assert "cgrpo benchmark run" in (error.value.hint or "")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ({"data.held_out.rows": "2"}, "same names but with other contents"),
        ({"data.held_out.rows": "1", "evaluation.judges.0.dino.files": "x"}, "by other judges"),
    ],
)
def test_runs_whose_rows_or_judges_have_other_contents_are_refused(
    contents: dict[str, str], message: str, tmp_path: Path
) -> None:
    first = make(tmp_path / "first", BASE)
    other = make(tmp_path / "other", BASE, contents=contents)
    with pytest.raises(UserError, match=message):
        read_runs([first, other])


def test_runs_with_other_judges_in_their_recipes_are_refused(tmp_path: Path) -> None:
    first = make(tmp_path / "first", BASE)
    other = make(tmp_path / "other", BASE)
    config = other / "config.yaml"
    assert "judges: []" in config.read_text()
    config.write_text(config.read_text().replace("judges: []", "judges: [{name: dino}]"))
    with pytest.raises(UserError, match="by other judges"):
        read_runs([first, other])


def test_rewards_of_other_settings_are_not_compared_but_judges_are(tmp_path: Path) -> None:
    plain = make(tmp_path / "plain", BASE, kind="reward")
    threaded = make(
        tmp_path / "threaded", BASE, kind="reward", settings=["rewards.0.executor={kind: thread}"]
    )
    assert compare(read_runs([plain, threaded]))["tested"] == ["reward/identity", "reward/prompt"]
    weighted = make(tmp_path / "weighted", BASE, kind="reward", settings=["rewards.0.weight=2"])
    with pytest.raises(UserError, match="by other judges"):
        read_runs([plain, weighted])
    judged = [
        make(tmp_path / name, BASE, settings=[f"rewards.0.weight={name[-1]}"]) for name in ("with1", "with2")
    ]
    assert compare(read_runs(judged))["tested"] == ["judge/identity", "judge/prompt"]


def test_a_run_without_two_evaluations_is_refused(tmp_path: Path) -> None:
    first = make(tmp_path / "first", BASE)
    other = make(tmp_path / "other", BASE)
    (other / "evaluations/iteration_000003.json").unlink()
    with pytest.raises(UserError, match="no held-out scores of before and after"):
        read_runs([first, other])
    (other / "evaluations/iteration_000000.json").unlink()
    with pytest.raises(UserError, match="no held-out scores of before and after"):
        read_runs([first, other])


def test_a_run_whose_scores_are_elsewhere_is_refused(tmp_path: Path) -> None:
    first = make(tmp_path / "first", BASE)
    other = make(tmp_path / "other", BASE)
    file = other / "evaluations/iteration_000003.json"
    file.rename(tmp_path / "private.json")
    file.symlink_to(tmp_path / "private.json")
    with pytest.raises(UserError, match="is a link out of the run folder"):
        read_runs([first, other])


def test_one_run_or_the_same_twice_is_no_comparison(tmp_path: Path) -> None:
    first = make(tmp_path / "first", BASE)
    with pytest.raises(UserError, match="two runs or more"):
        read_runs([first])
    (tmp_path / "link").symlink_to(first)
    with pytest.raises(UserError, match="given twice"):
        read_runs([first, tmp_path / "link"])


def test_what_limits_a_comparison_is_said(tmp_path: Path) -> None:
    first = make(tmp_path / "first", BASE, contents={"model.files.a": "1"})
    other = make(
        tmp_path / "other",
        BASE,
        contents={"model.files.a": "1"},
        iteration=2,
        finished=False,
        base=raised(0.01),
    )
    third = make(tmp_path / "third", BASE, contents={"model.files.a": "2"})
    notes = " ".join(compare(read_runs([first, other]))["notes"])
    assert "Another seed may end elsewhere" in notes and "Not finished: other after iteration 2." in notes
    assert "different numbers of iterations: first 3, other 2" in notes
    assert "scores before training are not equal" in notes and "other models" not in notes
    assert "subjects are held out" not in notes
    notes = " ".join(compare(read_runs([first, third]))["notes"])
    assert "They began from other models" in notes and "Not finished" not in notes
    few = [make(tmp_path / name, BASE, subjects=["a"] * 9 + ["b"] * 9) for name in ("few", "fewer")]
    assert "Only 2 subjects are held out" in " ".join(compare(read_runs(few))["notes"])


def test_a_run_whose_checkpoints_are_gone_is_not_said_to_have_another_model(tmp_path: Path) -> None:
    first = make(tmp_path / "first", BASE, contents={"model.files.a": "1"})
    other = make(tmp_path / "other", BASE, contents={"model.files.a": "1"})
    shutil.rmtree(first / "checkpoints")
    assert "other models" not in "\n".join(compare(read_runs([first, other]))["notes"])


def test_images_that_were_drawn_in_another_way_are_said(tmp_path: Path) -> None:
    first = make(tmp_path / "first", BASE, settings=["rollout.steps=4"])
    same = make(tmp_path / "same", BASE, settings=["rollout.steps=3", "evaluation.steps=4"])
    other = make(tmp_path / "other", BASE, settings=["rollout.steps=4", "evaluation.steps=9"])
    assert "were drawn" not in "\n".join(compare(read_runs([first, same]))["notes"])
    notes = "\n".join(compare(read_runs([first, other]))["notes"])
    assert "Their held-out images were drawn with other steps (4, 9)" in notes


def test_settings_that_differ_are_listed_and_alarms_lead(tmp_path: Path) -> None:
    alarm = {"kind": "event", "iteration": 3, "event": "alarm", "alarm": "x", "message": "<b>it copies</b>"}
    first = make(tmp_path / "first", BASE)
    other = make(tmp_path / "other", raised(0.1), settings=["run.seed=7"], events=[alarm])
    results, page = compare_runs([first, other], tmp_path / "out")
    assert results["settings"] == [{"key": "run.seed", "values": [0, 7]}]
    assert results["verdicts"][0] == "Alarm of other: <b>it copies</b>"
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    html = page.read_text()
    assert "&lt;b&gt;it copies" in html and "<b>it" not in html
    assert html.index("it copies") < html.index("other against first")
    assert "<code>run.seed</code>" in html


def test_a_run_that_degraded_is_named(tmp_path: Path) -> None:
    runs = [make(tmp_path / name, BASE) for name in ("first", "other")]
    for file in runs[1].glob("evaluations/*.json"):
        table = json.loads(file.read_text())
        last = file.stem.endswith("3")
        table["columns"]["reward/identity"] = raised(0.1) if last else BASE
        table["columns"]["judge/prompt"] = raised(-0.1) if last else BASE
        file.write_text(json.dumps(table))
    assert any(
        line.startswith("other: Competitive degradation") for line in verdicts(compare(read_runs(runs)))
    )


def test_names_are_as_short_as_they_can_be() -> None:
    assert short_names([Path("/runs/a"), Path("/runs/b")]) == ["a", "b"]
    assert short_names([Path("/x/ours/seed_0"), Path("/x/naive/seed_0")]) == ["ours/seed_0", "naive/seed_0"]


def digests(folder: Path) -> dict[str, str]:
    """Return the hash of every file of a folder."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs of two-scale, whose methods differ."""
    folder = tmp_path_factory.mktemp("runs")
    short = ["train.iterations=2", "evaluation.every=1", "evaluation.samples_per_prompt=1"]
    for name, settings in (("ours", []), ("naive", ["advantage.name=linear", "schedule.name=constant"])):
        assert run_here("train", "two-scale", f"run.dir={folder / name}", *short, *settings).returncode == 0
    return folder


def test_two_trained_runs_are_compared_and_left_as_they_are(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = digests(trained)
    done = run_here("compare", str(trained / "naive"), str(trained / "ours"))
    assert done.returncode == 0, done.stderr
    assert "ours against naive: held-out identity" in done.stdout
    assert "scores before training are not equal" not in done.stdout  # they began from one model and noise
    page = tmp_path / "runs" / "compare-naive--ours" / "comparison.html"
    assert f"page: {page.relative_to(tmp_path)}" in done.stdout
    html = page.read_text()
    assert html.count("data:image/") >= 8 * 4 and "Held-out curves" in html
    assert "<code>advantage.name</code>" in html and digests(trained) == before
    assert (
        run_here("compare", str(trained / "naive"), str(trained / "ours")).returncode == 0
    )  # replaces its own


def test_a_folder_with_something_else_is_not_written_into(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    done = run_here("compare", str(trained / "naive"), str(trained / "ours"), "--out", str(tmp_path))
    assert done.returncode == 2 and "holds no comparison of existing runs" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUNS/ours"], "needs two runs or more"),
        (["RUNS/ours", "RUNS/nothing"], "RUNS/nothing is not a folder"),
        (["RUNS/ours", "RUNS"], "RUNS is not the folder of a run"),
        (["RUNS/ours", "RUNS/naive", "--seeds", "5"], "--seeds: of no use"),
        (["RUNS/ours", "RUNS/naive", "--no-doctor"], "--doctor: of no use"),
        (["RUNS/ours", "RUNS/naive", "train.iterations=3"], "takes no settings"),
        (["toybox", "RUNS/naive"], "RUNS/naive is a folder, and toybox is not"),
    ],
)
def test_a_comparison_that_cannot_be_made_is_refused(
    trained: Path, arguments: list[str], message: str
) -> None:
    done = run_here("compare", *[part.replace("RUNS", str(trained)) for part in arguments])
    assert done.returncode == 2 and message.replace("RUNS", str(trained)) in done.stderr


def test_a_page_without_images_still_has_the_numbers(trained: Path, tmp_path: Path) -> None:
    for name in ("ours", "naive"):
        shutil.copytree(trained / name, tmp_path / name)
    (tmp_path / "ours" / "samples" / "iteration_000002" / "00.png").write_bytes(b"no image")
    _, page = compare_runs([tmp_path / "naive", tmp_path / "ours"], tmp_path / "out")
    html = page.read_text()
    assert "cannot be read as PNG" in html and "ours against naive" in html
