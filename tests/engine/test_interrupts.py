"""Which signals stop a run, with which exit status, and which a second time end it at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from customized_grpo.engine import interrupts
from customized_grpo.engine.interrupts import SAME_STOP_S, Interrupted, StopFlag


@contextmanager
def ignored(number: signal.Signals) -> Iterator[None]:
    before = signal.signal(number, signal.SIG_IGN)
    yield
    signal.signal(number, before)


@pytest.fixture(autouse=True)
def not_ignored() -> Iterator[None]:
    """Let SIGHUP end the process, as without nohup, under which these tests may run."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("SIGTERM", 143),
        ("SIGINT", 130),
        ("SIGHUP", 129),
        ("SIGUSR1", 138),
        ("SIGUSR2", 140),
        ("SIGXCPU", 152),
    ],
)
def test_every_signal_of_an_early_end_is_a_stop_with_its_own_status(name: str, status: int) -> None:
    number = signal.Signals[name]
    before = signal.getsignal(number)
    with StopFlag() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted) as interrupted:
            stop.check()
    assert interrupted.value.status == status
    assert signal.getsignal(number) is before


def test_under_nohup_a_closed_terminal_is_no_stop_but_sigterm_is() -> None:
    with ignored(signal.SIGHUP), StopFlag() as stop:
        os.kill(os.getpid(), signal.SIGHUP)
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted):
            stop.check()


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Exit statuses with which the process would have ended at once."""
    statuses: list[int] = []
    monkeypatch.setattr(interrupts.os, "_exit", statuses.append)
    return statuses


@pytest.mark.parametrize("first", ["SIGTERM", "SIGHUP"])
def test_a_closed_terminal_never_costs_the_save_of_a_stop(first: str, ends: list[int]) -> None:
    with StopFlag() as stop:
        os.kill(os.getpid(), signal.Signals[first])
        stop.since -= 2 * SAME_STOP_S
        os.kill(os.getpid(), signal.SIGHUP)
        assert ends == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert ends == [143]
