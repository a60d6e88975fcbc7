"""One denoising transition s -> s' < s as a Gaussian: every sampler returns (mean, std) of x'.

Rectified flow: x_s = (1 - s) data + s noise, v = noise - data, s from 1 (noise) to 0. From the velocity,
x0 = x - s v is the data and x1 = x + (1 - s) v the noise that it implies. D = s - s'. All samplers are
written as the ODE mean plus a multiple of x1 that is exactly 0 at eta = 0.

    x' = (1 - s') x0 + s' x1                                         ODE (Euler)
    x' = (1 - s') x0 + s' g x1 + s' f z,   f^2 + g^2 = 1             CPS, DDIM and the exact SDEs: noise of
                                                                     the right level, partly renewed
    x' = x - D v - (e^2 / 2)(D / s) x1 + e sqrt(D) z                 Dance and Flow: Euler-Maruyama

Arguments common to all: x [B, ...] and velocity of the same shape, in any dtype; sigma and sigma_next, floats
or tensors [] or [B], 1 >= sigma > sigma_next >= 0; eta >= 0, the strength of the noise. All arithmetic is in
float32 (float64 when x is), because half precision cannot tell neighbouring noise levels apart. `mean` has
the shape of x; `std` is [] or [B, 1, ...]. For trajectories use a `Transition`,
which also ends them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Level = float | Tensor
Gaussian = tuple[Tensor, Tensor]
StepFunction = Callable[[Tensor, Tensor, Level, Level, Level, Level | None], Gaussian]


def ode(
    x: Tensor,
    velocity: Tensor,
    sigma: Level,
    sigma_next: Level,
    eta: Level = 0.0,
    sigma_max: Level | None = None,
) -> Gaussian:
    """Euler step of the probability-flow ODE: m = x - D v, std 0. `eta` has no effect."""
    # eta 0, and so a std of 0 in the shape that the other samplers have
    step = _Step.of(x, velocity, sigma, sigma_next, 0.0)
    return step.euler, step.eta * step.sigma


def dance(
    x: Tensor, velocity: Tensor, sigma: Level, sigma_next: Level, eta: Level, sigma_max: Level | None = None
) -> Gaussian:
    """Dance-GRPO's SDE (arXiv 2505.07818): m = x - D v - (eta^2 / 2)(D / s) x1, std = eta sqrt(D)."""
    step = _Step.of(x, velocity, sigma, sigma_next, eta)
    # x1 / s is minus the score: this term is what turns the ODE into an SDE with the same marginals.
    drift = step.eta.square() / 2 * step.delta / step.sigma
    return step.euler - drift * step.noise, step.eta * step.delta.sqrt()


def flow(
    x: Tensor, velocity: Tensor, sigma: Level, sigma_next: Level, eta: Level, sigma_max: Level | None = None
) -> Gaussian:
    """Flow-GRPO's SDE (arXiv 2505.05470): e^2 = eta^2 s / (1 - s), m and std as Dance with e for eta.

    At s = 1, 1 - s is replaced by 1 - sigma_max with sigma_max = sigmas[1], so the first std is exactly eta.
    A first sigma between sigma_max and 1 is treated the same way.
    """
    step = _Step.of(x, velocity, sigma, sigma_next, eta)
    # Without sigma_max there is nothing to replace s = 1 by; `Transition` always gives it.
    top = step.sigma if sigma_max is None else torch.minimum(step.sigma, step.level(sigma_max))
    # e^2 D / s = eta^2 D / (1 - s): the s of e^2 cancels that of the score.
    share = step.delta / (1 - top)
    mean = step.euler - step.eta.square() / 2 * share * step.noise
    return mean, step.eta * (step.sigma * share).sqrt()


def cps(
    x: Tensor, velocity: Tensor, sigma: Level, sigma_next: Level, eta: Level, sigma_max: Level | None = None
) -> Gaussian:
    """Coefficients-preserving sampling (arXiv 2509.05952): f = sin(eta pi / 2), std = s' f."""
    step = _Step.of(x, velocity, sigma, sigma_next, eta)
    # cos^2 + sin^2 = 1 keeps the noise at level s' exactly, for any eta and any step length.
    angle = step.eta * (math.pi / 2)
    return step.renew(keep=angle.cos(), fresh=angle.sin())


