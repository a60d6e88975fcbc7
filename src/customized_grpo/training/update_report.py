"""What the updates of an iteration did, in numbers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from customized_grpo.engine.engine import Engine
    from customized_grpo.training.losses import LossTerm


@dataclass
class PassStatistics:
    """Running sums over valid samples at trained steps ("terms").

    Attributes:
        terms: Number of them.
        loss: Sum of the updates' losses.
        ratio: Sum of the ratios.
        deviation: Largest |ratio - 1|.
        clipped: Number of terms whose ratio was clipped.
        kl: Sum of the KL to the base.
    """

    terms: int = 0
    loss: float = 0.0
    ratio: float = 0.0
    deviation: float = 0.0
    clipped: float = 0.0
    kl: float = 0.0

    def add(self, term: LossTerm) -> None:
        """Count one micro-batch at one step."""
        n_valid = int(term.policy.n_valid)
        off_by = term.policy.ratio - 1  # 0 where a sample is not valid
        self.terms += n_valid
        self.loss += float(term.loss.detach())
        self.ratio += n_valid + float(off_by.sum())
        self.deviation = max(self.deviation, float(off_by.abs().max()))
        self.clipped += n_valid * float(term.policy.clip_fraction)
        self.kl += n_valid * term.kl

    def over_processes(self, engine: Engine) -> PassStatistics:
        """Return the statistics of all processes."""
        sums = torch.tensor([self.terms, self.loss, self.ratio, self.clipped, self.kl], dtype=torch.float64)
        terms, loss, ratio, clipped, kl = engine.total(sums).tolist()
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
        """Return the metrics of one line of metrics.jsonl."""
        terms = max(1, self.all.terms)
        return {
            "policy/loss": self.all.loss / max(1, len(self.grad_norms) + self.skipped),
            "policy/ratio_mean": self.all.ratio / terms,
            "policy/ratio_max_deviation": self.first.deviation,
            "policy/clip_fraction": self.all.clipped / terms,
            "policy/kl": self.all.kl / terms,
            "policy/grad_norm": sum(self.grad_norms) / max(1, len(self.grad_norms)),
            "health/skipped_updates": self.skipped,
        }
