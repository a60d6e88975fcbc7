"""What conflict between two rewards should look like, and what SARS is worth as plain weights."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from customized_grpo.algorithms.sars import sars_pull


def quadrants(advantages: Tensor) -> dict[str, float]:
    """Return the shares of samples whose two advantages disagree, are both positive, both negative.

    A zero advantage (masked sample, constant group) belongs to no quadrant and is not counted; when nothing
    is left all three shares are NaN, otherwise they sum to 1. Draw `conflict_null` beside the first.

    Args:
        advantages: [N, 2].

    Returns:
        {"conflict": ..., "both_positive": ..., "both_negative": ...}.

    Raises:
        ValueError: Another shape.
    """
    if advantages.ndim != 2 or advantages.shape[1] != 2:
        raise ValueError(f"advantages must be [N, 2], got {list(advantages.shape)}")
    # Signs, since the product of two tiny advantages can underflow to 0.
    prompt, identity = advantages.sign().unbind(1)
    count = int((prompt * identity != 0).sum())
    masks = {
        "conflict": prompt * identity < 0,
        "both_positive": (prompt > 0) & (identity > 0),
        "both_negative": (prompt < 0) & (identity < 0),
    }
    return {name: int(mask.sum()) / count if count else math.nan for name, mask in masks.items()}


def conflict_null(correlation: float) -> float:
    """Return the share of conflict that two Gaussian rewards of this correlation have: arccos(rho) / pi.

    Half of all samples conflict when rewards are merely unrelated, so a measured share means little without
    it.

    Raises:
        ValueError: Correlation outside [-1, 1].
    """
    if not -1 <= correlation <= 1:
        raise ValueError(f"a correlation must be in [-1, 1], got {correlation}")
    return math.acos(correlation) / math.pi


class MatchedWeights(NamedTuple):
    """Constant weights with the same mean gradient direction as SARS, and the step they must be scaled by."""

    prompt: float
    identity: float
    step_scale: float


def matched_constant_weights(
    prompt_weight: float, gamma: float, correlation: float, group_size: int = 12
) -> MatchedWeights:
    """Return the control that SARS has to beat: w' = (w + gamma k) / (1 + 2 gamma k), k from `sars_pull`.

    To first order SARS is a pull towards equal weights, with a step longer by `step_scale` = 1 + 2 gamma k. A
    comparison that does not match both may credit the shaping with what the weights did.

    Args:
        prompt_weight: w_p in [0, 1]; w_id = 1 - w_p.
        gamma: SARS strength, >= 0.
        correlation: Of the two advantages, strictly between -1 and 1.
        group_size: G >= 4.

    Raises:
        ValueError: An argument outside its range.
    """
    if not 0 <= prompt_weight <= 1 or gamma < 0:
        raise ValueError(f"need prompt_weight in [0, 1] and gamma >= 0, got {prompt_weight} and {gamma}")
    pull = gamma * sars_pull(correlation, group_size)
    scale = 1 + 2 * pull
    return MatchedWeights((prompt_weight + pull) / scale, (1 - prompt_weight + pull) / scale, scale)
