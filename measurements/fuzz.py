"""Throw damaged and hostile inputs at the package: each must be taken, or refused by one clear message.

    python measurements/fuzz.py                      # 10,000 inputs of every kind: what `make fuzz` does
    python measurements/fuzz.py --kinds recipes --inputs 500 --seed 3

An input fails when it raises anything but a message for the user, takes longer than `--seconds`, makes the
process grow by more than `--grow` MiB, or ends with another status than 0 or 2. Failing inputs are kept with
their traceback in `--keep`/KIND/NUMBER, and the exit status is 1. Input i of a kind depends on seed and i
alone.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from customized_grpo.errors import UserError
from fuzzing.targets import TARGETS, Target

WARM_UP = 50  # inputs before memory is measured: imports and caches come first
PROGRESS = 500  # inputs after which the figures so far are shown, on stderr
MIB_IN_KIB = 1024
STARVED = 10  # times as long as allowed: then it hangs, however little of the processor it got


class Hang(BaseException):
    """An input took too long; not an Exception, so that nothing on the way catches it."""


@dataclass
class Figures:
    """What became of the inputs of a kind.

    Attributes:
        kind: Its name.
        outcomes: Numbers of inputs by "taken", "refused" or what went wrong.
        seconds: Duration of all.
        slowest: Duration of the slowest input, in seconds.
        growth: Growth of the process's peak memory after the first inputs, in MiB.
        first_failures: The last line of each kind of traceback, with the number of its first input.
    """

    kind: str
    outcomes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    slowest: float = 0.0
    growth: float = 0.0
    first_failures: dict[str, int] = field(default_factory=dict)

    @property
    def failures(self) -> int:
        """Return how many inputs were neither taken nor refused."""
        return self.outcomes.total() - self.outcomes["taken"] - self.outcomes["refused"]


def fuzz(
    target_class: type[Target],
    inputs: int,
    seed: int,
    *,
    first: int = 0,
    seconds: float,
    grow: float,
    keep: Path | None,
) -> Figures:
    """Throw inputs of one kind.

    Args:
        target_class: The kind.
        inputs: How many.
        seed: Seed of all.
        first: Number of the first.
        seconds: The longest that one may take.
        grow: The most MiB by which the process may grow.
        keep: Folder for failing inputs; None keeps none.
    """
    figures = Figures(target_class.name)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        target = target_class(Path(temporary) / "work")
        peak = _peak_mib()
        for number in range(first, first + inputs):
            call = target.make(number, seed)
            started = time.monotonic()
            outcome, text = attempt(call, seconds)
            figures.slowest = max(figures.slowest, time.monotonic() - started)
            if number == first + WARM_UP:
                peak = _peak_mib()
            if number > first + WARM_UP and _peak_mib() - peak > grow and figures.growth <= grow:
                outcome = "grew"
            figures.growth = _peak_mib() - peak
            figures.outcomes[outcome] += 1
            if (number + 1 - first) % PROGRESS == 0:
                figures.seconds = time.monotonic() - begin
                print(f"so far: {row(figures)}", file=sys.stderr, flush=True)
            if outcome in ("taken", "refused"):
                continue
            last_line = text.strip().splitlines()[-1] if text.strip() else outcome
            is_new = last_line not in figures.first_failures
            figures.first_failures.setdefault(last_line, number)
            if keep is not None and is_new:
                _keep(target.folder, text, keep / target.name / str(number))
    figures.seconds = time.monotonic() - begin
    return figures


def attempt(call: Callable[[], int], seconds: float) -> tuple[str, str]:
    """Return what became of an input, and what is to be read about it."""
    printed = io.StringIO()
    try:
        with _time_limit(seconds), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            status: Any = call()
    except SystemExit as leave:
        status = leave.code
    except UserError as error:
        return ("refused", "") if error.message.strip() else ("empty message", "")
    except Hang:
        return "hang", f"it took more than {seconds:g} s"
    except BaseException:
        return "traceback", traceback.format_exc()
    text = printed.getvalue()
    if "Traceback" in text:
        return "traceback", text
    if status in (0, None):
        return "taken", ""
    if status == 2:
        return ("refused", "") if text.strip() else ("no message", "")
    return f"status {status}", text


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    begin = time.monotonic()
    begin_cpu = time.process_time()

    def stop(*_: object) -> None:
        # Beside heavy work an input may wait for the processor much longer than it uses it.
        if time.process_time() - begin_cpu > seconds / 2 or time.monotonic() - begin > STARVED * seconds:
            raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB_IN_KIB


def _keep(folder: Path, text: str, kept: Path) -> None:
    """Copy an input that failed, with its traceback."""
    shutil.rmtree(kept, ignore_errors=True)
    shutil.copytree(folder, kept)
    (kept / "traceback.txt").write_text(text, errors="backslashreplace")


def row(figures: Figures) -> str:
    """Return the figures of a kind as a row of the table."""
    taken = figures.outcomes["taken"]
    refused = figures.outcomes["refused"]
    return (
        f"| {figures.kind} | {figures.outcomes.total():,} | {taken:,} | {refused:,} | {figures.failures:,} | "
        f"{figures.slowest:.1f} | {figures.growth:.0f} | {figures.seconds:.0f} |"
    )


def main() -> int:
    """Throw the inputs that the command line asks for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    names = [target.name for target in TARGETS]
    parser.add_argument("--kinds", nargs="+", choices=names, default=names, help="default: all")
    parser.add_argument("--inputs", type=int, default=10_000, help="of every kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first: to share them out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=30.0, help="the longest an input may take")
    parser.add_argument("--grow", type=float, default=1024, help="MiB by which the process may grow")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="folder for failing inputs")
    parser.add_argument("--jobs", type=int, default=1, help="kinds side by side")
    options = parser.parse_args()

    print("| kind | inputs | taken | refused | failed | slowest s | grew MiB | seconds |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    limits = {"first": options.first, "seconds": options.seconds, "grow": options.grow, "keep": options.keep}
    # A process of its own for each kind: what one leaves behind must not help or harm another.
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=1) as pool:
        pending = [
            pool.apply_async(fuzz, (target, options.inputs, options.seed), limits)
            for target in TARGETS
            if target.name in options.kinds
        ]
        results = []
        for job in pending:
            figures = job.get()
            print(row(figures), flush=True)
            for line, number in figures.first_failures.items():
                print(f"    {number}: {line[:200]}", flush=True)
            results.append(figures)
    return int(any(figures.failures for figures in results))


if __name__ == "__main__":
    sys.exit(main())
