"""The sampler of a run, and which denoising steps of an iteration draw noise and are trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from customized_grpo import extensions
from customized_grpo.algorithms import samplers
from customized_grpo.algorithms.samplers import ODE, Transition
from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.policies.policy import Policy
from customized_grpo.seeding import generator

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.config.schema import RolloutConfig


@dataclass(frozen=True)
class Sampler:
    """A stochastic sampler on one noise schedule; rollout and training go through its `transition`.

    Attributes:
        stochastic: How a step with noise is drawn.
        eta: Its noise scale.
        sigmas: Noise levels [T + 1], fp32.
    """

    stochastic: Transition
    eta: float
    sigmas: Tensor

    @property
    def n_steps(self) -> int:
        """Return T."""
        return len(self.sigmas) - 1

    def transition(
        self, policy: Policy, x: Tensor, step: int, conditioning: Conditioning, *, noisy: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Return mean [B, L, C] and std of the step from sigmas[step] to sigmas[step + 1]; one model call."""
        # `step` counts from the noisiest; the policy turns sigma into its family's timestep.
        sigma = float(self.sigmas[step])
        sigma_next = float(self.sigmas[step + 1])
        # The largest level below 1, by which `flow` replaces 1.
        sigma_max = float(self.sigmas[1])
        velocity = policy.velocity(x, sigma, conditioning)
        if noisy:
            return self.stochastic(x, velocity, sigma, sigma_next, self.eta, sigma_max)
        return ODE(x, velocity, sigma, sigma_next, 0.0, sigma_max)


def build_sampler(policy: Policy, config: RolloutConfig, height: int, width: int) -> Sampler:
    """Return the recipe's sampler on the checkpoint's own noise schedule for images of that size."""
    sigmas = policy.sigmas(config.steps, policy.n_tokens(height, width))
    return Sampler(extensions.load("sampler", config.sampler), config.eta, sigmas)


@dataclass(frozen=True)
class StepPlan:
    """The role of each of the T denoising steps in an iteration; the last step has neither role.

    Attributes:
        noisy: Indices of the steps that draw noise; the others are the ODE's.
        trained: Indices of the steps that are trained, ascending; a subset of the noisy ones.
    """

    noisy: frozenset[int]
    trained: list[int]


def plan_iteration(config: Config, iteration: int) -> StepPlan:
    """Return an iteration's plan as the recipe's algorithm wants it: NFT and AWM train none of the steps.

    Args:
        config: The recipe.
        iteration: Number of finished iterations.
    """
    rollout = config.rollout
    if config.train.algorithm == "grpo":
        return plan_steps(rollout, config.train.trained_fraction, iteration, config.run.seed)
    # Noise in the last step would stay in the image; with eta = 0 every step is the ODE's.
    noisy = range(rollout.steps - 1) if rollout.eta > 0 else range(0)
    return StepPlan(frozenset(noisy), [])


def plan_steps(config: RolloutConfig, trained_fraction: float, iteration: int, seed: int) -> StepPlan:
    """Return an iteration's plan, the same for all of its samples.

    Args:
        config: The recipe's rollout section.
        trained_fraction: Share of the noisy steps that is trained, if no window of noise is set.
        iteration: Number of finished iterations.
        seed: The run's seed.
    """
    window = config.sde_window
    if window is None:
        trained = samplers.trained_steps(
            config.steps, fraction=trained_fraction, generator=generator(seed, "steps", iteration)
        )
        # Noise in all steps but the last, also in those that are not trained this time.
        return StepPlan(frozenset(range(config.steps - 1)), trained)
    shift_every = window.shift_every or iteration + 1  # 0: the window never moves
    inside = samplers.sde_window(iteration, config.steps, window.size, shift_every, window.start)
    return StepPlan(frozenset(inside), samplers.trained_steps(config.steps, window=inside))