def ddim(
    x: Tensor, velocity: Tensor, sigma: Level, sigma_next: Level, eta: Level, sigma_max: Level | None = None
) -> Gaussian:
    """DDIM (arXiv 2010.02502, eq. 16): f = eta sqrt(1 - ((1-s) s' / (s (1-s')))^2), std = s' f.

    eta in [0, 1]; 1 is ancestral sampling.
    """
    step = _Step.of(x, velocity, sigma, sigma_next, eta)
    # f^2 = eta^2 (1 - r^2) and g^2 = 1 - f^2, both from log r in forms that do not cancel.
    log_square = 2 * step.log_odds_ratio
    keep = (1 - step.eta.square() + step.eta.square() * log_square.exp()).sqrt()
    return step.renew(keep=keep, fresh=step.eta * (-torch.expm1(log_square)).sqrt())


def dance_exact(
    x: Tensor, velocity: Tensor, sigma: Level, sigma_next: Level, eta: Level, sigma_max: Level | None = None
) -> Gaussian:
    """Dance's SDE solved exactly for constant x0: g = exp(-(eta^2/2)(1/s' - 1/s)), std = s' sqrt(1 - g^2)."""
    step = _Step.of(x, velocity, sigma, sigma_next, eta)
    # 1/s' - 1/s, held finite at s' = 0 so that eta = 0 does not meet infinity.
    gap = (step.delta / (step.sigma * step.sigma_next)).clamp_max(torch.finfo(step.x.dtype).max)
    return step.decay(-step.eta.square() / 2 * gap)


def flow_exact(
    x: Tensor, velocity: Tensor, sigma: Level, sigma_next: Level, eta: Level, sigma_max: Level | None = None
) -> Gaussian:
    """Flow's SDE solved exactly for constant x0: g = (s' (1-s) / (s (1-s')))^(eta^2 / 2).

    std = s' sqrt(1 - g^2). At eta = sqrt(2) this is DDIM with eta = 1.
    """
    step = _Step.of(x, velocity, sigma, sigma_next, eta)
    return step.decay(step.eta.square() / 2 * step.log_odds_ratio)


@dataclass(frozen=True)
class Transition:
    """A sampler: how one step of a trajectory is drawn, and how strong its noise may be.

    Attributes:
        step: `step(x, velocity, sigma, sigma_next, eta, sigma_max) -> (mean, std)`, as `dance`.
        max_eta: Largest eta for which it is defined; 0 for one that draws no noise.
        solver: Draws whole samples in place of such steps: a key of `rollout.solvers.SOLVERS`; None: nothing.
        calls_per_step: Calls of the model in each step but the last, which takes one.
    """

    step: StepFunction
    max_eta: float = math.inf
    solver: str | None = None
    calls_per_step: int = 1

    def n_calls(self, n_steps: int) -> int:
        """Return the calls of the model for a sample of that many steps."""
        return self.calls_per_step * (n_steps - 1) + 1

    def __call__(
        self, x: Tensor, velocity: Tensor, sigma: Level, sigma_next: Level, eta: float, sigma_max: Level
    ) -> Gaussian:
        """Return (mean, std) of one step of a trajectory; a step to sigma_next = 0 is always the ODE's.

        Noise added by the last step would stay in the image, and its log-density would be that of the noise.
        Rollout and training both come here, which is what makes the first ratio exactly 1.

        Args:
            x: [B, ...], the state at sigma.
            velocity: The model's output there, of x's shape.
            sigma: s, a float or a tensor [] or [B].
            sigma_next: s' < s, of the same form.
            eta: Strength of the noise, in [0, max_eta].
            sigma_max: sigmas[1] of the schedule, used by `flow` at s = 1.

        Returns:
            mean [B, ...] and std, [] or [B, 1, ...]; in float32, or float64 if x is.

        Raises:
            ValueError: Eta outside its range, or levels out of order.
        """
        if not 0 <= eta <= self.max_eta:
            raise ValueError(f"eta must be in [0, {self.max_eta:g}], got {eta}")
        level = _like(x, sigma_next)
        # Not torch.where(..., 0.0, eta): two Python numbers would make eta float32 even for float64 x.
        strength = torch.where(level == 0, 0.0, _like(x, eta))
        return self.step(x, velocity, sigma, sigma_next, strength, sigma_max)


