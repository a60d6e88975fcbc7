"""A comparison is repeated from its page alone: what is saved from it plans the same runs."""

from __future__ import annotations

import html
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from commands import status
from comparison_results import ARMS, comparison
from customized_grpo.comparison.arms import calibrated, load_arms
from customized_grpo.comparison.plan import Plan, make_plan
from customized_grpo.pages.comparison_page import render_comparison_page
from customized_grpo.pages.comparison_repeat import read_repeat
from html_page import Page


def planned(tmp_path: Path, recipe: str) -> tuple[Plan, dict[str, Any]]:
    """Return a plan of two arms of a shipped set with a setting for all, and its results before any run."""
    arms, _ = calibrated(load_arms("core", ["naive-0.5", "tdw"]), None)
    folder = tmp_path / "first"
    plan = make_plan(recipe, ["train.iterations=3"], arms, [2, 3, 7], folder=folder, threads=2)
    results = comparison(ARMS[:2], 1, finished=dict.fromkeys(("naive-0.3", "naive-0.5"), 0))
    return plan, results | plan.to_json() | {"runs": [], "analysis": {}}


@pytest.mark.parametrize("is_file", [False, True])
def test_what_the_page_says_plans_the_same_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_file: bool
) -> None:
    recipe = "two-scale"
    if is_file:
        recipe = str(tmp_path / "mine.yaml")
        Path(recipe).write_text("extends: two-scale\ntrain:\n  learning_rate: 0.125\n")
    plan, results = planned(tmp_path, recipe)
    source = render_comparison_page(results)
    pieces = [html.unescape(text) for text in re.findall(r"<pre>(.*?)</pre>", source, re.DOTALL)]
    reader = tmp_path / "reader"
    reader.mkdir()
    (reader / "arms.yaml").write_text(pieces[0])
    (reader / "recipe.yaml").write_text(pieces[1])
    commands = [html.unescape(text) for text in re.findall(r'<code class="command">(.*?)</code>', source)]
    assert len(commands) == 2  # seeds 2 and 3, and seed 7

    made: list[Plan] = []

    def keep(repeated: Plan, **_: Any) -> int:
        made.append(repeated)
        return 0

    monkeypatch.setattr("customized_grpo.comparison.run.run_comparison", keep)
    monkeypatch.chdir(reader)
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "cgrpo" and status(*words[1:]) == 0
    assert [seed for repeated in made for seed in repeated.seeds] == [2, 3, 7]
    for repeated in made:
        assert repeated.arms == plan.arms and repeated.threads == plan.threads
        assert repeated.base == plan.base and repeated.configs == plan.configs


def test_commit_changes_weights_and_joined_runs_are_said() -> None:
    results = comparison(ARMS[:2], 1)
    results["arms"][0]["overrides"]["schedule.path"] = "weights.json"
    results["versions"]["git"] |= {"modified": True}
    results["joined"] = [{"runs": 4, "versions": {"git": {"commit": "f" * 40, "modified": False}}}]
    seen = Page(render_comparison_page(results))
    commit = results["versions"]["git"]["commit"]
    assert f"Check out commit {commit}" in seen.text and "changes that this page does not know" in seen.text
    assert "--also : 4 runs by commit " + "f" * 40 in seen.text and "weights.json" in seen.text
    del results["versions"]["git"]
    assert "The commit is not known." in Page(render_comparison_page(results)).text


def test_a_name_with_spaces_is_quoted_in_the_command() -> None:
    results = comparison(ARMS[:2], 1) | {"recipe": "my arms; $HOME"}
    [command] = read_repeat(results).commands
    assert command.startswith(f"cgrpo compare {shlex.quote('my arms; $HOME')} ")


def test_every_setting_of_an_arm_is_on_the_page_too() -> None:
    results = comparison()
    codes = set(re.findall(r"<code>([^<]*)</code>", render_comparison_page(results)))
    assert {"advantage.name=linear", "schedule.prompt_weight=0.75", "torch"} <= codes
    assert json.dumps(results["threads_per_run"]) in read_repeat(results).commands[0]
