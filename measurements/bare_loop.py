"""What an iteration costs beside the passes of its networks: CPU time of both, in turns.

    python measurements/bare_loop.py
    python measurements/bare_loop.py toybox train.group_size=12 rollout.steps=25 --turns 5

An iteration is encoding, rollout, decoding and update, without rewards. Its calls of the transformer, of the
autoencoder and of the text encoder are recorded once. "transformer" repeats the calls of the transformer with
the same inputs and does nothing else: those with a graph go back at once, with any gradient, and their graph
is freed before the next. "all networks" encodes and decodes as well. Ours and both take turns; times are
medians of CPU time, ratios medians of turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch

from customized_grpo.config import load_config
from customized_grpo.engine.attention import attention_gradients_in_fp32
from saved_work import Iteration

TRANSFORMER = "_velocity"
NETWORKS = (TRANSFORMER, "encode", "decode")
"""Methods of a policy that call a network."""

BARE = {"transformer": (TRANSFORMER,), "all networks": NETWORKS}


@dataclass(frozen=True)
class Call:
    """One call of a policy's method.

    Attributes:
        method: Its name.
        arguments: What it was given.
        has_graph: Whether gradients were enabled, so that a backward pass follows.
    """

    method: str
    arguments: tuple[Any, ...]
    has_graph: bool


@contextmanager
def recording(policy: Any) -> Iterator[list[Call]]:
    """Record the policy's calls of its networks inside the block."""
    calls: list[Call] = []

    def recorded(method: str) -> Callable[..., Any]:
        original = getattr(policy, method)

        def call(*arguments: Any) -> Any:
            calls.append(Call(method, arguments, torch.is_grad_enabled()))
            return original(*arguments)

        return call

    replacements = {method: recorded(method) for method in NETWORKS}
    with patch.multiple(policy, **replacements):
        yield calls


def repeat(policy: Any, calls: list[Call]) -> None:
    """Make the calls again, with a backward pass after each that had a graph."""
    for call in calls:
        with torch.set_grad_enabled(call.has_graph):
            output = getattr(policy, call.method)(*call.arguments)
        if call.has_graph:
            output.backward(torch.ones_like(output))


class Turns:
    """Ours and the bare passes of one iteration of a recipe.

    Args:
        iteration: The iteration.
    """

    def __init__(self, iteration: Iteration) -> None:
        self.iteration = iteration
        with recording(iteration.policy) as calls:
            self.ours()
        self.calls = calls

    def ours(self) -> float:
        """Return the CPU seconds of the iteration with nothing done twice."""
        return self.iteration.run(keeps_graphs=True, shares_start=True)[0]

    def bare(self, methods: tuple[str, ...]) -> float:
        """Return the CPU seconds of its calls of these methods."""
        calls = [call for call in self.calls if call.method in methods]
        policy = self.iteration.policy
        is_wide = self.iteration.config.train.attention_gradients == "fp32"
        start = time.process_time()
        with attention_gradients_in_fp32(policy.device, is_wide):
            repeat(policy, calls)
        return time.process_time() - start


def measure(turns: Turns, count: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each turn of "ours" and of both kinds of bare passes."""
    seconds: dict[str, list[float]] = {"ours": [], **{name: [] for name in BARE}}
    for turn in range(count + 1):
        taken = {"ours": turns.ours(), **{name: turns.bare(methods) for name, methods in BARE.items()}}
        if turn:  # the first one warms up
            for name, value in taken.items():
                seconds[name].append(value)
    return seconds


def main(arguments: list[str] | None = None) -> int:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="toybox", help="preset or YAML file")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="settings to replace")
    parser.add_argument("--turns", type=int, default=5, help="turns measured (default 5)")
    options = parser.parse_args(arguments)
    turns = Turns(Iteration(load_config(options.recipe, options.overrides)))
    seconds = measure(turns, options.turns)
    print(f"{options.recipe} {' '.join(options.overrides)}, {torch.get_num_threads()} threads")
    passes = [call for call in turns.calls if call.method == TRANSFORMER]
    print(f"{len(passes)} calls of the transformer, {sum(call.has_graph for call in passes)} go back")
    print("\n| bare passes of | CPU s | ours, CPU s | ours / bare, median of turns |\n|---|---|---|---|")
    ours = statistics.median(seconds["ours"])
    for name in BARE:
        ratios = [mine / bare for mine, bare in zip(seconds["ours"], seconds[name], strict=True)]
        median = statistics.median(seconds[name])
        print(f"| {name} | {median:.2f} | {ours:.2f} | {statistics.median(ratios):.3f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
