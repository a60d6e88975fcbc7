"""What an iteration is spared by work that is not done twice: CPU time with and without, in turns.

    python measurements/saved_work.py
    python measurements/saved_work.py toybox rollout.sde_window.size=2 rollout.sde_window.start=4 --turns 5

An iteration is rollout, decoding and update, without rewards. "nothing" computes the trained steps again in
the update and draws every step for every sample; the others leave out one of both, or both. Samples and
gradients of all of them are the same bit for bit, which is checked. Variants take turns; times are medians of
CPU time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import customized_grpo.rollout.collect as collecting
from customized_grpo.config import Config, load_config
from customized_grpo.engine.attention import attention_gradients_in_fp32
from customized_grpo.engine.engine import Engine
from customized_grpo.rollout.collect import NoiseKey, collect
from customized_grpo.rollout.encoding import PromptEncoder
from customized_grpo.rollout.sampler import build_sampler, plan_steps
from customized_grpo.training.losses import UpdateLoss
from customized_grpo.training.parts import build_data, build_policy
from customized_grpo.training.signal import LearningSignal

VARIANTS = {
    "nothing": (False, False),
    "graphs kept": (True, False),
    "start shared": (False, True),
    "both": (True, True),
}
"""By name: whether graphs are kept from the rollout, and whether a group shares its first steps."""


class Iteration:
    """The first iteration of a recipe, to be computed again and again.

    Args:
        config: The recipe.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.policy = build_policy(config)
        self.encoder = PromptEncoder.from_config(config.model, self.policy)
        self.sampler = build_sampler(self.policy, config.rollout, *self.encoder.size)
        rows = build_data(config).train
        self.examples = [rows[row] for row in range(config.train.prompts_per_iteration)]
        self.plan = plan_steps(config.rollout, config.train.trained_fraction, 0, config.run.seed)
        engine = Engine(self.policy.device)
        self.loss = UpdateLoss(config, self.policy, self.sampler, engine.partition(1))
        self.engine = engine
        n_samples = len(self.examples) * config.train.group_size
        scores = torch.randn(n_samples, 2, generator=torch.Generator().manual_seed(0))
        kinds = [_Kind("prompt"), _Kind("identity")]
        self.signal = LearningSignal.from_scores(config, kinds, scores, 0)

    def run(self, *, keeps_graphs: bool, shares_start: bool) -> tuple[float, Tensor]:
        """Return the seconds of CPU time of rollout and update, and the gradient."""
        parameters = self.policy.trainable_parameters()
        for parameter in parameters:
            parameter.grad = None
        start = time.process_time()
        min_rows = collecting.MIN_ROWS if shares_start else sys.maxsize
        with patch.object(collecting, "MIN_ROWS", min_rows):
            trajectory = collect(
                self.policy,
                self.sampler,
                self.examples,
                self.config.rollout,
                encoder=self.encoder,
                group_size=self.config.train.group_size,
                plan=self.plan,
                noise_key=NoiseKey(self.config.run.seed, 0),
                keep_graphs=lambda buckets, conditionings: keeps_graphs,
            )
        is_wide = self.config.train.attention_gradients == "fp32"
        with attention_gradients_in_fp32(self.policy.device, is_wide):
            for term in self.loss.terms(trajectory, self.signal, 0):
                self.engine.backward(term.loss)
        seconds = time.process_time() - start
        gradients = [parameter.grad.flatten() for parameter in parameters if parameter.grad is not None]
        return seconds, torch.cat([trajectory.images.flatten(), *gradients])


class _Kind:
    """As much of a reward as a learning signal asks for."""

    def __init__(self, kind: Any) -> None:
        self.name = kind
        self.kind = kind
        self.weight = 1.0


def measure(config: Config, turns: int) -> dict[str, float]:
    """Return the median seconds of an iteration by variant.

    Raises:
        AssertionError: A variant gives other bits.
    """
    iteration = Iteration(config)
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    expected = None
    for turn in range(turns + 1):
        for name, (keeps_graphs, shares_start) in VARIANTS.items():
            taken, result = iteration.run(keeps_graphs=keeps_graphs, shares_start=shares_start)
            expected = result if expected is None else expected
            assert torch.equal(result, expected), f"{name}: other samples or gradients"
            if turn:  # the first one warms up
                seconds[name].append(taken)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="toybox", help="preset or YAML file")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="settings to replace")
    parser.add_argument("--turns", type=int, default=3, help="turns measured (default 3)")
    options = parser.parse_args(arguments)
    config = load_config(options.recipe, options.overrides)
    medians = measure(config, options.turns)
    plan = plan_steps(config.rollout, config.train.trained_fraction, 0, config.run.seed)
    print(f"{options.recipe} {' '.join(options.overrides)}, {torch.get_num_threads()} threads")
    print(f"{config.rollout.steps} steps, noise in {sorted(plan.noisy)}, trained {plan.trained}")
    print("\n| saved | CPU s / iteration | of nothing saved |\n|---|---|---|")
    for name, value in medians.items():
        print(f"| {name} | {value:.2f} | {value / medians['nothing']:.3f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
