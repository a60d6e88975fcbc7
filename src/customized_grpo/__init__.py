"""Customized-GRPO: online reinforcement learning for subject-driven image generators."""

__version__ = "0.2.0"
