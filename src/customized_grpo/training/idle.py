"""Settings that change nothing in the recipe they stand in.

What nobody but the user can have set is an error that names the setting which does what was meant. What a
preset sets as well (a rule, a schedule) is said in one sentence at the start of the run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from customized_grpo.algorithms.advantages import group_advantages
from customized_grpo.algorithms.rules import combine, ignores_weights
from customized_grpo.config.data_sources import ManifestData
from customized_grpo.errors import UserError
from customized_grpo.evaluation.alarms import PATIENCE
from customized_grpo.fields import Section
from customized_grpo.kinds import PAIR, kinds_of

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.config.schema import RewardConfig
    from customized_grpo.rewards.base import HasKind

KNOBS = {
    **dict.fromkeys(PAIR, "schedule={name: constant, prompt_weight: 0.7} weighs prompt against identity"),
    "quality": "advantage.quality_weight weighs quality against the others",
}
"""The setting that weighs a kind of reward against the other kinds."""


def refuse_idle_settings(config: Config, rewards: Sequence[HasKind]) -> None:
    """Refuse weights that change nothing.

    Args:
        config: The recipe.
        rewards: Its rewards, in the recipe's order.

    Raises:
        UserError: Lists every such weight, with the setting that does what was meant.
    """
    # Both kinds of mistakes in one message, not one for each attempt.
    mistakes = [*_lone_weights("rewards", config.rewards, rewards), *_quality_weight(config, rewards)]
    if mistakes:
        hints = dict.fromkeys(hint for _, hint in mistakes)
        raise UserError("\n".join(message for message, _ in mistakes), hint=" ".join(hints))


def refuse_lone_weights(path: str, configs: Sequence[RewardConfig], rewards: Sequence[HasKind]) -> None:
    """Refuse a weight of the only reward of its kind.

    Args:
        path: Where the rewards stand in the recipe.
        configs: Their entries.
        rewards: The rewards, in the same order.

    Raises:
        UserError: Lists every such weight.
    """
    messages = [message for message, _ in _lone_weights(path, configs, rewards)]
    if messages:
        raise UserError("\n".join(messages), hint="Leave it out.")


def idle_settings(config: Config, rewards: Sequence[HasKind]) -> list[str]:
    """Return a sentence about every setting without effect that is no mistake."""
    sentences = []
    kinds = kinds_of(reward.kind for reward in rewards)
    rule = f"advantage.name={config.advantage.name}"
    schedule = f"schedule.name={config.schedule.name}"
    if not set(PAIR) <= set(kinds):
        sentences.append(
            f"every reward is of kind {' or '.join(kinds)}, so this is plain GRPO: {rule} and {schedule}, "
            "which combine prompt and identity, have no effect"
        )
    elif ignores_weights(config.advantage.build(), config.train.group_size):
        sentences.append(f"{schedule} has no effect: {rule} does not use its weights")
    if set(PAIR) <= set(kinds) and _is_changed(config.advantage, "std") and _ignores_advantages(config):
        sentences.append(
            f"advantage.std={config.advantage.std} has no effect: {rule} normalises raw rewards itself"
        )
    fit = config.model.reference_fit
    if fit != "whole" and isinstance(config.data, ManifestData) and config.data.reference_size is not None:
        sentences.append(
            f"data.reference_size={config.data.reference_size} has no effect: model.reference_fit={fit} "
            "gives references the size of the drawn image"
        )
    train = config.train
    every = config.evaluation.every
    # rounded up, because there is always one after the last iteration
    evaluations = math.ceil(train.iterations / every) if every else 1
    if config.evaluation.on_alarm == "stop" and evaluations < PATIENCE:
        sentences.append(
            f"evaluation.on_alarm=stop has no effect: an alarm holds at {PATIENCE} evaluations in a row, and "
            f"evaluation.every={every} makes {evaluations} after the base's"
        )
    if config.rollout.sde_window is not None and _is_changed(train, "trained_fraction"):
        sentences.append(
            f"train.trained_fraction={train.trained_fraction:g} has no effect: all steps inside "
            "rollout.sde_window are trained"
        )
    if _is_changed(train, "clip_range") and train.updates_per_iteration == train.inner_epochs == 1:
        sentences.append(
            f"train.clip_range={train.clip_range:g} has no effect: with one update an iteration "
            "(train.updates_per_iteration, train.inner_epochs) every ratio is 1"
        )
    return sentences


def _ignores_advantages(config: Config) -> bool:
    """Return whether a rule gives the same if the advantages of one group are three times as large."""
    group_size = config.train.group_size
    rewards = torch.rand(2 * group_size, 2, generator=torch.Generator().manual_seed(0))
    advantages = group_advantages(rewards, group_size)
    larger = advantages.clone()
    # One group only: a rule that whitens the batch would undo a common factor.
    larger[:group_size] *= 3
    results = []
    for values in (advantages, larger):
        combined = combine(
            config.advantage.build(),
            values,
            torch.ones(2) / 2,
            rewards=rewards,
            group_size=group_size,
            adv_clip=math.inf,  # or both might be cut to the same
        )
        results.append(combined)
    return torch.equal(*results)


def _is_changed(section: Section, name: str) -> bool:
    """Return whether a setting is not what it is by default."""
    return bool(getattr(section, name) != type(section).model_fields[name].default)


def _lone_weights(
    path: str, configs: Sequence[RewardConfig], rewards: Sequence[HasKind]
) -> list[tuple[str, str]]:
    """Return (message, hint) for each weight of the only reward of its kind."""
    kinds = [reward.kind for reward in rewards]
    mistakes = []
    for index, (entry, reward) in enumerate(zip(configs, rewards, strict=True)):
        if not _is_changed(entry, "weight") or kinds.count(reward.kind) > 1:
            continue
        message = (
            f"{path}.{index}.weight={entry.weight:g} changes nothing: a weight is a share among rewards of "
            f"one kind, and {reward.name} is the only one of kind {reward.kind}"
        )
        has_rivals = len(set(kinds)) > 1
        mistakes.append((message, f"Leave it out; {KNOBS[reward.kind]}." if has_rivals else "Leave it out."))
    return mistakes


def _quality_weight(config: Config, rewards: Sequence[HasKind]) -> list[tuple[str, str]]:
    """Return (message, hint) for a weight of quality that has nothing to weigh."""
    weight = config.advantage.quality_weight
    kinds = kinds_of(reward.kind for reward in rewards)
    if not _is_changed(config.advantage, "quality_weight"):
        return []
    if "quality" not in kinds:
        return [
            (
                f"advantage.quality_weight={weight:g} changes nothing: no reward is of kind quality",
                "Leave it out, or add a reward of kind quality.",
            )
        ]
    if kinds == ("quality",):
        return [
            (
                f"advantage.quality_weight={weight:g} changes nothing: every reward is of kind quality, "
                "whose advantage counts in full",
                "Leave it out, or add a reward of kind prompt or identity.",
            )
        ]
    return []
