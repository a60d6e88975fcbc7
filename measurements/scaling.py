"""How the time of an iteration and the memory of a process grow: a table of one setting at a time.

    python measurements/scaling.py --out scaling.json            # about two minutes of one core
    python measurements/scaling.py --out scaling.json --axes "group size" processes
    python measurements/scaling.py --out scaling.json --tiny     # seconds; its times mean nothing

Real training of ToyBox's small FLUX.1-Kontext on rows of a manifest, on the CPU, every case in processes of
its own. Seconds are CPU time of all processes together. What is in the file already is not measured again, so
the same command goes on after an interruption. The table is written beside the JSON, as Markdown.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image

from customized_grpo.config import load_config
from customized_grpo.files import write_json, write_text
from customized_grpo.training.evaluator import Evaluator
from customized_grpo.training.trainer import Trainer, train

WARM_UP = 1
"""Iterations before those that are measured."""

PATIENCE_S = 3600
"""Seconds after which a case hangs."""

BASE: dict[str, int] = {
    "group size": 4,
    "prompts": 4,
    "steps": 8,
    "resolution": 64,
    "references": 1,
    "held-out rows": 8,
    "processes": 1,
}
"""The case from which each axis departs."""

AXES: dict[str, tuple[int, ...]] = {
    "group size": (4, 8, 12),
    "prompts": (4, 8, 16),
    "steps": (8, 16, 24),
    "resolution": (64, 128, 192),
    "references": (1, 2, 4),
    "held-out rows": (8, 32, 128),
    "processes": (1, 2, 4),
}
TINY_BASE: dict[str, int] = {**BASE, "group size": 2, "prompts": 2, "steps": 2, "held-out rows": 2}
TINY_AXES: dict[str, tuple[int, ...]] = {"group size": (2, 3), "processes": (1, 2)}


@dataclass(frozen=True)
class Case:
    """One point of the table.

    Attributes:
        values: Value of every axis.
        iterations: Iterations that are measured.
    """

    values: dict[str, int] = field(default_factory=dict)
    iterations: int = 2

    @property
    def name(self) -> str:
        """Return the values as a text, by which a result is found again."""
        return ", ".join(f"{axis} {value}" for axis, value in self.values.items())

    def overrides(self, folder: Path) -> list[str]:
        """Return the settings of the recipe `toybox` that make the case."""
        values = self.values
        samples = values["prompts"] * values["group size"] // values["processes"]
        data = f"data={{kind: manifest, train: {folder}/train.jsonl, held_out: {folder}/held_out.jsonl}}"
        return [
            data,
            f"run.dir={folder}/run",
            f"model.height={values['resolution']}",
            f"model.width={values['resolution']}",
            "rewards.dino.segment=none",
            f"rollout.steps={values['steps']}",
            f"rollout.batch_size={samples}",
            f"train.micro_batch_size={samples}",
            f"train.prompts_per_iteration={values['prompts']}",
            f"train.group_size={values['group size']}",
            f"train.iterations={WARM_UP + self.iterations}",
            "model.precision=fp32",  # many CPUs emulate bf16
            "evaluation.every=0",
            "evaluation.samples_per_prompt=1",
            "evaluation.batch_size=16",
            "checkpoint.every=1000",
        ]


def cases(base: dict[str, int], axes: dict[str, tuple[int, ...]], iterations: int) -> list[Case]:
    """Return the cases of the axes, each once."""
    found: dict[str, Case] = {}
    for axis, values in axes.items():
        for value in values:
            case = Case({**base, axis: value}, iterations)
            found.setdefault(case.name, case)
    return list(found.values())


def make_rows(folder: Path, case: Case) -> None:
    """Write the manifests of a case and their images."""
    size = case.values["resolution"]
    counts = {"train": case.values["prompts"], "held_out": case.values["held-out rows"]}
    for part, count in counts.items():
        lines = []
        for number in range(count):
            names = [f"{part}-{number}-{place}.png" for place in range(case.values["references"])]
            for place, name in enumerate(names):
                colour = (37 * number % 256, 91 * place % 256, 200 if part == "train" else 60)
                Image.new("RGB", (size, size), colour).save(folder / name)
            row = {
                "id": f"{part}-{number}",
                "prompt": "a toy on a plain red floor at night",
                "references": names,
            }
            lines.append(json.dumps({**row, "subject": f"{part} {number}"}) + "\n")
        (folder / f"{part}.jsonl").write_text("".join(lines))


# One process


def run_rank(overrides: Sequence[str], variables: dict[str, str], figures: Path) -> None:
    """Train in this process, which belongs to nobody else, and write its CPU seconds and memory."""
    os.environ.update(variables)
    torch.set_num_threads(1)
    clock: list[float] = []
    evaluation: list[float] = []
    record = Trainer.record
    evaluate_base = Evaluator.evaluate_base

    def timed_record(self: Trainer, *args: Any) -> None:
        record(self, *args)
        clock.append(time.process_time())

    def timed_evaluation(self: Evaluator) -> None:
        start = time.process_time()
        evaluate_base(self)
        evaluation.append(time.process_time() - start)

    with (
        patch.object(Trainer, "record", timed_record),
        patch.object(Evaluator, "evaluate_base", timed_evaluation),
    ):
        status = train(load_config("toybox", overrides))
    assert status == 0, status
    measured = clock[WARM_UP - 1 :]
    figure = {
        "iteration_s": (measured[-1] - measured[0]) / (len(measured) - 1),
        "evaluation_s": evaluation[0],
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1.024 / 1000,  # of KiB
    }
    figures.write_text(json.dumps(figure))


def measure(case: Case) -> dict[str, Any]:
    """Run a case in processes of its own, forked from this one, which has paid for the imports.

    Raises:
        RuntimeError: A process failed or hangs.
    """
    n_processes = case.values["processes"]
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_rows(folder, case)
        files = [folder / f"rank-{rank}.json" for rank in range(n_processes)]
        port = free_port()
        children = [
            context.Process(
                target=run_rank, args=(case.overrides(folder), launched(rank, n_processes, port), file)
            )
            for rank, file in enumerate(files)
        ]
        start = time.perf_counter()
        for child in children:
            child.start()
        for child in children:
            child.join(PATIENCE_S)
        for child in children:
            if child.is_alive():
                child.kill()
        if any(child.exitcode != 0 for child in children):
            raise RuntimeError(f"{case.name}: exit statuses {[child.exitcode for child in children]}")
        figures = [json.loads(file.read_text()) for file in files]
    return {
        "case": case.name,
        "values": case.values,
        "iteration_cpu_s": round(sum(figure["iteration_s"] for figure in figures), 3),
        "evaluation_cpu_s": round(sum(figure["evaluation_s"] for figure in figures), 3),
        "peak_mb": round(max(figure["peak_mb"] for figure in figures)),
        "wall_s": round(time.perf_counter() - start, 1),
    }


def launched(rank: int, n_processes: int, port: int) -> dict[str, str]:
    """Return what a launcher sets; a single process is started without one."""
    if n_processes == 1:
        return {}
    numbers = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n_processes)}
    return {**numbers, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


# The table


def table(results: Sequence[dict[str, Any]], base: dict[str, int], axes: dict[str, tuple[int, ...]]) -> str:
    """Return the results as Markdown, a row for every value of every axis; the base case is in each."""
    by_values = {tuple(sorted(result["values"].items())): result for result in results}
    first = by_values.get(tuple(sorted(base.items())))
    lines = [
        "| axis | value | iteration, CPU s | of the base case | evaluation, CPU s | peak of a process, MB |",
        "|---|---|---|---|---|---|",
    ]
    for axis, values in axes.items():
        for value in values:
            result = by_values.get(tuple(sorted({**base, axis: value}.items())))
            if result is None or first is None:
                continue
            ratio = result["iteration_cpu_s"] / first["iteration_cpu_s"]
            lines.append(
                f"| {axis} | {value} | {result['iteration_cpu_s']:.2f} | {ratio:.2f} | "
                f"{result['evaluation_cpu_s']:.2f} | {result['peak_mb']} |"
            )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing, and write JSON and table after every case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("scaling.json"), help="file for the numbers")
    parser.add_argument("--axes", nargs="+", choices=list(AXES), help="axes to measure (default: all)")
    parser.add_argument("--iterations", type=int, default=2, help="iterations measured of a case (default 2)")
    parser.add_argument("--tiny", action="store_true", help="two axes of the smallest cases, for a test")
    options = parser.parse_args(arguments)
    base = TINY_BASE if options.tiny else BASE
    axes = TINY_AXES if options.tiny else AXES
    wanted = {axis: axes[axis] for axis in options.axes or axes if axis in axes}
    results: list[dict[str, Any]] = (
        json.loads(options.out.read_text())["cases"] if options.out.exists() else []
    )
    measured = {result["case"] for result in results}
    for case in cases(base, wanted, options.iterations):
        if case.name in measured:
            continue
        results.append(measure(case))
        write_json(options.out, {"base": base, "iterations": options.iterations, "cases": results})
        write_text(options.out.with_suffix(".md"), table(results, base, axes))
        print(results[-1], flush=True)
    print(table(results, base, axes), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
