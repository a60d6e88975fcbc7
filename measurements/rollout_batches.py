"""Speed of one group's rollout on ToyBox in batches of different sizes, compared within one run.

    python measurements/rollout_batches.py
    python measurements/rollout_batches.py toybox model.precision=fp32 --repeats 7

The sizes take turns, so that other work on the machine slows all of them equally; times are medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch

from customized_grpo.config import load_config
from customized_grpo.rollout.collect import NoiseKey, collect
from customized_grpo.rollout.encoding import PromptEncoder
from customized_grpo.rollout.sampler import build_sampler, plan_steps
from customized_grpo.training.parts import build_data, build_policy

GROUP = 12
SIZES = (1, 2, 4, 12)


def measure(recipe: str, overrides: list[str], repeats: int) -> dict[int, float]:
    """Return the median seconds of one group's rollout, decoding included, by batch size."""
    config = load_config(recipe, overrides)
    policy = build_policy(config)
    encoder = PromptEncoder.from_config(config.model, policy)
    sampler = build_sampler(policy, config.rollout, *encoder.size)
    example = build_data(config).train[0]
    plan = plan_steps(config.rollout, config.train.trained_fraction, 0, config.run.seed)
    times: dict[int, list[float]] = {size: [] for size in SIZES}
    for repeat in range(repeats + 1):
        for size in SIZES:
            settings = config.rollout.model_copy(update={"batch_size": size})
            start = time.perf_counter()
            collect(
                policy,
                sampler,
                [example],
                settings,
                encoder=encoder,
                group_size=GROUP,
                plan=plan,
                noise_key=NoiseKey(config.run.seed, iteration=0),
            )
            if repeat:  # the first turn warms up
                times[size].append(time.perf_counter() - start)
    return {size: statistics.median(seconds) for size, seconds in times.items()}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="toybox", help="preset or YAML file")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="settings to replace")
    parser.add_argument("--repeats", type=int, default=5, help="turns measured (default 5)")
    options = parser.parse_args(arguments)
    medians = measure(options.recipe, options.overrides, options.repeats)
    print(f"{options.recipe}, a group of {GROUP}, {torch.get_num_threads()} threads")
    print("\n| rollout.batch_size | s / group | images / s | relative to one by one |\n|---|---|---|---|")
    for size, seconds in medians.items():
        print(f"| {size} | {seconds:.2f} | {GROUP / seconds:.1f} | {medians[1] / seconds:.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
