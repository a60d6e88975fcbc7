"""Relative paths of a recipe, found again from another working directory than the one it was trained in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from customized_grpo.config.data_sources import ManifestData
from customized_grpo.config.schema import Config, ModelConfig, RewardConfig
from customized_grpo.embedded import EMBEDDED


def settle_paths(config: Config, folder: Path) -> Config:
    """Return a recipe whose relative paths are those of files in `folder`, where they exist there.

    A path that does not exist there is left as it is: it may be a hub id, or a file of the working directory.

    Args:
        config: The recipe.
        folder: The working directory in which its training began.
    """

    def settled(path: str) -> str:
        name, colon, rest = path.partition(":")  # a file of a LoRA may be "owner/name:file"
        place = folder / Path(name).expanduser()
        # an empty name would be the folder itself, which exists
        return f"{place}{colon}{rest}" if name and place.exists() else path

    model = _settle_model(config.model, settled)
    data = config.data
    if isinstance(data, ManifestData):
        held_out = None if data.held_out is None else Path(settled(str(data.held_out)))
        mix = [part.model_copy(update={"train": Path(settled(str(part.train)))}) for part in data.mix]
        changed = {"train": Path(settled(str(data.train))), "held_out": held_out, "mix": tuple(mix)}
        data = data.model_copy(update=changed)
    rewards = tuple(_settle_reward(reward, settled) for reward in config.rewards)
    judges = tuple(_settle_reward(judge, settled) for judge in config.evaluation.judges)
    prompts = config.evaluation.prompts
    prompts = None if prompts is None else Path(settled(str(prompts)))
    evaluation = config.evaluation.model_copy(update={"judges": judges, "prompts": prompts})
    changes = {"model": model, "data": data, "rewards": rewards, "evaluation": evaluation}
    return config.model_copy(update=changes)


def _settle_model(model: ModelConfig, settled: Callable[[str], str]) -> ModelConfig:
    changes: dict[str, object] = {}
    # An embedded world stays one, even beside a folder of its name.
    if model.path not in EMBEDDED:
        changes["path"] = settled(model.path)
    changes["fuse_lora"] = tuple(
        lora.model_copy(update={"path": settled(lora.path)}) for lora in model.fuse_lora
    )
    if model.start_lora is not None:
        changes["start_lora"] = settled(model.start_lora)
    if model.cache is not None:
        changes["cache"] = Path(settled(str(model.cache)))
    return model.model_copy(update=changes)


def _settle_reward(reward: RewardConfig, settled: Callable[[str], str]) -> RewardConfig:
    if reward.path is None or reward.path in EMBEDDED:
        return reward
    return reward.model_copy(update={"path": settled(reward.path)})
