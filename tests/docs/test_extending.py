"""docs/extending.md: its texts, as they stand there, in one run that uses all of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from commands import status
from customized_grpo import extensions
from customized_grpo.config.yaml_text import read_yaml, write_yaml

pytestmark = pytest.mark.slow

TEXT = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
MODULES = re.findall(r"```python\n# (\w+)\.py\n(.*?)```", TEXT, re.DOTALL)
RECIPES = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of somebody's own: their modules, and a recipe that names all of them."""
    folder = tmp_path_factory.mktemp("own")
    for name, source in MODULES:
        (folder / f"{name}.py").write_text(source)
    recipe: dict[str, Any] = {"extends": "toybox-smoke"}
    for text in RECIPES:
        recipe |= read_yaml(text)[0]
    (folder / "recipe.yaml").write_text(write_yaml(recipe))
    return folder


@pytest.fixture(autouse=True)
def importable(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their modules can be imported, and none of them is trusted."""
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delenv(extensions.TRUST)
    monkeypatch.chdir(folder)


@pytest.fixture(scope="module")
def trust() -> list[str]:
    options = []
    for name, _ in MODULES:
        options += ["--trust", name]
    return options


def metrics(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in line.items() if key != "wall_s" and not key.startswith("time/")}
        for line in lines
    ]


def test_every_part_fits_on_a_screen() -> None:
    for name, source in MODULES:
        assert source.count("\n") <= 60, name


def test_a_run_of_foreign_parts_trains_resumes_evaluates_generates_exports_and_reports(
    folder: Path, trust: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = folder / "runs" / "recipe"
    assert status("train", "recipe.yaml") == 2
    assert "--trust my_" in capsys.readouterr().err
    assert not run.exists()

    assert status("train", "recipe.yaml", *trust) == 0
    uninterrupted = metrics(run)
    assert len([line for line in uninterrupted if line["kind"] == "train"]) == 2

    # a run folder alone runs nothing either
    monkeypatch.setenv(extensions.TRUST, "")
    assert status("resume", str(run), "--from", "1") == 2
    assert "is not trusted" in capsys.readouterr().err

    assert status("resume", str(run), "--from", "1", *trust) == 0
    assert metrics(run) == uninterrupted
    assert status("evaluate", str(run)) == 0
    assert (
        status("generate", str(run), "--prompt", "a toy", "--reference", reference(run), "--out", "out") == 0
    )
    assert status("export", str(run)) == 0

    rules = folder / "my_rules.py"
    rules.write_text(rules.read_text() + "# changed\n")
    assert status("resume", str(run), "--from", "1") == 2
    assert "code.my_rules: " in capsys.readouterr().err

    monkeypatch.setenv(extensions.TRUST, "")
    assert status("report", str(run)) == 0
    page = (run / "report.html").read_text()
    assert "my_rules:HalfSars" in page and "my_schedules:Cosine" in page
    assert "Prompt and identity weight by step" in page


def reference(run: Path) -> str:
    """Return an image that the run has: the reference of its first sample."""
    return str(next((run / "samples").rglob("*reference*.png")))
