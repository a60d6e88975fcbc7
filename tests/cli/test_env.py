"""`cgrpo env`, short help, and what a shell completes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from commands import run_here
from customized_grpo import __version__
from customized_grpo.cli.common import complete_presets
from customized_grpo.cli.env import VARIABLES
from customized_grpo.cli.main import app


def test_it_prints_versions_hardware_and_variables_but_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("HF_TOKEN", "hf_do_not_print")
    monkeypatch.delenv("HF_HOME", raising=False)
    done = run_here("env", "--json", str(tmp_path / "env.json"))
    assert done.returncode == 0, done.stderr
    facts = json.loads((tmp_path / "env.json").read_text())
    assert facts["customized_grpo"].startswith(__version__)
    assert {"python", "platform", "cpu", "cpu bf16", "memory", "torch", "diffusers", "wandb"} <= facts.keys()
    assert facts["OMP_NUM_THREADS"] == "3" and "HF_HOME" not in facts
    assert "hf_do_not_print" not in done.stdout + json.dumps(facts)
    for name, value in facts.items():
        assert any(line.startswith(name) and (value or "-") in line for line in done.stdout.splitlines())


def test_no_variable_that_it_prints_may_hold_a_secret() -> None:
    assert not [name for name in VARIABLES if any(word in name for word in ("TOKEN", "KEY", "SECRET"))]


@pytest.mark.parametrize("words", [[], ["train"], ["benchmark", "run"], ["data"]])
def test_h_is_help(words: list[str]) -> None:
    short = run_here(*words, "-h")
    long = run_here(*words, "--help")
    assert short.returncode == long.returncode == 0
    assert short.stdout == long.stdout and "Usage: cgrpo" in short.stdout


def test_presets_are_completed_by_their_beginning() -> None:
    assert complete_presets("toybox") == ["toybox", "toybox-smoke"]
    assert complete_presets("no-such") == []


def test_every_verb_says_in_one_short_line_what_it_does() -> None:
    """A longer first line is cut in the list of verbs."""
    verbs = [command.callback for command in app.registered_commands]
    assert len(verbs) > 10
    for verb in verbs:
        first = (verb.__doc__ or "").splitlines()[0]
        assert first.endswith(".") and len(first) <= 60, verb
