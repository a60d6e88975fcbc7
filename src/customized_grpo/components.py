"""From a recipe to the parts of a run, with every cheap check before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from customized_grpo.config import Config
from customized_grpo.config.schema import ManifestData, RewardConfig, ToyboxData
from customized_grpo.data.examples import Example, ExampleSource, ManifestSource
from customized_grpo.data.manifest import load_manifest
from customized_grpo.errors import UserError
from customized_grpo.evaluation.held_out import MIN_CLUSTERS, Judges
from customized_grpo.evaluation.judges import RewardJudges, build_judges
from customized_grpo.policies.loading import load_policy, pick_device
from customized_grpo.policies.pipeline_policy import PipelinePolicy
from customized_grpo.quiet import quiet
from customized_grpo.rewards import build_reward, check_rewards
from customized_grpo.rewards.base import Reward

NEEDS_MASKS = {"reference", "both"}


@dataclass(frozen=True)
class Data:
    """Rows to train on and rows to hold out."""

    train: ExampleSource
    held_out: Sequence[Example]
    judges: Judges | None


def build_data(config: Config) -> Data:
    """Check and open the data of a recipe.

    Raises:
        UserError: Lists every bad row at once.
    """
    data, size = config.data, (config.model.height, config.model.width)
    check_judge_configs(config)
    if isinstance(data, ToyboxData):
        return _toybox(data, size)
    if isinstance(data, ManifestData):
        masks = any(_is_segmented(reward) for reward in config.rewards)
        train = load_manifest(data.train, require_masks=masks)
        judged = masks or any(_is_segmented(judge) for judge in config.evaluation.judges)
        held_out = [] if data.held_out is None else load_manifest(data.held_out, require_masks=judged)
        if len({row.subject or row.id for row in held_out}) == 1:
            raise UserError(
                f"{data.held_out}: all rows are about one subject, so no interval can be given",
                "Hold out at least two subjects (eight or more for intervals that deserve trust).",
            )
        source = ManifestSource(held_out, *size)
        examples = [source[i] for i in range(len(source))]
        judges = build_judges(config.evaluation.judges, examples, pick_device(config.model.device))
        return Data(ManifestSource(train, *size), examples, judges)
    assert_never(data)


def check_judge_configs(config: Config) -> None:
    """Refuse judges that are training rewards by name, and judges where ToyBox has its own.

    Raises:
        UserError: Names them.
    """
    judges = config.evaluation.judges
    if judges and isinstance(config.data, ToyboxData):
        raise UserError("evaluation.judges: ToyBox brings held-out judges of its own", "Leave them out.")
    trained = [(reward.name, reward.path, reward.options) for reward in config.rewards]
    if same := [judge.name for judge in judges if (judge.name, judge.path, judge.options) in trained]:
        raise UserError(
            f"evaluation.judges: {', '.join(same)} is a training reward as well, so it is not held out",
            "Choose a judge with another model, such as another encoder's path.",
        )


def _is_segmented(reward: RewardConfig) -> bool:
    return reward.name in {"dino", "clip_i"} and reward.segment in NEEDS_MASKS


def _toybox(data: ToyboxData, size: tuple[int, int]) -> Data:
    with quiet():
        from customized_grpo.toybox.judging import ToyBoxJudges
        from customized_grpo.toybox.models import IMAGE_SIZE
        from customized_grpo.toybox.source import TRAIN_PROMPTS_PER_SUBJECT, ToyBoxSource

    if size != (IMAGE_SIZE, IMAGE_SIZE):
        raise UserError(
            f"data.kind=toybox draws {IMAGE_SIZE}x{IMAGE_SIZE} pictures, the model makes {size[0]}x{size[1]}",
            f"Set model.height={IMAGE_SIZE} model.width={IMAGE_SIZE}, or use data.kind=manifest.",
        )
    if data.held_out_subjects < MIN_CLUSTERS:
        raise UserError(
            "data.held_out_subjects=1: intervals resample subjects and need at least two",
            f"Set data.held_out_subjects={MIN_CLUSTERS} or more.",
        )
    train = ToyBoxSource(data.subjects, TRAIN_PROMPTS_PER_SUBJECT, data.seed, "train")
    held_out = ToyBoxSource(data.held_out_subjects, data.held_out_prompts_per_subject, data.seed, "held-out")
    return Data(train, [held_out[i] for i in range(len(held_out))], ToyBoxJudges())


def build_rewards(config: Config) -> list[Reward]:
    """Build the rewards of a recipe, on the device of its model.

    Raises:
        UserError: A kind is missing, or a reward cannot be built.
    """
    check_rewards(config.rewards)
    device = pick_device(config.model.device)
    rewards = [build_reward(reward, device) for reward in config.rewards]
    kinds = {reward.kind for reward in rewards}
    for kind in ("prompt", "identity"):
        if kind not in kinds:
            raise UserError(
                f"rewards: there is no {kind} reward",
                f"Add one of kind {kind}; `cgrpo config show toybox` has one of each.",
            )
    return rewards


def check_held_out(data: Data, rewards: Sequence[Reward]) -> None:
    """Refuse judges that share a model with a training reward.

    Raises:
        UserError: Names them.
    """
    if isinstance(data.judges, RewardJudges):
        data.judges.check_apart(rewards)


def build_policy(config: Config) -> PipelinePolicy:
    """Load the generator and put the run's fresh adapter on it."""
    return load_policy(config.model, seed=config.run.seed)
