"""From the rewards of a recipe to a `Scorer`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import assert_never

import torch

from customized_grpo.config.executors import HttpExecution, InlineExecution, RayExecution, ThreadExecution
from customized_grpo.config.schema import RewardConfig
from customized_grpo.errors import UserError
from customized_grpo.rewards.executors.http import HttpExecutor, read_token
from customized_grpo.rewards.executors.inline import InlineExecutor
from customized_grpo.rewards.executors.interface import Executor
from customized_grpo.rewards.executors.labelled import LabelledExecutor
from customized_grpo.rewards.executors.ray import check_permissions, import_ray, ray_executor
from customized_grpo.rewards.executors.scorer import Scorer
from customized_grpo.rewards.executors.thread import ThreadExecutor
from customized_grpo.rewards.registry import build_reward, needs_subjects
from customized_grpo.rewards.segmenter import TextSegmenter

_LABELS = "Give it a name of its own: `label` beside `name` in the recipe's entry."


def build_scorer(
    configs: Sequence[RewardConfig],
    device: torch.device | str = "cpu",
    segmenter: TextSegmenter | None = None,
) -> Scorer:
    """Build every reward of a recipe where it should run.

    Args:
        configs: The recipe's rewards.
        device: Where models run that run in this process.
        segmenter: Makes the masks of the images, for rewards with segment: both.

    Raises:
        UserError: A reward cannot be built; lists every missing token and package before anything is loaded.
            Or two rewards have one name.
    """
    # Before any reward is built, which may read gigabytes of weights.
    check_prerequisites(configs)
    executors: list[Executor] = []
    try:
        for config in configs:
            executors.append(build_executor(config, device))
        check_names("rewards", [executor.name for executor in executors])
    except BaseException:
        # as in `Scorer.close`: a Ray cluster that the first one started ends last
        for executor in reversed(executors):
            executor.close()
        raise
    return Scorer(
        executors,
        [config.on_failure for config in configs],
        weights=[config.weight for config in configs],
        segmenter=segmenter,
        segmented=[needs_subjects(config) for config in configs],
    )


def build_executor(config: RewardConfig, device: torch.device | str = "cpu") -> Executor:
    """Build one reward where it should run, under the label of its entry if it has one."""
    executor = _build_executor(config, device)
    return executor if config.label is None else LabelledExecutor(executor, config.label)


def _build_executor(config: RewardConfig, device: torch.device | str) -> Executor:
    place = config.executor
    if isinstance(place, InlineExecution):
        return InlineExecutor(build_reward(config, device))
    if isinstance(place, ThreadExecution):
        return ThreadExecutor(build_reward(config, device))
    if isinstance(place, RayExecution):
        return ray_executor(config, place)
    if isinstance(place, HttpExecution):
        return HttpExecutor(config, place)
    assert_never(place)


def check_names(path: str, names: Sequence[str]) -> None:
    """Refuse rewards that could not be told apart in metrics, trackers and reports.

    Args:
        path: Where the rewards stand in the recipe.
        names: Their names.

    Raises:
        UserError: Two rewards have one name, or names that TensorBoard shows as one; or a name has a slash,
            which separates the parts of a metric's name.
    """
    tags: dict[str, str] = {}
    for name in names:
        if "/" in name:
            raise UserError(f"{path}: {name!r} has a slash in its name", hint=_LABELS)
        tag = re.sub(r"[^-\w.]", "_", name)  # as torch's SummaryWriter cleans a tag
        if tag in tags:
            raise UserError(f"{path}: two have the same name, {tags[tag]!r} and {name!r}", hint=_LABELS)
        tags[tag] = name


def check_prerequisites(configs: Sequence[RewardConfig]) -> None:
    """Check at no cost what the executors need.

    Raises:
        UserError: Lists every missing token and package, and what a recipe may not do.
    """
    mistakes = []
    for config in configs:
        try:
            if isinstance(config.executor, HttpExecution):
                read_token(config.executor)
            elif isinstance(config.executor, RayExecution):
                check_permissions(config.executor)
                import_ray()
        except UserError as error:
            mistakes.append(f"reward {config.name!r}: {error}")
    if mistakes:
        raise UserError("\n".join(mistakes))
