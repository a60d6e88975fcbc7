"""Iterations that teach nothing: what is missing, in words, and what to do about it.

One such iteration can happen; the trainer counts those in a row, warns of the first and stops when there are
too many, for every one of them is paid for.

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
    """Why an iteration was wasted.

    Attributes:
        message: What the rewards failed to say, with their names and numbers.
        advice: What to do about it.
    """

    message: str
    advice: str


def find_waste(
    names: Sequence[str], scores: Tensor, signal: LearningSignal, max_unscored_share: float
) -> Waste | None:
    """Say why an iteration was wasted; None when it was not.

    Too many samples lack a reward that trains, or no sample that counts has an advantage: the groups are
    constant. The numbers are of all processes, so that all decide alike.

    Args:
        names: Of the rewards [K].
        scores: Of the samples [N, K], NaN where a reward could not score.
        signal: What was made of them.
        max_unscored_share: Of the samples, that may lack a reward.
    """
    unscored = int((~signal.rewards.isfinite()).any(1).sum())
    if unscored > max_unscored_share * len(scores):
        missing = zip(names, (~scores.isfinite()).sum(0).tolist(), strict=True)
        return Waste(
            f"{unscored} of {len(scores)} samples could not be scored "
            f"({', '.join(f'{name} lacks {count}' for name, count in missing if count)}); "
            f"train.max_unscored_share is {max_unscored_share:g}",
            "Find out why the reward gives no score, or raise train.max_unscored_share if that is to be "
            "expected of these prompts.",
        )
    if bool((signal.advantages[signal.valid] != 0).any()):
        return None
    means = zip(names, scores.nanmean(0).tolist(), strict=True)
    return Waste(
        "no reward tells the samples of any group apart "
        f"(means: {', '.join(f'{name} {mean:.4g}' for name, mean in means)})",
        "Samples must differ and be judged differently: raise rollout.eta, look at samples/, and see what "
        "`cgrpo doctor` says about the rewards.",
    )
