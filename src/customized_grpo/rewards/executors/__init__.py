"""Where rewards run; see README.md. Importing this package imports torch, neither Ray nor a web framework."""

from customized_grpo.rewards.executors.build import (
    build_executor,
    build_scorer,
    check_names,
    check_prerequisites,
)
from customized_grpo.rewards.executors.inline import InlineExecutor
from customized_grpo.rewards.executors.interface import Executor
from customized_grpo.rewards.executors.scorer import Scorer, in_8_bits

__all__ = [
    "Executor",
    "InlineExecutor",
    "Scorer",
    "build_executor",
    "build_scorer",
    "check_names",
    "check_prerequisites",
    "in_8_bits",
]
