"""The share of a training iteration that is not model forward, backward, VAE or reward.

    python measurements/overhead.py                       # the preset toybox, five iterations
    python measurements/overhead.py toybox-smoke --iterations 2 --limit 1

Real training with stopwatches around the work that any implementation has to do. Every moment of the loop is
counted once, under the innermost stopwatch. The first iteration (compilation, first allocations) is left out.
Evaluation is also left out, because the recipe chooses how much of it there is. Checkpoints count at the
recipe's interval. Exit status 1 if the share is above the limit.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from customized_grpo.config import load_config
from customized_grpo.engine.engine import Engine
from customized_grpo.policies.flux1 import Flux1Policy
from customized_grpo.rewards.executors import Scorer
from customized_grpo.training.drawing import Drawing
from customized_grpo.training.evaluator import Evaluator
from customized_grpo.training.trainer import Trainer, train

WORK: dict[str, list[tuple[Any, str]]] = {
    "model forward": [(Flux1Policy, "velocity")],
    "model backward": [(Engine, "backward")],
    "encode prompts and references": [(Flux1Policy, "encode")],
    "VAE decode": [(Flux1Policy, "decode")],
    "reward": [(Scorer, "submit"), (Scorer, "collect")],
}
OVERHEAD: dict[str, list[tuple[Any, str]]] = {
    "data": [(Drawing, "draw")],
    "rollout: noise, steps, log-probs": [(Drawing, "collect")],
    "scoring batch, advantages": [(Drawing, "score"), (Trainer, "signal")],
    "update: loss, clipping, optimizer": [(Trainer, "update")],
    "metrics": [(Trainer, "record")],
    "checkpoint": [(Trainer, "save")],
    "loop": [(Trainer, "fit")],
}
LEFT_OUT = {"evaluation": [(Evaluator, "evaluate_base"), (Trainer, "evaluate"), (Trainer, "finish")]}
WARM_UP = 1  # iterations


class Stopwatches:
    """Seconds by label; of nested labels only the innermost is timed, and none inside `evaluation`."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.labels: list[str] = []
        self.since = 0.0

    def lap(self) -> None:
        """Book the time since the last change under the label that runs."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        if self.labels:
            self.seconds[self.labels[-1]] += now - self.since
        self.since = now

    @contextmanager
    def run(self, label: str) -> Iterator[None]:
        """Book the block under a label."""
        if self.labels and self.labels[-1] in LEFT_OUT:
            yield
            return
        self.lap()
        self.labels.append(label)
        try:
            yield
        finally:
            self.lap()
            self.labels.pop()

    def forget(self) -> None:
        """Start again from zero; the current label goes on."""
        self.lap()
        self.seconds.clear()

    def timed(self, label: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with a stopwatch."""

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.run(label):
                return function(*args, **kwargs)

        return call


def measure(recipe: str, overrides: list[str], iterations: int) -> dict[str, Any]:
    """Train and return seconds per iteration by label, and the share of overhead."""
    interval = load_config(recipe, overrides).checkpoint.every
    watches = Stopwatches()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for label, places in (WORK | OVERHEAD | LEFT_OUT).items():
            for owner, name in places:
                timed = watches.timed(label, getattr(owner, name))
                stack.enter_context(patch.object(owner, name, timed))
        record = Trainer.record

        def record_and_forget(self: Trainer, *args: Any) -> None:
            record(self, *args)
            if self.iteration == WARM_UP:
                watches.forget()

        stack.enter_context(patch.object(Trainer, "record", record_and_forget))
        once = [f"train.iterations={iterations + WARM_UP}", f"checkpoint.every={iterations + WARM_UP}"]
        config = load_config(recipe, [*overrides, f"run.dir={folder}/run", "evaluation.every=0", *once])
        status = train(config)
        assert status == 0, status
    seconds = {label: watches.seconds[label] / iterations for label in WORK | OVERHEAD}
    seconds["checkpoint"] *= iterations / interval  # one was saved, at the end
    total = sum(seconds.values())
    work = sum(seconds[label] for label in WORK)
    return {
        "recipe": recipe,
        "overrides": overrides,
        "iterations": iterations,
        "samples_per_iteration": config.train.prompts_per_iteration * config.train.group_size,
        "threads": torch.get_num_threads(),
        "seconds_per_iteration": total,
        "seconds": seconds,
        "overhead_share": 1 - work / total,
    }


def table(result: dict[str, Any]) -> str:
    """Return the result as aligned text."""
    total = result["seconds_per_iteration"]
    lines = [f"{'':34}{'s / iteration':>14}{'share':>9}"]
    for title, labels in (("work", WORK), ("overhead", OVERHEAD)):
        sums = sum(result["seconds"][label] for label in labels)
        lines.append(f"{title:34}{sums:14.4f}{sums / total:9.1%}")
        for label in labels:
            value = result["seconds"][label]
            lines.append(f"  {label:32}{value:14.4f}{value / total:9.1%}")
    return "\n".join([*lines, f"{'iteration':34}{total:14.4f}{1:9.1%}"])


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and say by the exit status whether the limit holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="toybox", help="preset or YAML file")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="settings to replace")
    parser.add_argument("--iterations", type=int, default=5, help="iterations measured (default 5)")
    parser.add_argument("--limit", type=float, default=0.1, help="largest share of overhead (default .1)")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args(arguments)
    result = measure(options.recipe, options.overrides, options.iterations)
    result |= {"limit": options.limit, "within_limit": result["overhead_share"] <= options.limit}
    print(table(result))
    text = json.dumps(result, indent=2)
    if options.json is None:
        print(text)
    else:
        options.json.write_text(text + "\n")
    return 0 if result["within_limit"] else 1


if __name__ == "__main__":
    sys.exit(main())
