"""The commands as a user types them: train, evaluate, generate, report; and what bad input gets them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import forked
from commands import run_here, status
from processes import CGRPO, run_python

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("end_to_end")


@pytest.fixture(scope="module")
def exported(folder: Path) -> Path:
    """ToyBox as files: two subjects, two prompts each."""
    done = run_here("toybox", "export", str(folder / "data"), "--subjects", "2")
    assert done.returncode == 0, done.stderr
    manifest = Path(done.stdout.strip())
    assert manifest == folder / "data" / "manifest.jsonl"
    return manifest


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    run = folder / "runs" / "toy"
    done = run_python(*CGRPO, "train", "toybox-smoke", f"run.dir={run}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"report: {run / 'report.html'}\n"
    assert "Traceback" not in done.stderr
    assert "iteration 2/2" in done.stderr
    return run


def rows(manifest: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


# What works


def test_evaluate_prints_and_keeps_base_tuned_and_difference(trained: Path) -> None:
    done = run_here("evaluate", str(trained))
    assert done.returncode == 0, done.stderr
    header, *table = done.stdout.splitlines()
    assert header.split() == ["base", "tuned", "difference"]
    result = json.loads((trained / "evaluation.json").read_text())
    for metric in ("judge/identity", "judge/prompt"):
        line = next(line for line in table if line.startswith(metric))
        assert f"{result['tuned'][metric]['mean']:.3f}" in line
    assert result == {key: json.loads((trained / "summary.json").read_text())[key] for key in result}


def test_generate_makes_images_from_a_reference_png(trained: Path, exported: Path, folder: Path) -> None:
    row = rows(exported)[0]
    reference, mask = (exported.parent / str(row[key][0]) for key in ("references", "masks"))  # type: ignore[index]
    prompt = "a toy with a red ball on the left on a green floor at night"
    arguments = ["generate", str(trained), "--prompt", prompt, "--reference", str(reference)]
    done = forked.python(
        *CGRPO, *arguments, "--mask", str(mask), "--count", "2", "--out", str(folder / "made")
    )
    assert done.returncode == 0, done.stderr
    made = [Path(line) for line in done.stdout.splitlines()]
    assert made == [folder / "made" / "0000.png", folder / "made" / "0001.png"]
    for path in made:
        with Image.open(path) as image:
            assert (image.size, image.mode) == ((64, 64), "RGB")
    assert status(*arguments, "--mask", str(mask), "--out", str(folder / "again")) == 0
    assert (folder / "again" / "0000.png").read_bytes() == made[0].read_bytes()


def test_report_can_be_written_again(trained: Path) -> None:
    (trained / "report.html").unlink()
    done = run_here("report", str(trained))
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == trained / "report.html"
    assert "</html>" in (trained / "report.html").read_text()


def test_resume_of_a_finished_run_is_no_error(trained: Path) -> None:
    assert status("resume", str(trained)) == 0


@pytest.mark.parametrize("held_out", ["null", "same"], ids=["nothing held out", "rows held out"])
def test_train_on_a_manifest(exported: Path, folder: Path, held_out: str) -> None:
    run = folder / "runs" / f"files_{held_out}"
    rows_held_out = exported if held_out == "same" else "null"
    data = f"data={{kind: manifest, train: {exported}, held_out: {rows_held_out}}}"
    assert status("train", "toybox-smoke", f"run.dir={run}", data, "train.iterations=1") == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["finished"] is True
    assert (run / "report.html").is_file()
    if held_out == "same":
        assert "reward/identity" in summary["difference"]


def test_rows_with_one_and_with_two_references_train_together(
    copied: Callable[..., Path], tmp_path: Path
) -> None:
    def double(found: list[dict[str, object]]) -> None:
        for row in found[::2]:
            for key in ("references", "masks"):
                row[key] = row[key] * 2  # type: ignore[operator]

    manifest, run = copied(double), tmp_path / "run"
    settings = [f"data={{kind: manifest, train: {manifest}, held_out: {manifest}}}", "train.iterations=1"]
    assert status("train", "toybox-smoke", f"run.dir={run}", *settings, "rollout.batch_size=5") == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (line,) = (line for line in lines if line["kind"] == "train")
    assert line["policy/ratio_max_deviation"] < 1e-5 and line["policy/grad_norm"] > 0


# What does not


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded before the mistake was found")

    monkeypatch.setattr("customized_grpo.training.parts.load_policy", load)
    monkeypatch.setattr("customized_grpo.training.parts.build_scorer", load)


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Callable[[Callable[[list[dict[str, object]]], None]], Path]:
    """A copy of the exported data with its rows changed."""

    def copy(change: Callable[[list[dict[str, object]]], None]) -> Path:
        shutil.copytree(exported.parent, tmp_path / "data")
        manifest = tmp_path / "data" / "manifest.jsonl"
        changed = rows(manifest)
        change(changed)
        manifest.write_text("".join(json.dumps(row) + "\n" for row in changed))
        return manifest

    return copy


def train_on(manifest: Path, run: Path) -> list[str]:
    return ["train", "toybox-smoke", f"run.dir={run}", f"data={{kind: manifest, train: {manifest}}}"]


@pytest.mark.usefixtures("nothing_loads")
def test_bad_rows_are_all_named_at_once_before_any_model_loads(
    copied: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(found: list[dict[str, object]]) -> None:
        found[0]["references"] = ["images/absent.png"]
        del found[1]["masks"]
        found[2]["prompt"] = ""

    manifest = copied(spoil)
    broken = manifest.parent / str(rows(manifest)[3]["target"])
    broken.write_bytes(broken.read_bytes()[:100])
    assert status(*train_on(manifest, tmp_path / "run")) == 2
    message = capsys.readouterr().err
    assert "4 bad rows" in message
    for expected in (
        "line 1:",
        "images/absent.png",
        "line 2: has no `masks`",
        "line 3:",
        "line 4:",
        "target",
    ):
        assert expected in message
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("nothing_loads")
def test_held_out_rows_of_one_subject_are_refused_before_any_model_loads(
    exported: Path, copied: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def same(found: list[dict[str, object]]) -> None:
        for row in found:
            row["subject"] = "the one toy"

    data = f"data={{kind: manifest, train: {exported}, held_out: {copied(same)}}}"
    assert status("train", "toybox-smoke", f"run.dir={tmp_path / 'run'}", data) == 2
    assert "one subject" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_missing_mask_ends_the_command_with_one_message(
    copied: Callable[..., Path], tmp_path: Path
) -> None:
    def unmask(found: list[dict[str, object]]) -> None:
        del found[2]["masks"]

    done = run_here(*train_on(copied(unmask), tmp_path / "run"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert (
        "1 bad row\n  line 3: has no `masks`, which the reward needs\nMake masks with `cgrpo" in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "toybx"], ["toybx", "toybox"]),
        (["train", "toybox-smoke", "train.group_size=1"], ["train.group_size", "2"]),
        (["train", "toybox-smoke", "train.group_sise=4"], ["train.group_sise", "group_size"]),
        (["train", "toybox-smoke", "advantage.name=sarz", "schedule.name=tdx"], ["sars", "tdw"]),
        (["resume", "no/such/run"], ["no/such/run"]),
        (["generate", "no/such/run", "--prompt", "a toy", "--reference", "x.png"], ["no/such/run"]),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, list) else None,
)
def test_a_mistake_gets_one_message_with_the_way_out(
    arguments: list[str], expected: list[str], tmp_path: Path
) -> None:
    run = [f"run.dir={tmp_path / 'run'}"] if arguments[0] == "train" else []
    done = run_here(*arguments, *run)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    for words in expected:
        assert words in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_reference_that_is_no_image_is_refused_before_any_model_loads(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded before the mistake was found")

    monkeypatch.setattr("customized_grpo.generation.opening.load_policy", load)
    image = tmp_path / "toy.png"
    image.write_text("<svg/>")
    arguments = ["generate", str(trained), "--prompt", "a toy", "--reference", str(image)]
    assert status(*arguments, "--out", str(tmp_path / "made")) == 2
    message = capsys.readouterr().err
    assert str(image) in message
    assert "Traceback" not in message
