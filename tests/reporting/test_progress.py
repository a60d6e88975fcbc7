from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from customized_grpo.reporting.progress import duration, progress


class Clock:
    """Time that moves only when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def console(terminal: bool, width: int = 120) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=width, color_system=None), text


def train(iteration: int, **more: Any) -> dict[str, Any]:
    metrics = {"reward/prompt": 0.61, "reward/identity": 0.32}
    return {"kind": "train", "iteration": iteration, "rollouts": iteration * 96, **metrics, **more}


def test_elsewhere_than_on_a_terminal_there_is_one_plain_line_an_iteration() -> None:
    target, text = console(terminal=False)
    clock = Clock()
    with progress(total=10, console=target, clock=clock) as shown:
        for iteration in (1, 2):
            shown.phase("rollout")
            clock.now += 2.0
            shown.iteration(train(iteration))
    lines = text.getvalue().splitlines()
    assert len(lines) == 2
    assert "2/10" in lines[1] and "192" in lines[1] and "0.610" in lines[1] and "0.320" in lines[1]
    assert " 48.0/s" in lines[1] and "left 16 s" in lines[1]
    assert "\x1b" not in text.getvalue()


def test_speed_and_time_left_of_a_resumed_run_count_only_what_it_did_itself() -> None:
    target, text = console(terminal=False)
    clock = Clock()
    with progress(total=110, start=100, console=target, clock=clock) as shown:
        clock.now += 3.0
        shown.iteration(train(101))
    assert " 32.0/s" in text.getvalue() and "left 27 s" in text.getvalue()


def test_a_terminal_shows_phase_rewards_and_judges_beside_the_base() -> None:
    target, text = console(terminal=True)
    with progress(total=10, console=target, clock=Clock()) as shown:
        shown.evaluation({"kind": "eval", "iteration": 0, "judge/prompt": 0.5, "judge/identity": 0.4})
        shown.iteration(train(1))
        shown.evaluation({"kind": "eval", "iteration": 1, "judge/prompt": 0.55, "judge/identity": None})
        shown.phase("update")
    screen = text.getvalue()
    for expected in (
        "1/10",
        "update",
        "prompt 0.610",
        "prompt 0.550 (base 0.500)",
        "identity - (base 0.400)",
    ):
        assert expected in screen


@pytest.mark.parametrize("terminal", [True, False])
def test_text_from_the_run_is_not_read_as_markup(terminal: bool) -> None:
    target, text = console(terminal)
    with progress(total=1, console=target) as shown:
        shown.message("alarm: [red]reward[/red] [/nonsense] rose")
    assert "alarm: [red]reward[/red] [/nonsense] rose" in text.getvalue()


def test_messages_above_the_bar_break_between_words_and_long_paths_not_at_all() -> None:
    target, text = console(terminal=True, width=30)
    path = "runs/" + 10 * "a-long-name-"
    with progress(total=1, console=target) as shown:
        shown.message("alarm: reward/identity rose where judges saw nothing")
        shown.message(f"kept {path}")
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text.getvalue()).split("\n")
    assert "alarm: reward/identity rose" in lines and "where judges saw nothing" in lines
    assert path in lines


def test_a_message_in_a_file_is_one_line() -> None:
    target, text = console(terminal=False, width=30)
    with progress(total=1, console=target) as shown:
        shown.message("alarm: reward/identity rose where judges saw nothing")
    assert text.getvalue() == "alarm: reward/identity rose where judges saw nothing\n"


def test_quiet_writes_nothing() -> None:
    text = io.StringIO()
    with progress(total=3, console=Console(file=text), quiet=True) as shown:
        shown.message("hello")
        shown.iteration(train(1))
        shown.evaluation({"kind": "eval", "iteration": 1})
    assert text.getvalue() == ""


def test_an_error_passes_through_and_leaves_the_terminal_usable() -> None:
    target, text = console(terminal=True)
    with pytest.raises(RuntimeError, match="boom"), progress(total=3, console=target):
        raise RuntimeError("boom")
    assert text.getvalue().endswith("\x1b[?25h")  # the cursor is back
    assert "stopped" in text.getvalue()


@pytest.mark.parametrize(("last", "word"), [(3, "done"), (2, "stopped")])
def test_a_run_that_leaves_before_its_last_iteration_is_not_done(last: int, word: str) -> None:
    target, text = console(terminal=True)
    with progress(total=3, console=target) as shown:
        shown.iteration(train(last))
    other = {"done": "stopped", "stopped": "done"}[word]
    assert word in text.getvalue() and other not in text.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_durations_read_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_without_judges_the_rewards_on_held_out_prompts_are_shown_and_called_so() -> None:
    out, text = console(terminal=False)
    with progress(2, console=out) as bar:
        bar.evaluation({"kind": "eval", "iteration": 0, "reward/prompt": 0.25, "reward/identity": 0.5})
    assert text.getvalue() == "held-out  prompt 0.250  identity 0.500  (by the training rewards)\n"
