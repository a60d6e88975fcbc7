"""Iterations that teach nothing: the reason, in words, and what to do about it.

One such iteration can happen. The trainer counts them, warns of the first, and stops when there are too many
in a row, because every one of them costs as much as a useful one.

Legend: N samples of all processes, K rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from customized_grpo.training.signal import LearningSignal


@dataclass(frozen=True)
class Waste:
    """The reason why an iteration was wasted.

    Attributes:
        message: What is wrong, with names and numbers of the rewards if it is the scores.
        advice: What to do about it.
    """

    message: str
    advice: str


NO_GRADIENT = Waste(
    "rewards tell samples apart, but every gradient of the iteration was 0",
    "Look at what advantage.name and advantage.options make of these rewards (a rule may turn all of them "
    "into 0), and at small numbers that leave nothing: advantage.clip, model.lora.alpha.",
)
"""An iteration whose optimizer steps were taken, each without any gradient."""


def find_waste(
    names: Sequence[str],
    scores: Tensor,
    signal: LearningSignal,
    grad_norms: Sequence[float],
    max_unscored_share: float,
) -> Waste | None:
    """Return why an iteration was wasted; None when it was not.

    Too many samples lack a reward that trains; or no valid sample has an advantage, because the groups are
    constant; or nothing is left of the advantages in the gradient. All processes see the same scores and
    gradients, so all decide the same.

    Args:
        names: Names of the rewards [K].
        scores: Scores of the samples [N, K], NaN where a reward could not score.
        signal: Learning signal of the same samples.
        grad_norms: L2 norm of the gradient of every optimizer step of the iteration.
        max_unscored_share: Share of the samples that may lack a reward.
    """
    # A kind that a row did not choose is no gap.
    unscored = int((signal.present & ~signal.rewards.isfinite()).any(1).sum())
    if unscored > max_unscored_share * len(scores):
        missing = zip(names, (signal.asked & signal.scores.isnan()).sum(0).tolist(), strict=True)
        counts = ", ".join(f"{name} lacks {count}" for name, count in missing if count)
        return Waste(
            f"{unscored} of {len(scores)} samples could not be scored ({counts}); "
            f"train.max_unscored_share is {max_unscored_share:g}",
            "Find out why the reward gives no score, or raise train.max_unscored_share if that is to be "
            "expected of these prompts.",
        )
    # A single advantage that is not 0 teaches something.
    if bool((signal.advantages[signal.valid] != 0).any()):
        return NO_GRADIENT if grad_norms and not any(grad_norms) else None
    means = zip(names, signal.scores.nanmean(0).tolist(), strict=True)
    listed = ", ".join(f"{name} {mean:.4g}" for name, mean in means)
    return Waste(
        f"no reward tells the samples of any group apart (means: {listed})",
        "Samples must differ and be judged differently: raise rollout.eta, look at samples/, and see what "
        "`cgrpo doctor` says about the rewards.",
    )
