"""The peak memory of every process that a command starts, as a Markdown table.

    python measurements/process_memory.py                      # all cases, some minutes of two cores
    python measurements/process_memory.py --only training service

The models are ToyBox's, which take 60 MB together, so the figures are what the program itself takes: Python,
torch and the other libraries, the files of a run. Add to it the weights that `cgrpo plan` predicts. A peak is
the kernel's VmHWM of a process, shared pages of libraries counted in each. Linux only.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

POLL_S = 0.2
PATIENCE_S = 900.0
MEBIBYTE = 2**20
CGRPO = [sys.executable, "-m", "customized_grpo"]
SHORT = ["train.iterations=2", "evaluation.every=0", "model.precision=fp32"]


@dataclass(frozen=True)
class Case:
    """One command.

    Attributes:
        what: Name in the table.
        command: Makes its words for a folder that it may write to.
        serves_s: Seconds after which it is ended, for one that does not end by itself.
    """

    what: str
    command: Callable[[Path], list[str]]
    serves_s: float | None = None


def _train(folder: Path) -> list[str]:
    return [*CGRPO, "train", "toybox", f"run.dir={folder / 'run'}", *SHORT]


def _torchrun(folder: Path) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return [*launcher, *_train(folder)[1:]]


def _ray(folder: Path) -> list[str]:
    return [*_train(folder), "rewards.0.executor={kind: ray}"]


def _compare(folder: Path) -> list[str]:
    arms = ["--only", "naive-0.5", "--seeds", "1", "--jobs", "1", "--no-doctor", "--out", str(folder / "out")]
    return [*CGRPO, "compare", "two-scale", *arms, "train.iterations=2"]


def _service(folder: Path) -> list[str]:
    return [*CGRPO, "serve-rewards", "toybox", "--port", "0", "model.device=cpu"]


def _studio(folder: Path) -> list[str]:
    return [*CGRPO, "studio", str(folder), "--port", "0"]


CASES = {
    "training": Case("training, one process", _train),
    "processes": Case("training, two processes by torchrun", _torchrun),
    "ray": Case("training, one reward in a Ray actor", _ray),
    "compare": Case("comparison of one run", _compare),
    "service": Case("reward service, idle", _service, serves_s=30),
    "studio": Case("studio, idle", _studio, serves_s=15),
}


def peaks(case: Case, folder: Path) -> Mapping[str, list[int]]:
    """Return the peak bytes of every process of a case, by its role, largest first.

    Raises:
        RuntimeError: The command failed; its log is in the message.
    """
    found: dict[int, tuple[str, int]] = {}
    log = folder / "log.txt"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as out:
        process = subprocess.Popen(case.command(folder), stdout=out, stderr=out, env=environment)
    started = time.monotonic()
    asked_to_end = False
    while process.poll() is None:
        for one in _family(process.pid):
            peak = _peak(one.pid)
            if peak is not None:
                found[one.pid] = (_role(one, process.pid), peak)
        seconds = time.monotonic() - started
        if case.serves_s is not None and seconds > case.serves_s and not asked_to_end:
            process.send_signal(signal.SIGTERM)
            asked_to_end = True
        if seconds > PATIENCE_S:
            process.kill()
        time.sleep(POLL_S)
    if process.returncode != 0 and not asked_to_end:
        raise RuntimeError(f"{case.what}: exit status {process.returncode}\n{log.read_text()[-2000:]}")
    roles: dict[str, list[int]] = {}
    for role, peak in sorted(found.values(), key=lambda entry: -entry[1]):
        roles.setdefault(role, []).append(peak)
    return roles


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _peak(pid: int) -> int | None:
    """Return VmHWM in bytes; None for a process that has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def _role(process: psutil.Process, main: int) -> str:
    """Return what a process is, by its command line."""
    try:
        words = process.cmdline()
    except psutil.NoSuchProcess:
        return "ended"
    line = " ".join(words)
    if line.startswith("ray::"):
        return "Ray actor"
    if "raylet" in line or "gcs_server" in line or "/ray/" in line:
        return "Ray's own"
    if "torch.distributed.run" in line:
        return "torchrun"
    for verb in ("train", "compare", "serve-rewards", "studio"):
        if verb in words:
            return f"cgrpo {verb}"
    return "main" if process.pid == main else "helper"


def table(results: Mapping[str, Mapping[str, list[int]]]) -> str:
    """Return the figures as Markdown."""
    lines = ["| command | process | peak, MiB, each |", "|---|---|---|"]
    for what, roles in results.items():
        for role, sizes in roles.items():
            figures = ", ".join(f"{size / MEBIBYTE:,.0f}" for size in sizes)
            lines.append(f"| {what} | {role} | {figures} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    results: dict[str, Mapping[str, list[int]]] = {}
    for name in options.only:
        case = CASES[name]
        print(f"{case.what} ...", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            results[case.what] = peaks(case, Path(folder))
    print(table(results))


if __name__ == "__main__":
    main()
