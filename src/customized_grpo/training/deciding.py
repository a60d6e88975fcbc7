"""When a recipe's qualities are decided: `evaluation.decisions` with the parts of a run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from customized_grpo.evaluation.decisions import Decisions, measure_decisions
from customized_grpo.evaluation.held_out import Judges
from customized_grpo.evaluation.judges import RewardJudges
from customized_grpo.rollout.branching import BranchPlan
from customized_grpo.rollout.sampler import plan_iteration, plan_steps
from customized_grpo.training.parts import Parts

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.data.examples import Example

# (prompts, points): curves to look at cost about three iterations of 8 prompts x 12 samples at 25 steps;
# weights to train with, which are differences of curves, four times the prompts and twice the points
TO_LOOK_AT = (8, 6)
TO_TRAIN_WITH = (32, 12)


@dataclass(frozen=True)
class Branching:
    """How finely decision curves are measured.

    Attributes:
        continuations: Continuations from each point, at least two.
        prompts: Prompts whose trajectories branch, at least two; None: by what the curves are for.
        points: Most steps from which they branch, 0 measures no curves; None: by what the curves are for.
        calibrates: The recipe whose weights are calibrated with them, for the file; None calibrates none.
    """

    continuations: int = 12
    prompts: int | None = None
    points: int | None = None
    calibrates: str | None = None

    @property
    def n_prompts(self) -> int:
        """Return the number of prompts."""
        return self._defaults[0] if self.prompts is None else self.prompts

    @property
    def n_points(self) -> int:
        """Return the largest number of points."""
        return self._defaults[1] if self.points is None else self.points

    @property
    def _defaults(self) -> tuple[int, int]:
        return TO_LOOK_AT if self.calibrates is None else TO_TRAIN_WITH


def usable_judges(parts: Parts, examples: Sequence[Example]) -> tuple[Judges | None, list[str]]:
    """Return the held-out judges if they can judge training rows, and a note if not."""
    judges = parts.data.judges
    # A judge by target has nothing to compare with where a training row has none.
    by_target = isinstance(judges, RewardJudges) and judges.by_target
    if not by_target or all(example.target is not None for example in examples):
        return judges, []
    return None, [
        "the held-out judges compare with targets, which some training rows lack: when qualities are decided "
        "was measured by the training rewards alone"
    ]


def noisy_steps(config: Config) -> frozenset[int]:
    """Return the steps from which continuations can part; none where the rollout draws no noise."""
    if config.train.algorithm == "grpo":
        # The trained share, 1.0, has no say here: it does not change which steps draw noise.
        return plan_steps(config.rollout, 1.0, 0, config.run.seed).noisy
    return plan_iteration(config, 0).noisy


def decide(
    parts: Parts,
    examples: Sequence[Example],
    judges: Judges | None,
    branching: Branching,
    prompt_weights: Tensor,
) -> Decisions:
    """Draw continuations of training's first samples, and say on stderr what it costs.

    Args:
        parts: The parts of a run.
        examples: Prompts whose trajectories branch.
        judges: See `usable_judges`.
        branching: How finely it is measured; points are more than 0.
        prompt_weights: Prompt weights of the recipe's schedule [T].
    """
    config = parts.config
    noisy = noisy_steps(config)
    plan = BranchPlan.evenly(
        sorted(noisy), branching.n_points, branching.continuations, parts.sampler.n_steps
    )
    return measure_decisions(
        parts.policy,
        parts.sampler,
        examples,
        parts.scorer,
        judges,
        config.rollout,
        plan,
        encoder=parts.encoder,
        seed=config.run.seed,
        prompt_weights=prompt_weights,
        report=lambda line: print(line, file=sys.stderr, flush=True),
    )
