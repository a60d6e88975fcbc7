"""Live progress: a bar and the numbers that matter on a terminal, one plain line an iteration elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from customized_grpo.kinds import KINDS
from customized_grpo.reporting.terminal import keep_prints_inert, print_sentence, terminal_console

PACE_WINDOW = 20
"""Iterations that the speed and the time left are averaged over."""


def progress(
    total: int,
    start: int = 0,
    *,
    console: Console | None = None,
    quiet: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """Return a progress display of iterations `start` to `total`, for a `with` statement.

    Args:
        total: Iterations of the whole run.
        start: Iterations already done (a resumed run).
        console: Where to write; standard error by default, live only if it is a terminal.
        quiet: Write nothing (every process but the first).
        clock: Seconds, for tests.
    """
    return Progress(total, start, console or terminal_console(quiet=quiet), quiet=quiet, clock=clock)


class Progress:
    """See `progress`. All methods take plain numbers and text; text from a run is never read as markup."""

    def __init__(
        self, total: int, start: int, console: Console, *, quiet: bool, clock: Callable[[], float]
    ) -> None:
        self._total = total
        self._done = start
        self._console = console
        self._quiet = quiet
        self._clock = clock
        self._phase = "starting"
        self._train: Mapping[str, Any] = {}
        self._first_eval: Mapping[str, Any] = {}
        self._last_eval: Mapping[str, Any] = {}
        # (time, iterations done, rollouts): iterations alone would not give rollouts a second after a resume.
        self._pace: deque[tuple[float, int, float | None]] = deque(maxlen=PACE_WINDOW + 1)
        self._live: Live | None = None

    def __enter__(self) -> Self:
        self._pace.append((self._clock(), self._done, None))
        if self._console.is_terminal and not self._quiet:
            self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4)
            self._live.start()
            keep_prints_inert()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            # an interrupted run saves and leaves without an error
            is_done = error is None and self._done >= self._total
            self._phase = "done" if is_done else "stopped"
            self._live.stop()
            self._live = None

    def phase(self, name: str) -> None:
        """Say what the run is busy with (rollout, reward, update, evaluate); shown live only."""
        self._phase = name
        if self._live is not None:
            self._live.refresh()

    def iteration(self, metrics: Mapping[str, Any]) -> None:
        """Show one finished iteration.

        Args:
            metrics: The train record: `iteration` and `rollouts` count what the run has done.
        """
        self._train = metrics
        self._done = int(metrics["iteration"])
        self._pace.append((self._clock(), self._done, metrics.get("rollouts")))
        if self._live is None:
            self._print(self._plain())

    def evaluation(self, metrics: Mapping[str, Any]) -> None:
        """Show one finished evaluation (an eval record); later ones stand beside the first one."""
        self._first_eval = self._first_eval or metrics
        self._last_eval = metrics
        if self._live is None:
            self._print(f"held-out  {self._held_out()}" + self._caveat())

    def message(self, text: str) -> None:
        """Show a line that stays on the screen above the bar (an alarm, a checkpoint)."""
        self._print(text)

    def _print(self, text: str) -> None:
        if not self._quiet:
            print_sentence(self._console, text)

    def _speed(self) -> tuple[float | None, float | None]:
        """Return (seconds an iteration, rollouts a second) over the window; None until known."""
        t0, done0, rollouts0 = self._pace[0]
        t1, done1, rollouts1 = self._pace[-1]
        # Before the first iteration has ended there is no pace.
        if done1 <= done0 or t1 <= t0:
            return None, None
        if rollouts0 is None and rollouts1 is not None:
            rollouts0 = rollouts1 * done0 / done1  # the entry made at the start knows iterations only
        seconds = t1 - t0
        rate = None
        if rollouts0 is not None and rollouts1 is not None:
            rate = (rollouts1 - rollouts0) / seconds
        return seconds / (done1 - done0), rate

    def _left(self) -> str:
        seconds, _ = self._speed()
        return "-" if seconds is None else duration(seconds * (self._total - self._done))

    def _rewards(self) -> str:
        return "  ".join(f"{kind} {number(self._train.get(f'reward/{kind}'))}" for kind in self._kinds())

    def _kinds(self) -> list[str]:
        """Return the kinds of reward that training has measured."""
        return [kind for kind in KINDS if f"reward/{kind}" in self._train]

    def _judged_by(self) -> str:
        """Return the source of held-out scores: "judge", or "reward" where there are no judges."""
        has_judges = any(f"judge/{kind}" in self._last_eval for kind in KINDS)
        return "judge" if has_judges else "reward"

    def _held_out(self) -> str:
        parts = []
        for label in KINDS:
            key = f"{self._judged_by()}/{label}"
            if key not in self._last_eval:
                continue
            text = f"{label} {number(self._last_eval.get(key))}"
            # The first evaluation is the base itself.
            if self._last_eval is not self._first_eval:
                text += f" (base {number(self._first_eval.get(key))})"
            parts.append(text)
        return "  ".join(parts)

    def _caveat(self) -> str:
        return "" if self._judged_by() == "judge" else "  (by the training rewards)"

    def _plain(self) -> str:
        _, rate = self._speed()
        rollouts = self._train.get("rollouts")
        spreads = [number(self._train.get(f"reward/{kind}_group_std")) for kind in self._kinds()]
        return "  ".join(
            [
                f"iteration {self._done:>{len(str(self._total))}}/{self._total}",
                f"rollouts {rollouts:,}" if isinstance(rollouts, int) else "rollouts -",
                f"{number(rate, 1)}/s",
                "reward " + self._rewards(),
                "group std " + " ".join(spreads),
                f"left {self._left()}",
            ]
        )

    def _render(self) -> Group:
        _, rate = self._speed()
        bar = Table.grid(padding=(0, 2), expand=False)
        bar.add_row(
            Text(f"{self._done}/{self._total}", style="bold"),
            ProgressBar(total=max(self._total, 1), completed=self._done, width=36),
            Text(f"{self._left()} left"),
            Text(f"{number(rate, 1)} rollouts/s", style="dim"),
            Text(self._phase, style="cyan"),
        )
        lines: list[Table | Text] = [bar]
        if self._train:
            lines.append(Text.assemble(("training reward  ", "dim"), self._rewards()))
        if self._last_eval:
            lines.append(Text.assemble((f"held-out {self._judged_by()}s  ", "dim"), self._held_out()))
        return Group(*lines)


def number(value: object, decimals: int = 3) -> str:
    """Return a number for a status line; "-" when it was not measured."""
    return f"{value:.{decimals}f}" if isinstance(value, int | float) else "-"


def duration(seconds: float) -> str:
    """Return seconds in words: 42 s, 3 min 05 s, 2 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
