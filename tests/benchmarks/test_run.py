"""`cgrpo benchmark` as a user types it: with real models, a judge over HTTP, and hostile names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import html_page
import judge_server
from commands import status
from customized_grpo.benchmarks.encoders import JudgeEndpoint
from customized_grpo.benchmarks.page import render_benchmark_page
from customized_grpo.benchmarks.results import read_result
from customized_grpo.benchmarks.run import BenchmarkRequest, default_folder, run_benchmark
from dreambooth import save_photo

pytestmark = pytest.mark.slow

RUN = ["benchmark", "run", "toybox", "dreambench"]
ENCODERS = ["--encoder", "dino=toybox", "--encoder", "clip_t=toybox"]


@pytest.fixture
def judge() -> Iterator[JudgeEndpoint]:
    """A real server whose answer depends on the seed: 2, 3 or 4 of 4."""

    def answer(handler: object, body: dict[str, int]) -> None:
        handler.answer(judge_server.completion(json.dumps({"score": 2 + body["seed"]})))  # type: ignore[attr-defined]

    with judge_server.serving(answer) as running:
        yield JudgeEndpoint(running.url, "vlm")


def test_a_benchmark_is_drawn_scored_written_and_compared(
    dreambench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(dreambench), *ENCODERS]
    first, second = tmp_path / "four", tmp_path / "two"
    assert status(*RUN, "steps=4", *data, "--samples", "2", "--out", str(first)) == 0
    out, err = capsys.readouterr()
    assert "16 images drawn, 0 were there already" in err
    assert "warning: Fewer than 8 subjects" in out and "accessory" in out
    assert len(list((first / "images").iterdir())) == 16
    found = read_result(first / "results.json")
    assert len(found.table.ids) == 16 and set(found.table.columns) == {"dino", "clip_t"}
    assert found.protocol["encoders"]["dino"]["weights"] and found.protocol["steps"] == 4
    assert f"{found.summary[0]['metrics']['dino']['mean']:.3f}" in out

    before = (first / "results.json").read_bytes()
    assert status(*RUN, "steps=4", *data, "--samples", "2", "--out", str(first)) == 0
    assert "0 images drawn, 16 were there already" in capsys.readouterr().err
    assert (first / "results.json").read_bytes() == before

    against = ["--out", str(second), "--against", str(first / "results.json")]
    assert status(*RUN, "steps=2", *data, *against) == 2
    assert "steps: 4, 2" in capsys.readouterr().err
    assert status(*RUN, "steps=2", *data, *against, "--across", "steps") == 0
    assert "Only 8 of 16 images are in both results" in capsys.readouterr().out
    assert status(*RUN, "steps=2", *data, "--out", str(first)) == 2
    assert "holds images with other settings" in capsys.readouterr().err

    seen = html_page.Page.of_file(second / "report.html")
    html_page.assert_nothing_is_fetched(seen)
    assert len(seen.of("img")) == 6 and "Compared with toybox" in seen.text and "UNO" in seen.text


def test_results_are_compared_without_any_model(
    dreambench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(dreambench), *ENCODERS, "steps=2"]
    assert status(*RUN, *data, "--out", str(tmp_path / "a")) == 0
    capsys.readouterr()
    file = str(tmp_path / "a" / "results.json")
    assert status("benchmark", "compare", file, file) == 0
    out = capsys.readouterr().out
    assert "warning: Both results are of the same weights." in out and "+0.000 [+0.000, +0.000]" in out


def test_a_judge_is_asked_three_times_and_its_means_are_multiplied(
    tmp_path: Path, judge: JudgeEndpoint
) -> None:
    for stem in ("00", "01"):
        save_photo(tmp_path / "images" / "object" / f"{stem}.jpg", (200, 80, 40))
        caption = tmp_path / "captions" / "object" / f"{stem}.txt"
        caption.parent.mkdir(parents=True, exist_ok=True)
        caption.write_text("\n".join(["a cup", *(f"a cup, version {n}" for n in range(9))]))
    request = BenchmarkRequest(
        "toybox", "dreambenchpp", tmp_path, out=tmp_path / "out", judge=judge, limit=4, settings=["steps=2"]
    )
    outcome = run_benchmark(request)
    assert outcome is not None
    _, found, _ = outcome
    whole = found.summary[0]["metrics"]
    assert whole["cp"]["mean"] == pytest.approx(0.75), "the mean of 2, 3 and 4, of 4"
    assert whole["cp_x_pf"]["mean"] == pytest.approx(0.75**2)
    assert set(found.protocol["encoders"]) == {
        "cp", "cp (run 2)", "cp (run 3)", "pf", "pf (run 2)", "pf (run 3)",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dreambench"], "Missing option '--data'"),
        (["omnicontext", "--data", "x"], "cannot be read"),
        (["dreambench", "--data", "DATA", "--encoder", "dina=toybox"], "did you mean"),
        (["dreambench", "--data", "DATA", "--judge-url", "u"], "needed together"),
        (["dreambench", "--data", "DATA", "--across", "data"], "--across data"),
        (["dreambench", "--data", "DATA", "--segment", "reference"], "have no masks"),
        (["dreambench", "--data", "DATA", "--subject", "cat"], "no 'cat'"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(
    dreambench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    words = [str(dreambench) if word == "DATA" else word for word in arguments]
    assert status("benchmark", "run", "toybox", *words, "--out", str(tmp_path / "out")) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_from_outside_are_escaped_and_make_no_paths(dreambench: Path, tmp_path: Path) -> None:
    request = BenchmarkRequest(
        "toybox",
        "dreambench",
        dreambench,
        out=tmp_path / "o",
        encoders=["clip_t=toybox"],
        settings=["steps=2"],
    )
    outcome = run_benchmark(request)
    assert outcome is not None
    _, found, _ = outcome
    found.generator["name"] = "<script>alert(1)</script>"  # type: ignore[index]
    seen = html_page.Page(render_benchmark_page(found, None, []))
    assert not seen.of("script") and "<script>alert(1)</script>" in seen.text
    assert default_folder("../../etc/passwd", "dreambench") == Path("runs/dreambench-..-..-etc-passwd")
