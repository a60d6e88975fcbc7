"""`cgrpo init`: the recipe that it writes is the preset with the rows of a folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from commands import run_here
from customized_grpo.config import diff_configs, load_config, preset_names
from customized_grpo.config.reference import knobs


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("train.jsonl", "held_out.jsonl", "manifest.jsonl"):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize("preset", preset_names())
def test_only_run_and_data_differ_from_the_preset(preset: str, data: Path, tmp_path: Path) -> None:
    done = run_here("init", preset, str(data), str(tmp_path / "mine.yaml"))
    assert done.returncode == 0, done.stderr
    written = load_config(str(tmp_path / "mine.yaml"))
    changed = {path for path, _, _ in diff_configs(load_config(preset), written)}
    # the embedded problems have settings of their own under data
    assert {path for path in changed if not path.startswith("data.")} == {"run.dir"}
    assert written.run.dir == Path("runs/mine")
    assert written.data.model_dump()["train"] == data / "train.jsonl"
    assert written.data.model_dump()["held_out"] == data / "held_out.jsonl"


def test_masked_rows_are_taken_before_others_and_nothing_held_out_is_said(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").touch()
    (tmp_path / "manifest.masked.jsonl").touch()
    assert run_here("init", "flux1-kontext", str(tmp_path), str(tmp_path / "mine.yaml")).returncode == 0
    text = (tmp_path / "mine.yaml").read_text()
    data = load_config(str(tmp_path / "mine.yaml")).data.model_dump()
    assert data["train"] == tmp_path / "manifest.masked.jsonl" and data["held_out"] is None
    assert "No subject is held out" in text


def test_every_setting_stands_under_its_sentence(data: Path, tmp_path: Path) -> None:
    run_here("init", "flux1-kontext", str(data), str(tmp_path / "mine.yaml"))
    comments = re.sub(r"\n +# ", " ", (tmp_path / "mine.yaml").read_text())
    sentences = {knob.path: knob.sentence for knob in knobs()}
    for path in ("train.iterations", "rollout.steps", "checkpoint.best", "model.quantisation"):
        assert sentences[path] in comments


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("flux1-kontext", "{data}", "{data}/train.jsonl"), "a recipe is a YAML file"),
        (("flux1-kontext", "{data}", "{data}/there.yaml"), "there.yaml exists"),
        (("flux1-kontext", "{data}", "{data}/no/mine.yaml"), "no is not a folder"),
        (("flux1-kontext", "{data}/nowhere", "{data}/mine.yaml"), "has none of train.masked.jsonl"),
        (("flux1-kontex", "{data}", "{data}/mine.yaml"), "did you mean flux1-kontext"),
    ],
)
def test_a_mistake_is_one_message_and_leaves_nothing(
    arguments: tuple[str, ...], what: str, data: Path
) -> None:
    (data / "there.yaml").write_text("mine")
    before = sorted(data.iterdir())
    done = run_here("init", *[argument.format(data=data) for argument in arguments])
    assert done.returncode == 2 and what in done.stderr
    assert sorted(data.iterdir()) == before and (data / "there.yaml").read_text() == "mine"
