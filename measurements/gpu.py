"""Speed, memory and exactness of full-size models on one GPU, without any download.

    python measurements/gpu.py --out results.json    # all cases on the first CUDA device, within 9 minutes
    python measurements/gpu.py --cases klein klein-24gb
    python measurements/gpu.py --tiny --device cpu   # the same code on small models, to try the benchmark

Every case (gpu_case.py) is a preset on one group of 12 samples of 512 x 512 pixels with one reference, in a
process of its own: a failure does not stop the others. Four denoising steps, one of them trained. Each
process first measures the rate of large bf16 products; the rate of a phase is given as a share of that.
Recomputation under gradient checkpointing counts as work. Exit status 1 if a case has failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gpu_case import CASES

SCRIPT = Path(__file__).with_name("gpu_case.py")
BUDGET_S = 540
PATIENCE = 2.5
"""A case is stopped after this many times its expected seconds."""
PHASES = ("encode", "rollout", "decode", "update", "optimizer step")
GIB = 2**30

Result = Mapping[str, Any]


def run_case(name: str, options: Sequence[str], limit_s: float) -> dict[str, Any]:
    """Measure a case in a process of its own; a failure is also a result."""
    if limit_s <= 0:
        return {"case": name, "error": "not run: no time was left"}
    command = [sys.executable, str(SCRIPT), name, *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {"case": name, "error": f"took longer than {limit_s:.0f} s"}
    if done.returncode:
        reason = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return {"case": name, "error": reason[-1]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def peak(result: Result) -> tuple[str, str]:
    """Return the measured peak with its phase, and the planned peak of that phase."""
    peaks = result["peaks"]
    phase = max(peaks, key=lambda name: peaks[name]["measured"])
    measured = peaks[phase]["measured"] / GIB
    planned = peaks[phase]["planned"] / GIB
    return f"{measured:.3g} ({phase})", f"{planned:.3g}"


def share(result: Result, phase: str) -> str:
    """Return a phase's operations per second, also as a share of the measured product's rate."""
    rate = result["tflops"][phase]
    return f"{rate:.3g} ({rate / result['matmul_tflops']:.0%})"


def deviation(result: Result, kind: str) -> str:
    """Return a deviation from ratio 1."""
    return f"{result['ratio_deviation'][kind]:.1e}"


def seconds(phase: str) -> Callable[[Result], str]:
    """Return a column of a phase's seconds."""
    return lambda result: f"{result['seconds'][phase]:.2f}"


COLUMNS: dict[str, Callable[[Result], str]] = {
    "case": lambda result: result["case"],
    "batch": lambda result: str(result["batch"]),
    "s / iteration": lambda result: f"{result['iteration_s']:.2f}",
    **{f"{phase}, s": seconds(phase) for phase in PHASES},
    "images / s": lambda result: f"{result['images_per_s']:.2f}",
    "rollout, TFLOP/s": lambda result: share(result, "rollout"),
    "update, TFLOP/s": lambda result: share(result, "update"),
    "peak, GiB": lambda result: peak(result)[0],
    "planned, GiB": lambda result: peak(result)[1],
    "ratio - 1": lambda result: deviation(result, "same batches"),
    "rollout one by one, s": lambda result: f"{result['one_by_one_s']:.2f}",
    "ratio - 1 then": lambda result: deviation(result, "one by one"),
}


def table(results: Sequence[Result]) -> str:
    """Return the results as a Markdown table, and the failures below it."""
    done = [result for result in results if "error" not in result]
    lines = []
    if done:
        first = done[0]
        rates = [result["matmul_tflops"] for result in done]
        lines += [
            f"{first['device']}, torch {first['torch']}; large bf16 products: {max(rates):.3g} TFLOP/s",
            "",
            "| " + " | ".join(COLUMNS) + " |",
            "|---" * len(COLUMNS) + "|",
        ]
        for result in done:
            cells = [column(result) for column in COLUMNS.values()]
            lines.append(f"| {' | '.join(cells)} |")
    lines += [f"{result['case']}: {result['error']}" for result in results if "error" in result]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure the cases one after the other, print the table and write the numbers."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--device", default="cuda", help="torch device (default cuda)")
    parser.add_argument("--tiny", action="store_true", help="small models, to try the benchmark itself")
    parser.add_argument(
        "--budget", type=float, default=BUDGET_S, help=f"seconds for all (default {BUDGET_S})"
    )
    parser.add_argument("--out", type=Path, help="file for the numbers, kept up to date after every case")
    options = parser.parse_args(arguments)
    case_options = [f"--device={options.device}"]
    if options.tiny:
        case_options.append("--tiny")
    results = []
    start = time.monotonic()
    for name in options.cases:
        expected_s = CASES[name].expected_s
        case_start = time.monotonic()
        left = options.budget - (case_start - start)
        result = run_case(name, case_options, min(left, PATIENCE * expected_s))
        results.append(result | {"case_s": time.monotonic() - case_start, "expected_s": expected_s})
        print(f"{name}: {result.get('error', 'done')}, {results[-1]['case_s']:.0f} s", file=sys.stderr)
        if options.out is not None:
            options.out.write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))
    return int(any("error" in result for result in results))


if __name__ == "__main__":
    sys.exit(main())
