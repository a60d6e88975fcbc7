"""What the updates of an iteration did, in numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from customized_grpo.engine.engine import Engine
    from customized_grpo.training.loss_terms import LossTerm


@dataclass
class PassStatistics:
    """Running sums over valid samples at trained steps ("terms").

    Attributes:
        terms: Number of them.
        loss: Sum of the updates' losses.
        ratio: Sum of the ratios; NaN, like the next two, for an algorithm without ratios.
        deviation: Largest |ratio - 1|.
        clipped: Number of terms whose ratio was clipped.
        kl: Sum of the KL to the base; NaN where it is not measured.
    """

    terms: int = 0
    loss: float = 0.0
    ratio: float = 0.0
    deviation: float = 0.0
    clipped: float = 0.0
    kl: float = 0.0

    def add(self, term: LossTerm) -> None:
        """Count one micro-batch at one step."""
        n_valid = term.n_valid
        self.terms += n_valid
        # Already divided by the terms of its update, so that it is summed and not weighted.
        self.loss += float(term.loss.detach())
        self.kl += n_valid * term.kl
        # One term without a ratio, as in NFT, makes them undefined.
        if term.ratio is None or term.clip_fraction is None:
            self.ratio = self.deviation = self.clipped = math.nan
            return
        off_by = term.ratio - 1  # 0 where a sample is not valid
        # the sum of the ratios of valid samples, each 1 + (ratio - 1)
        self.ratio += n_valid + float(off_by.sum())
        self.deviation = max(self.deviation, float(off_by.abs().max()))
        self.clipped += n_valid * term.clip_fraction

    def over_processes(self, engine: Engine) -> PassStatistics:
        """Return the statistics of all processes."""
        sums = torch.tensor([self.terms, self.loss, self.ratio, self.clipped, self.kl], dtype=torch.float64)
        terms, loss, ratio, clipped, kl = engine.total(sums).tolist()
        # Everything is a sum, but the deviation is a maximum.
        return PassStatistics(int(terms), loss, ratio, engine.largest(self.deviation), clipped, kl)


@dataclass
class UpdateReport:
    """What an iteration's updates did.

    Attributes:
        first: Statistics of the first update, before any parameter has moved.
        all: Statistics of all updates.
        grad_norms: L2 norm of the gradient, before clipping, of every optimizer step taken.
        skipped: Number of updates left out for a loss or gradient that is not finite.
    """

    first: PassStatistics = field(default_factory=PassStatistics)
    all: PassStatistics = field(default_factory=PassStatistics)
    grad_norms: list[float] = field(default_factory=list)
    skipped: int = 0

    def metrics(self) -> dict[str, float]:
        """Return the metrics of one line of metrics.jsonl; what was not measured is left out."""
        everything = self.all
        values = {
            "policy/loss": _mean(everything.loss, len(self.grad_norms) + self.skipped),
            "policy/ratio_mean": _mean(everything.ratio, everything.terms),
            "policy/ratio_max_deviation": self.first.deviation if self.first.terms else math.nan,
            "policy/clip_fraction": _mean(everything.clipped, everything.terms),
            "policy/kl": _mean(everything.kl, everything.terms),
            "policy/grad_norm": _mean(sum(self.grad_norms), len(self.grad_norms)),
            "health/skipped_updates": self.skipped,
        }
        return {name: value for name, value in values.items() if not math.isnan(value)}


def _mean(total: float, count: int) -> float:
    """Return total / count; NaN of nothing."""
    return total / count if count else math.nan
