"""A judge in a whole run, and the documentation of judges and masks against the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import forked
import judge_server
from customized_grpo.config.yaml_text import read_yaml
from customized_grpo.data.masks import LAYOUTS
from customized_grpo.fields import read_section
from customized_grpo.rewards.face import FaceOptions
from customized_grpo.rewards.judge.reward import JudgeOptions

DOCS = Path(__file__).parents[2] / "docs"
KEY = "sk-must-not-be-seen-anywhere"


@pytest.mark.slow
def test_a_run_is_judged_and_its_key_is_in_no_file_and_no_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CGRPO_JUDGE_KEY", KEY)
    with judge_server.serving(judge_server.sensible) as server:
        options = f"{{url: '{server.url}', model: vlm, rubric: prompt, api_key_env: CGRPO_JUDGE_KEY}}"
        rewards = f"rewards=[{{name: dino, path: toybox}}, {{name: judge, options: {options}}}]"
        arguments = [f"run.dir={tmp_path / 'run'}", rewards, "train.iterations=1"]
        status, printed = forked.cgrpo(1, "train", "toybox-smoke", *arguments)
    assert status == 0, printed
    assert server.requests and all(r.headers["Authorization"] == f"Bearer {KEY}" for r in server.requests)
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    contents = [file.read_bytes() for file in files] + [printed.encode()]
    assert any(b"CGRPO_JUDGE_KEY" in content for content in contents)
    assert not any(b"must-not-be-seen" in content for content in contents)


def test_the_page_names_every_option_of_the_judge() -> None:
    page = (DOCS / "judge.md").read_text()
    table = re.findall(r"^\| (`.+?) \|", page, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", " ".join(table))) == set(JudgeOptions.model_fields)
    faces = page.split("## Faces")[1]
    assert all(f"{option}" in faces for option in FaceOptions.model_fields)


def test_the_recipes_of_the_page_are_valid() -> None:
    page = (DOCS / "judge.md").read_text()
    first, second, faces = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    shown = [
        (JudgeOptions, read_yaml(first)[0]["rewards"][1]["options"]),
        (JudgeOptions, read_yaml(second)[0]["options"]),
        (FaceOptions, read_yaml(faces)[0]["rewards"][0]["options"]),
    ]
    for section, options in shown:
        assert read_section(section, options).model_fields_set == options.keys() != set()


def test_the_page_has_the_layouts_of_segmenters() -> None:
    page = (DOCS / "masks.md").read_text()
    rows = re.findall(r"^\| `(\w+)`.*? \| (\d+) \| (.+?) \| (.+?) \| (\w+) \|$", page, re.MULTILINE)
    said = {
        name: (int(size), tuple(map(float, mean.split())), tuple(map(float, std.split())), sigmoid == "yes")
        for name, size, mean, std, sigmoid in rows
    }
    assert said == {name: (a.size, a.mean, a.std, a.sigmoid) for name, a in LAYOUTS.items()}
