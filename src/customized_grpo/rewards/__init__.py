"""Rewards behind one interface; see README.md. Importing this package imports torch, not transformers."""

from customized_grpo.rewards.base import (
    FunctionReward,
    Kind,
    Reward,
    RewardError,
    ScoringBatch,
    score_all,
)
from customized_grpo.rewards.registry import REWARDS, build_reward, needs_masks, register

__all__ = [
    "REWARDS",
    "FunctionReward",
    "Kind",
    "Reward",
    "RewardError",
    "ScoringBatch",
    "build_reward",
    "needs_masks",
    "register",
    "score_all",
]
