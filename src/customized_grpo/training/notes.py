"""What a run says of its recipe and rows before it begins: no errors, but worth knowing first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from customized_grpo.algorithms.advantages import group_advantages
from customized_grpo.algorithms.rules import Rule, combine
from customized_grpo.kinds import PAIR, kinds_of
from customized_grpo.training.calibration import calibration_notes
from customized_grpo.training.idle import idle_settings
from customized_grpo.training.prompts import prompt_lengths

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.training.parts import Parts


MEAN_LIMIT = 0.01
"""Mean advantage of a group, in standard deviations, below which it counts as 0."""


def start_notes(parts: Parts) -> list[tuple[str, str]]:
    """Return (name of the event, sentence) of what is worth knowing of a run before it begins."""
    idle = [("idle setting", sentence) for sentence in idle_settings(parts.config, parts.scorer.rewards)]
    long = [("long prompts", sentence) for sentence in prompt_lengths(parts)]
    idle += [("idle setting", sentence) for sentence in idle_attention(parts.config, parts.policy.device)]
    return [*_start(parts.config), *_uncentred(parts), *idle, *long, *calibration_notes(parts.config)]


def idle_attention(config: Config, device: torch.device) -> list[str]:
    """Return why train.attention_gradients changes nothing, if it was set and does not."""
    if config.train.attention_gradients == "native":
        return []
    if device.type != "cpu":
        return [f"train.attention_gradients=fp32 changes nothing: it is for CPUs, and this runs on {device}"]
    if config.model.precision != "bf16":
        return ["train.attention_gradients=fp32 changes nothing: model.precision=fp32 has it already"]
    return []


def _uncentred(parts: Parts) -> list[tuple[str, str]]:
    """Return whether the rule gives a group a mean that is not 0 to an algorithm that needs 0.

    A mean below 0 pushes NFT and AWM away from all samples of a group alike, and so off the images; in GRPO a
    mean has no gradient on average.
    """
    config = parts.config
    kinds = kinds_of(reward.kind for reward in parts.scorer.rewards)
    if config.train.algorithm == "grpo" or not set(PAIR) <= set(kinds):
        return []
    rule = config.advantage.build()
    # Conflicting rewards, because there the rules differ most.
    if abs(mean_of_opposites(rule, config.train.group_size)) < MEAN_LIMIT:
        return []
    sentence = (
        f"advantage.name={config.advantage.name} gives groups of conflicting rewards a mean other than 0, by "
        f"which train.algorithm={config.train.algorithm} leaves its images; sars_recentred and linear have 0"
    )
    return [("advantage", sentence)]


def mean_of_opposites(rule: Rule, group_size: int) -> float:
    """Return the mean combined advantage of two groups whose rewards are opposites up to noise."""
    # A fixed seed: the same recipe always gets the same notes.
    random = torch.Generator().manual_seed(0)
    prompt = torch.rand(2 * group_size, generator=random)
    rewards = torch.stack([prompt, 1 - prompt + 0.1 * torch.rand(2 * group_size, generator=random)], 1)
    advantages = group_advantages(rewards, group_size)
    combined = combine(rule, advantages, torch.ones(2) / 2, rewards=rewards, group_size=group_size)
    return float(combined.mean())


def _start(config: Config) -> list[tuple[str, str]]:
    """Return the shape of the adapter that is continued: the recipe's own `model.lora` does not count."""
    model = config.model
    if model.start_lora is None:
        return []
    lora = model.lora
    return [("start", f"training continues {model.start_lora}: rank {lora.rank}, alpha {lora.alpha:g}")]
