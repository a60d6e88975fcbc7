"""Streams that are full, gone, closed or of another encoding: what is printed never ends the work."""

from __future__ import annotations

import errno
import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from commands import status
from customized_grpo.cli.output import LenientStream, lenient_output
from customized_grpo.reporting.progress import progress
from processes import CGRPO, child_environment, on_a_terminal, run_python


class Refusing(io.StringIO):
    """A stream that refuses every write, or only the sending of what it has buffered."""

    def __init__(self, number: int, *, at_flush: bool = False) -> None:
        super().__init__()
        self.error = OSError(number, os.strerror(number))
        self.at_flush = at_flush

    def write(self, text: str) -> int:
        if not self.at_flush:
            raise self.error
        return len(text)

    def flush(self) -> None:
        if not self.closed:
            raise self.error


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EBADF])
@pytest.mark.parametrize("at_flush", [False, True])
def test_whatever_a_stream_refuses_the_work_goes_on(
    number: int, at_flush: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", Refusing(number, at_flush=at_flush))
    monkeypatch.setattr(sys, "stderr", Refusing(number, at_flush=at_flush))
    with lenient_output() as output:
        print("to standard output", flush=True)
        print("to standard error", file=sys.stderr, flush=True)
        sys.stdout.writelines(["a\n", "b\n"])
        with progress(total=1, console=Console(stderr=True, force_terminal=True)) as shown:
            shown.iteration({"iteration": 1})
    assert output.loss is not None and output.loss.errno == number
    assert output.was_full == (number == errno.ENOSPC)


@pytest.mark.parametrize(
    ("encoding", "text", "shown"),
    [
        ("ascii", "naïve 🐶", b"na\\xefve \\U0001f436\n"),
        ("cp1252", "naïve 🐶", b"na\xefve \\U0001f436\n"),
        ("utf-8", os.fsdecode(b"caf\xe9.png"), b"caf\\udce9.png\n"),  # a file name that is not UTF-8
    ],
)
def test_a_character_that_the_encoding_lacks_is_escaped(encoding: str, text: str, shown: bytes) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    print(text, file=LenientStream(stream), flush=True)
    assert raw.getvalue() == shown


def test_a_disk_that_was_full_for_a_while_gets_the_later_lines() -> None:
    text = Refusing(errno.ENOSPC)
    stream = LenientStream(text)
    print("lost", file=stream)
    text.write = io.StringIO.write.__get__(text)  # type: ignore[method-assign]
    print("kept", file=stream)
    assert text.getvalue() == "kept\n"


def full() -> io.TextIOWrapper:
    return open("/dev/full", "w")


def test_a_result_that_could_not_be_written_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with full() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert status("config", "show", "toybox") == 2
        monkeypatch.undo()
    assert "the standard output could not be written: No space left on device" in capsys.readouterr().err


def test_the_exit_status_of_a_training_is_that_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    import customized_grpo.training.trainer as trainer

    def print_and_end(config: object) -> int:
        print("report: somewhere", flush=True)
        return 0

    monkeypatch.setattr(trainer, "train", print_and_end)
    with full() as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert status("train", "toybox") == 0
        monkeypatch.undo()


def shell(command: str, folder: Path) -> tuple[int, str]:
    """Run a shell command in which $CGRPO is the command; return its exit status and what it printed."""
    program = " ".join([sys.executable, *CGRPO])
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        cwd=folder,
        env=child_environment(CGRPO=program),
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
def test_closed_and_abandoned_streams_of_a_real_process(tmp_path: Path) -> None:
    """A pipe without a reader, `>&-`, `2>&-`: a quiet end, also when the interpreter flushes at its exit."""
    commands = [
        "$CGRPO config schema | head -1 > /dev/null",
        "$CGRPO config presets >&-",
        "! $CGRPO config show nope 2>&-",
        "$CGRPO config presets <&- >&- 2>&-",
    ]
    code, printed = shell(" && ".join(commands), tmp_path)
    assert (code, printed) == (0, "")


def test_a_terminal_that_closes_ends_nothing() -> None:
    terminal, side = pty.openpty()
    with open(side, "w") as stream:
        os.close(terminal)
        lenient = LenientStream(stream)
        print("to nobody", file=lenient, flush=True)
        print("to /dev/null", file=lenient, flush=True)
        assert lenient.loss is not None and lenient.loss.errno == errno.EIO


LOADING = """
import sys, time
from customized_grpo.cli import output

output.PATIENCE_S = 0.2
with output.lenient_output(), output.word_while_loading():
    if "prints" in sys.argv:
        print("first words")
    time.sleep(0 if "quick" in sys.argv else 1)
print("end", flush=True)
time.sleep(0.5)
"""


@pytest.mark.parametrize(
    ("behaviour", "shown"),
    [
        ("", "loading the libraries ...\r\nend\r\n"),
        ("prints", "first words\r\nend\r\n"),
        ("quick", "end\r\n"),
    ],
)
def test_a_terminal_gets_a_word_where_a_command_is_silent_for_long(behaviour: str, shown: str) -> None:
    assert on_a_terminal([sys.executable, "-c", LOADING, behaviour]) == shown


def test_a_file_gets_no_word_about_loading() -> None:
    done = run_python("-c", LOADING, "")
    assert (done.stdout, done.stderr) == ("end\n", "")
