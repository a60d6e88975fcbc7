"""Prompts that a text encoder would cut, by its own tokenizer: said before training, not found after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from customized_grpo.data.examples import Example, ExampleSource, ManifestSource
from customized_grpo.data.mixture import Mixture
from customized_grpo.evaluation.judges import RewardJudges
from customized_grpo.rewards.base import CutsPrompts, Reward
from customized_grpo.rewards.noise import NoisyReward
from customized_grpo.text_limits import TextLimit, cut_sentence

if TYPE_CHECKING:
    from customized_grpo.training.parts import Parts

ELSEWHERE = ("http", "ray")
"""Executors whose rewards are in other processes, with their tokenizers."""


def prompt_lengths(parts: Parts) -> list[str]:
    """Return a sentence for every text encoder that would cut prompts, and for each that cannot be asked."""
    rows = [*_prompts(parts.data.train), *_prompts(parts.data.held_out)]
    labels = [f"row {name!r}" for name, _ in rows]
    prompts = [prompt for _, prompt in rows]
    sentences = []
    limits = parts.policy.text_limits()
    if limits is None:
        sentences.append("whether the generator cuts long prompts was not checked: its family does not say")
    for limit in [*(limits or []), *_reward_limits(parts)]:
        sentence = cut_sentence(limit, labels, prompts)
        if sentence is not None:
            sentences.append(sentence)
    # Silence would look like "nothing is cut".
    for config, reward in zip(parts.config.rewards, parts.scorer.rewards, strict=True):
        if config.executor.kind in ELSEWHERE and reward.kind == "prompt":
            sentences.append(
                f"whether reward {reward.name} cuts long prompts was not checked: it runs elsewhere "
                f"({config.executor.kind})"
            )
    return sentences


def _prompts(source: ExampleSource | Sequence[Example]) -> list[tuple[str, str]]:
    """Return (id, prompt) of the rows that are at hand without drawing or opening an image."""
    if isinstance(source, ManifestSource | Mixture):
        return source.texts()
    if isinstance(source, list | tuple):
        return [(example.id, example.prompt) for example in source]
    return []  # ToyBox draws its rows; held-out ones, of the same grammar, are a list


def _reward_limits(parts: Parts) -> list[TextLimit]:
    rewards: list[tuple[str, Reward | None]] = [
        (f"reward {reward.name}", reward.local_reward) for reward in parts.scorer.rewards
    ]
    if isinstance(parts.data.judges, RewardJudges):
        judges = parts.data.judges
        rewards += [(f"judge {name}", judge) for name, judge in zip(judges.names, judges.judges, strict=True)]
    limits: list[TextLimit] = []
    for name, reward in rewards:
        # the noise around a reward does not pass on what the reward itself can tell
        inner: object = reward.reward if isinstance(reward, NoisyReward) else reward
        if isinstance(inner, CutsPrompts):
            limit = inner.text_limit()
            limits.append(TextLimit(name, limit.limit, limit.count))
    return limits
