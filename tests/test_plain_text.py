"""Foreign text shown on a terminal or in Markdown."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from customized_grpo.cli.common import table
from customized_grpo.cli.main import main
from customized_grpo.cli.output import LenientStream, lenient_output
from customized_grpo.export.card import code, escape_markdown
from customized_grpo.plain_text import one_line, printable
from customized_grpo.reporting.counting import counting
from customized_grpo.reporting.progress import progress
from processes import on_a_terminal

HOSTILE = "a\x1b]0;owned\x07\x1b[2Jb\u202egnp.exe\u2028\x00\x9b31m\r"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("naïve 🐶 中文\n", "naïve 🐶 中文\n"),
        ("\U0001f468\u200d\U0001f469 a\u00a0b", "\U0001f468\u200d\U0001f469 a\u00a0b"),
        ("\x1b[2J\x9b\x07\x7f\x00", "\\x1b[2J\\x9b\\x07\\x7f\\x00"),
        ("\u202e\u2066\u200f\ufeff\u2028", "\\u202e\\u2066\\u200f\\ufeff\\u2028"),
        ("caf\udce9", "caf\\udce9"),
        ("\r\tx", "\\r\\tx"),
    ],
)
def test_what_could_drive_a_terminal_is_an_escape(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_one_line_is_one_line() -> None:
    assert one_line("a\nerror: b\r\n\x1bc\u2028d") == "a error: b \\x1bc d"
    assert table([["a\nb", "c"]]) == "a b  c"


def is_inert(text: str) -> bool:
    return not set(text) & set("\x1b\x9b\x07\u202e\u2028\x00")


def test_whatever_is_printed_is_inert_on_a_terminal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    with lenient_output():
        print(HOSTILE)
        print(HOSTILE, file=sys.stderr)
        sys.stderr.write("\n\x1b[A")  # a bar of tqdm goes up a line
    assert is_inert(terminal.getvalue().replace("\n\x1b[A", "")) and "\n\x1b[A" in terminal.getvalue()


def test_a_live_display_draws_and_its_messages_are_inert() -> None:
    text = io.StringIO()
    stream = LenientStream(text)
    console = Console(file=stream, force_terminal=True, color_system=None)
    with progress(total=2, console=console) as shown:
        shown.message(HOSTILE)
    assert "\x1b[?25l" in text.getvalue(), "no live display"
    drawn = io.StringIO()
    bar = counting("drawing", 2, console=Console(file=drawn))
    bar.note(HOSTILE)
    bar.close()
    assert "owned" in drawn.getvalue() and is_inert(drawn.getvalue())
    assert "\x1b]0;" not in text.getvalue() and "\u202e" not in text.getvalue()


LIVE = """
import sys
from customized_grpo.cli.output import lenient_output
from customized_grpo.reporting.counting import counting
from customized_grpo.reporting.progress import progress

with lenient_output():
    with progress(total=2) as shown:
        shown.iteration({"iteration": 1, "reward/prompt": 0.5})
        print("printed " + sys.argv[1], file=sys.stderr)
        print("printed " + sys.argv[1])
        shown.message(sys.argv[1])
        shown.phase("update")
    bar = counting("drawing", 4)
    bar.add(2)
    print("printed " + sys.argv[1])
    bar.close()
    sys.stdout.write("\\x1b[0m")  # colorama, when Python ends
"""


def test_on_a_real_terminal_displays_draw_and_whatever_is_printed_meanwhile_is_inert() -> None:
    shown = on_a_terminal([sys.executable, "-c", LIVE, "\x1b]0;owned\x07\x9b2J \x1b[31m"])
    assert "\\x1b[1m" not in shown and "\\x1b[0m" not in shown, "a display shows its colours as text"
    assert "\x1b[2K" in shown and "\x1b[1m1/2" in shown and shown.endswith("\x1b[0m")
    assert shown.count("printed \\x1b]0;owned\\x07\\x9b2J \\x1b[31m") == 3
    assert "\x1b]" not in shown and "\x9b" not in shown and "\x1b[31m" not in shown


def test_an_error_that_names_a_hostile_file_is_inert(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(tmp_path / HOSTILE.replace("\x00", "")) + ".yaml"]) == 2
    printed = "".join(capfd.readouterr())
    assert "owned" in printed and is_inert(printed)


def test_markdown_of_foreign_text_is_one_inert_line() -> None:
    for shown in (escape_markdown, code):
        assert is_inert(shown(HOSTILE))
    assert escape_markdown("[x](javascript:alert(1))").startswith("\\[x\\](")
