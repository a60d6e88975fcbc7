"""Rewards behind one interface; see README.md. Importing this package imports torch, not transformers."""

from customized_grpo.rewards.base import (
    FunctionReward,
    Kind,
    Reward,
    RewardError,
    ScoringBatch,
    score_all,
)
from customized_grpo.rewards.options import RewardOptions
from customized_grpo.rewards.registry import (
    REWARDS,
    build_reward,
    check_rewards,
    needs_masks,
    needs_subjects,
    register,
    register_with,
)

__all__ = [
    "REWARDS",
    "FunctionReward",
    "Kind",
    "Reward",
    "RewardError",
    "RewardOptions",
    "ScoringBatch",
    "build_reward",
    "check_rewards",
    "needs_masks",
    "needs_subjects",
    "register",
    "register_with",
    "score_all",
]