ODE = Transition(ode, max_eta=0.0)
"""The step without noise."""

SAMPLERS: Mapping[str, Transition] = {
    "ode": ODE,
    "heun": Transition(ode, max_eta=0.0, solver="heun", calls_per_step=2),
    "dpmpp_2m": Transition(ode, max_eta=0.0, solver="dpmpp_2m"),
    "dance": Transition(dance),
    "flow": Transition(flow),
    "cps": Transition(cps, max_eta=1.0),
    "ddim": Transition(ddim, max_eta=1.0),
    "dance_exact": Transition(dance_exact),
    "flow_exact": Transition(flow_exact),
}
"""Every sampler of the package by its name in recipes."""


def log_prob(x_next: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Return log N(x_next; mean, std^2), averaged over all dimensions but the first.

    The mean instead of the sum makes the ratio a D-th root of the true one (D latent dimensions): it does not
    explode with resolution, and it is why clip ranges of 1e-4 are in use.

    Args:
        x_next: [B, ...], the state that was drawn.
        mean: [B, ...].
        std: [] or [B, 1, ...], > 0.

    Returns:
        [B], in float32, or float64 if x_next is.

    Raises:
        ValueError: Some std is not > 0, as at an ODE step, which has no density.
    """
    require_positive(std)
    drawn = _wide(x_next)
    # per latent number; std broadcasts from [] or [B, 1, ...]
    z = (drawn - mean) / std
    density = -z.square() / 2 - std.log() - math.log(2 * math.pi) / 2
    return density.reshape(len(drawn), -1).mean(1)


def require_positive(std: Tensor) -> None:
    """Refuse a std that has no density.

    Raises:
        ValueError: Some std is 0, negative or NaN.
    """
    # Not (std <= 0).any(): NaN must be refused as well.
    if not bool((std > 0).all()):
        raise ValueError("std must be > 0: a deterministic transition has no density and cannot be trained")


def sde_window(iteration: int, n_steps: int, size: int = 4, shift_every: int = 25, start: int = 0) -> range:
    """Return the steps that are stochastic at an iteration; the others are ODE steps.

    The window starts at `start`, moves by one step every `shift_every` iterations and stays where it meets
    the last trainable step.

    Args:
        iteration: Counted from 0.
        n_steps: T; step T - 1 never enters the window.
        size: Steps in the window, 1 .. T - 1.
        shift_every: Iterations between shifts, >= 1.
        start: First step of the window at iteration 0.

    Raises:
        ValueError: The window does not fit, or an argument is out of range.

    Source: MixGRPO (arXiv 2507.21802).
    """
    # T - 1 trainable steps: the last one is the ODE's, with no density
    limit = n_steps - 1 - size
    if size < 1 or shift_every < 1 or iteration < 0 or not 0 <= start <= limit:
        raise ValueError(
            f"no window of {size} steps from step {start} among the {n_steps - 1} trainable ones "
            f"(iteration {iteration}, shift every {shift_every})"
        )
    first = min(start + iteration // shift_every, limit)
    return range(first, first + size)


def trained_steps(
    n_steps: int,
    *,
    fraction: float | None = None,
    window: range | None = None,
    generator: torch.Generator | None = None,
) -> list[int]:
    """Choose the steps to train, as true indices in increasing order; the last step never.

    Args:
        n_steps: T >= 2.
        fraction: Share of the T - 1 trainable steps, in (0, 1], drawn without replacement: floor(share), at
            least 1. The paper's .6 of 24 gives 14.
        window: Train exactly these instead (see `sde_window`).
        generator: Draws the subset; needed when fraction < 1.

    Raises:
        ValueError: Not exactly one of fraction and window, or one out of range, or no generator.
    """
    trainable = n_steps - 1
    if trainable < 1 or (fraction is None) == (window is None):
        raise ValueError("need n_steps >= 2 and exactly one of fraction and window")
    if window is not None:
        if len(window) == 0 or min(window) < 0 or max(window) >= trainable:
            raise ValueError(f"{window} must hold some of the trainable steps 0 .. {trainable - 1}")
        return sorted(window)
    if fraction is None or not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}")
    if fraction == 1:
        return list(range(trainable))
    if generator is None:
        raise ValueError("a fraction below 1 draws steps: pass a generator")
    # The nudge keeps products such as .29 * 100 from falling below their whole number.
    count = max(1, math.floor(fraction * trainable + 1e-9))
    # Drawn first, sorted after: the order of training says nothing about the draw.
    chosen: list[int] = torch.randperm(trainable, generator=generator)[:count].sort().values.tolist()
    return chosen


@dataclass(frozen=True)
class _Step:
    """The operands of a transition, in one dtype and broadcastable against x."""

    x: Tensor
    velocity: Tensor
    sigma: Tensor
    sigma_next: Tensor
    eta: Tensor

    @classmethod
    def of(cls, x: Tensor, velocity: Tensor, sigma: Level, sigma_next: Level, eta: Level) -> _Step:
        x = _wide(x)
        # The velocity comes from a model in bf16; half precision ends here.
        step = cls(x, velocity.to(x.dtype), _like(x, sigma), _like(x, sigma_next), _like(x, eta))
        ordered = (step.sigma <= 1) & (step.sigma > step.sigma_next) & (step.sigma_next >= 0)
        if not bool(ordered.all()):
            raise ValueError(f"need 1 >= sigma > sigma_next >= 0, got {sigma} and {sigma_next}")
        return step

    def level(self, value: Level) -> Tensor:
        return _like(self.x, value)

    @property
    def delta(self) -> Tensor:
        return self.sigma - self.sigma_next

    @property
    def euler(self) -> Tensor:
        return self.x - self.delta * self.velocity

    @property
    def noise(self) -> Tensor:
        return self.x + (1 - self.sigma) * self.velocity

    @property
    def log_odds_ratio(self) -> Tensor:
        """log(s' (1-s) / (s (1-s'))), accurate for small steps; finite, if huge, at s = 1 or s' = 0."""
        # log(s' / s) + log((1-s) / (1-s')), each from its small difference D
        ratio = torch.log1p(-self.delta / self.sigma) + torch.log1p(-self.delta / (1 - self.sigma_next))
        return ratio.clamp_min(torch.finfo(self.x.dtype).min)

    def renew(self, keep: Tensor, fresh: Tensor) -> Gaussian:
        """Keep a share g of the noise x1 and draw the share f afresh: (1 - s') x0 + s' g x1 + s' f z."""
        return self.euler - self.sigma_next * (1 - keep) * self.noise, self.sigma_next * fresh

    def decay(self, log_keep: Tensor) -> Gaussian:
        """`renew` with g = exp(log_keep)."""
        # 1 - g^2 as -expm1(2 log g), which has its digits also where g is nearly 1
        fresh = (-torch.expm1(2 * log_keep)).sqrt()
        return self.euler + self.sigma_next * torch.expm1(log_keep) * self.noise, self.sigma_next * fresh


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _like(x: Tensor, value: Level) -> Tensor:
    """Make a level broadcastable against x: [] stays [], [B] becomes [B, 1, ...].

    One number stays where it is, mostly on the CPU, and mixes with any device: sent there, or asked there, it
    would make the host wait.
    """
    level = torch.as_tensor(value, dtype=_wide(x).dtype)
    return level.to(x.device).reshape(-1, *[1] * (x.ndim - 1)) if level.ndim else level
