"""How long a run will take, said before its first iteration.

One denoising step is timed as the rollout takes it, and multiplied by the work of an iteration
(`planning.work`). Evaluations take as long as that of the base, which has just ended. Rewards, encoding and
decoding of an iteration are not counted. A resumed run knows how long its iterations took.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from customized_grpo.planning import work
from customized_grpo.reporting.progress import duration
from customized_grpo.rollout.graphs import reuse_obstacle
from customized_grpo.rollout.sampler import plan_iteration

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.data.examples import Example
    from customized_grpo.training.parts import Parts
    from customized_grpo.training.state import RunState

SHARE = 0.01
"""Most of a run's passes through the transformer that may be spent on the estimate."""

TIMED_STEPS = 2
"""The first one is a warm-up: a device compiles and plans in it."""


def announce(
    parts: Parts, state: RunState, example: Example, evaluation_s: float, say: Callable[[str], None]
) -> None:
    """Say how long the rest of a run will take; nothing at its end.

    Every process must call this: a sharded model takes its step in all of them.

    Args:
        parts: The run's parts.
        state: Its counters.
        example: The first prompt of the next iteration.
        evaluation_s: Seconds of the base's evaluation.
        say: Called with the sentence.
    """
    left = parts.config.train.iterations - state.iteration
    if left <= 0:
        return
    if state.iteration and state.seconds > 0:
        rest = state.seconds / state.iteration * left
        words = f"{_counted(left, 'iteration')} left, by the {state.iteration} that are done"
        say(f"expected time: about {duration(rest)}: {words}")
        return
    samples = timed_samples(parts.config, parts.engine.world_size)
    step_s = time_step(parts, example, samples)
    say(expected(parts.config, parts.engine.world_size, step_s, evaluation_s if parts.data.held_out else 0.0))


def expected(config: Config, processes: int, step_s: float, evaluation_s: float) -> str:
    """Return in a sentence how long a new run will take.

    Args:
        config: The recipe.
        processes: Number of processes, one per device.
        step_s: Seconds of one denoising step of one sample.
        evaluation_s: Seconds of the base's evaluation; 0 where nothing is held out.
    """
    iterations = config.train.iterations
    evaluations = count_evaluations(config) if evaluation_s else 0
    iteration_s = step_s * passes_of_iteration(config, processes)
    total = iterations * iteration_s + evaluations * evaluation_s
    words = f"{_counted(iterations, 'iteration')} of {_short(iteration_s)}"
    if evaluations:
        words += f", {_counted(evaluations, 'evaluation')} of {_short(evaluation_s)} as of the base"
        if config.model.compile:
            words += ", which compiled the model too"
    left_out = "the rewards"
    if config.train.dynamic_sampling is not None:
        left_out += " and further prompts of dynamic sampling"
    return f"expected time: about {duration(total)}: {words}; by one timed denoising step, without {left_out}"


def time_step(parts: Parts, example: Example, samples: int) -> float:
    """Return the seconds of one denoising step of one sample, when so many are drawn together.

    No random number of the run is used, and nothing is changed.
    """
    (conditioning,) = parts.encoder([example])
    conditioning = conditioning.to(parts.policy.device).repeat_interleave(samples)
    generators = [torch.Generator().manual_seed(sample) for sample in range(samples)]
    x = parts.policy.noise(generators, conditioning.height, conditioning.width)
    seconds = 0.0
    with torch.no_grad():
        for _ in range(TIMED_STEPS):
            started = time.perf_counter()
            mean, _ = parts.sampler.transition(parts.policy, x, 0, conditioning)
            float(mean.flatten()[0])  # waits for the device
            seconds = time.perf_counter() - started
    return seconds / samples


def timed_samples(config: Config, processes: int) -> int:
    """Return how many samples the timed step has: a batch of the rollout, or fewer in a short run.

    A compiled model takes a whole batch: every other shape would be compiled anew.
    """
    of_process = config.train.prompts_per_iteration // processes * config.train.group_size
    batch = min(config.rollout.batch_size, of_process)
    if config.model.compile:
        return batch
    of_run = config.train.iterations * passes_of_iteration(config, processes)
    return max(1, min(batch, math.floor(SHARE * of_run / TIMED_STEPS)))


def passes_of_iteration(config: Config, processes: int) -> int:
    """Return the forward-equivalents of an iteration in one process, each of one sample.

    Classifier-free guidance counts once, as the timed step has it too. Graphs that are kept from the rollout
    spare the update its forward passes.
    """
    is_grpo = config.train.algorithm == "grpo"
    n_trained = len(plan_iteration(config, 0).trained) if is_grpo else config.train.forward.levels
    prompts = config.train.prompts_per_iteration // processes
    passes = work.passes(config, n_trained, calls=1).iteration
    if reuse_obstacle(config, prompts * config.train.group_size) is None:
        passes -= config.train.group_size * n_trained
    return passes * prompts


def count_evaluations(config: Config) -> int:
    """Return how many evaluations follow that of the base."""
    every = config.evaluation.every
    iterations = config.train.iterations
    within = iterations // every if every else 0
    return within + (every == 0 or iterations % every != 0)


def _counted(count: int, name: str) -> str:
    return f"{count} {name}{'s' if count != 1 else ''}"


def _short(seconds: float) -> str:
    """Return seconds in words; a short time with two digits."""
    return duration(seconds) if seconds >= 10 else f"{seconds:.2g} s"
