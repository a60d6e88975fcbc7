"""The registry of rewards by name; your own come by dotted path or entry point."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from customized_grpo import extensions, keys
from customized_grpo.errors import UserError, origin
from customized_grpo.hub import public_name
from customized_grpo.kinds import KINDS
from customized_grpo.rewards.base import Reward, fingerprint_of
from customized_grpo.rewards.face import FaceOptions, FaceReward
from customized_grpo.rewards.hpsv3 import Hpsv3Options
from customized_grpo.rewards.judge.reward import JudgeOptions, JudgeReward
from customized_grpo.rewards.matching import MatchOptions
from customized_grpo.rewards.noise import NoisyReward
from customized_grpo.rewards.options import Options, RewardOptions, read_options
from customized_grpo.rewards.two_scale import Leak, TwoScaleIdentity, TwoScalePrompt

if TYPE_CHECKING:
    from customized_grpo.config.schema import RewardConfig
    from customized_grpo.rewards.similarity import ReferenceSimilarity

RewardFactory = Callable[["RewardConfig", torch.device], Reward]
FactoryWithOptions = Callable[["RewardConfig", torch.device, Options], Reward]


@dataclass(frozen=True)
class Registered:
    """A reward of the package.

    Attributes:
        build: Makes it from an entry of a recipe, whose options it checks first.
        options: The model of its options.
        segmented: Whether it cuts out images as the entry's `segment` says, and so needs masks.
    """

    build: RewardFactory
    options: type[RewardOptions]
    segmented: bool


REWARDS: dict[str, Registered] = {}
"""Every registered reward, by name."""


def register(name: str, *, segmented: bool = False) -> Callable[[RewardFactory], RewardFactory]:
    """Return a decorator that registers a factory under a name, and so enrols it in the contract tests.

    Args:
        name: Its name in a recipe.
        segmented: Whether it cuts out images as the entry's `segment` says, and so needs masks.
    """

    def add(factory: RewardFactory) -> RewardFactory:
        register_with(name, RewardOptions, segmented=segmented)(
            lambda config, device, _: factory(config, device)
        )
        return factory

    return add


def register_with(
    name: str, options: type[Options], *, segmented: bool = False
) -> Callable[[FactoryWithOptions[Options]], FactoryWithOptions[Options]]:
    """Return a decorator like `register`'s for a factory that also takes options, read as the model given."""

    def add(factory: FactoryWithOptions[Options]) -> FactoryWithOptions[Options]:
        def build(config: RewardConfig, device: torch.device) -> Reward:
            return factory(config, device, read_options(name, options, config.options))

        if name in REWARDS:
            raise ValueError(f"there already is a reward {name!r}")
        REWARDS[name] = Registered(build, options, segmented)
        return factory

    return add


def check_rewards(configs: Iterable[RewardConfig]) -> None:
    """Check names and options of a recipe's rewards, loading no model.

    Rewards of your own are imported, if they run in this process.

    Raises:
        UserError: Lists every unknown name, untrusted module and wrong option of registered rewards.
    """
    # All of them at once: one mistake for each start would be a slow way to learn.
    mistakes: list[UserError] = []
    for config in configs:
        try:
            if config.name in REWARDS:
                read_options(config.name, REWARDS[config.name].options, config.options)
            # code that runs elsewhere is imported there; its packages may be missing here
            elif config.executor.kind in ("inline", "thread") or not extensions.is_dotted(config.name):
                extensions.load("reward", config.name)
                _own_options(config.name, config.options)
        except UserError as error:
            mistakes.append(error)
    if mistakes:
        hints = dict.fromkeys(error.hint for error in mistakes if error.hint is not None)
        raise UserError("\n".join(error.message for error in mistakes), hint="\n".join(hints) or None)


def scoring_settings(config: RewardConfig) -> dict[str, str]:
    """Return what an entry of a recipe says about how its reward scores, for two sides to compare.

    Weights are called by their public name, as their folder may be elsewhere on another machine. Options of
    registered rewards count with their defaults. Their values are hashed: they may hold secrets.

    Raises:
        UserError: An option of a registered reward is wrong.
    """
    options: Mapping[str, Any] = config.options
    settings = {"noise": f"{config.noise:g}", "path": "its default"}
    if config.path is not None:
        settings["path"] = public_name(config.path)
    if config.name in REWARDS:
        registered = REWARDS[config.name]
        options = read_options(config.name, registered.options, config.options).model_dump(mode="json")
        if registered.segmented:
            settings["segment"] = config.segment
    for name, value in options.items():
        text = json.dumps(value, sort_keys=True)
        settings[f"options.{name}"] = f"sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"
    return settings


def needs_masks(config: RewardConfig) -> bool:
    """Return whether an entry of a recipe needs masks of the references; False for rewards of your own."""
    # A reward of one's own may take masks or not: it must say so itself when it scores.
    return config.name in REWARDS and REWARDS[config.name].segmented and config.segment != "none"


def needs_subjects(config: RewardConfig) -> bool:
    """Return whether an entry of a recipe needs what a segmenter finds in the drawn images."""
    return config.segment == "both" or bool(config.options.get("match"))


def build_reward(config: RewardConfig, device: torch.device | str = "cpu") -> Reward:
    """Build one reward of a recipe.

    Args:
        config: An entry of the recipe's `rewards`. Its name is registered, or "package.module:Name": a class
            or a factory, called with the options, or a finished reward.
        device: Where models run; rewards of your own choose themselves.

    Raises:
        UserError: The name is unknown or not of a reward, an option is wrong, or the import fails.
    """
    reward = _build(config, torch.device(device))
    # Around the built reward, so that its cache keeps the scores without noise.
    return NoisyReward(reward, config.noise) if config.noise else reward


def _build(config: RewardConfig, device: torch.device) -> Reward:
    if config.name in REWARDS:
        return REWARDS[config.name].build(config, device)
    return _build_own(config.name, _own_options(config.name, config.options))


def _own_options(path: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return keys.with_secrets(options, f"reward {path!r}")


def _build_own(path: str, options: dict[str, Any]) -> Reward:
    named = extensions.load("reward", path)
    finished = isinstance(named, Reward) and not isinstance(named, type)
    if finished and options:
        raise UserError(
            f"reward {path!r} is an object that is made already, so it takes no options",
            hint="Name its class instead, or leave the options out.",
        )
    if not finished and not callable(named):
        raise UserError(
            f"reward {path!r} is a {type(named).__name__}, neither a reward nor a class of rewards",
            hint="See customized_grpo.rewards.Reward; FunctionReward makes a reward of a function.",
        )
    # Foreign code: whatever it raises becomes a message about the recipe.
    try:
        reward = named if finished else named(**options)
    except TypeError as error:
        names = ", ".join(options) or "none"  # their values may be secrets
        raise UserError(f"reward {path!r} cannot be made with the options {names}: {error}") from error
    except (ValueError, LookupError, OSError, ImportError, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}{origin(error)}"
        raise UserError(f"reward {path!r} could not be made: {reason}") from error
    if not isinstance(reward, Reward):
        raise UserError(
            f"reward {path!r} is a {type(reward).__name__} without name, kind, score or fingerprint",
            hint="See customized_grpo.rewards.Reward; FunctionReward makes a reward of a function.",
        )
    if reward.kind not in KINDS:
        raise UserError(f"reward {path!r} has kind {reward.kind!r}; it must be one of {', '.join(KINDS)}")
    if not isinstance(reward.name, str) or not reward.name.strip():
        raise UserError(f"reward {path!r} has the name {reward.name!r}; it must be a text that is not empty")
    # Now, because the first checkpoint would come after hours of training.
    fingerprint_of(reward)
    return reward


def _matching(reward: ReferenceSimilarity, options: MatchOptions) -> Reward:
    """Return the reward, made to match several subjects if it shall."""
    reward.match = options.match
    return reward


@register_with("dino", MatchOptions, segmented=True)
def _dino(config: RewardConfig, device: torch.device, options: MatchOptions) -> Reward:
    from customized_grpo.rewards.dino import DEFAULT_PATH, DinoReward

    reward = DinoReward.load(config.path or DEFAULT_PATH, segment=config.segment, device=device)
    return _matching(reward, options)


@register("dino_seg", segmented=True)
def _dino_seg(config: RewardConfig, device: torch.device) -> Reward:
    from customized_grpo.rewards.dino import DEFAULT_PATH, SEGMENTED_NAME, DinoReward

    if config.segment != "reference":
        raise UserError(
            f"reward {config.name!r} always cuts out the reference, but segment: {config.segment} was given",
            hint="Use dino with segment: none.",
        )
    return DinoReward.load(config.path or DEFAULT_PATH, device=device, name=SEGMENTED_NAME)


@register_with("dino_v1", MatchOptions, segmented=True)
def _dino_v1(config: RewardConfig, device: torch.device, options: MatchOptions) -> Reward:
    from customized_grpo.rewards.dino_v1 import DEFAULT_PATH, DinoV1Reward

    reward = DinoV1Reward.load(config.path or DEFAULT_PATH, segment=config.segment, device=device)
    return _matching(reward, options)


@register_with("dino_v3", MatchOptions, segmented=True)
def _dino_v3(config: RewardConfig, device: torch.device, options: MatchOptions) -> Reward:
    from customized_grpo.rewards.dino_v3 import DEFAULT_PATH, DinoV3Reward

    reward = DinoV3Reward.load(config.path or DEFAULT_PATH, segment=config.segment, device=device)
    return _matching(reward, options)


@register_with("siglip", MatchOptions, segmented=True)
def _siglip(config: RewardConfig, device: torch.device, options: MatchOptions) -> Reward:
    from customized_grpo.rewards.siglip import DEFAULT_PATH, SiglipReward

    reward = SiglipReward.load(config.path or DEFAULT_PATH, segment=config.segment, device=device)
    return _matching(reward, options)


@register("clip_t")
def _clip_t(config: RewardConfig, device: torch.device) -> Reward:
    from customized_grpo.rewards.clip import DEFAULT_PATH, ClipTextReward

    return ClipTextReward.load(config.path or DEFAULT_PATH, device=device)


@register_with("clip_i", MatchOptions, segmented=True)
def _clip_i(config: RewardConfig, device: torch.device, options: MatchOptions) -> Reward:
    from customized_grpo.rewards.clip import DEFAULT_PATH, ClipImageReward

    reward = ClipImageReward.load(config.path or DEFAULT_PATH, segment=config.segment, device=device)
    return _matching(reward, options)


@register("pickscore")
def _pickscore(config: RewardConfig, device: torch.device) -> Reward:
    from customized_grpo.rewards.pickscore import DEFAULT_PATH, PickScoreReward

    return PickScoreReward.load(config.path or DEFAULT_PATH, device=device)


@register("hpsv2")
def _hpsv2(config: RewardConfig, device: torch.device) -> Reward:
    from customized_grpo.rewards.hpsv2 import HOW_TO_CONVERT, Hpsv2Reward

    if config.path is None:
        raise UserError("reward 'hpsv2' needs the path of a converted checkpoint", hint=HOW_TO_CONVERT)
    return Hpsv2Reward.load(config.path, device=device)


@register_with("hpsv3", Hpsv3Options)
def _hpsv3(config: RewardConfig, device: torch.device, options: Hpsv3Options) -> Reward:
    from customized_grpo.rewards.hpsv3 import Hpsv3Reward

    return Hpsv3Reward.load(config.path, options, device=device)


@register_with("lite", MatchOptions, segmented=True)
def _lite(config: RewardConfig, device: torch.device, options: MatchOptions) -> Reward:
    from customized_grpo.rewards.lite import LiteReward

    reward = LiteReward.load(config.path, segment=config.segment, device=device)
    return _matching(reward, options)


@register("lite_t")
def _lite_t(config: RewardConfig, device: torch.device) -> Reward:
    from customized_grpo.rewards.lite import LiteTextReward

    return LiteTextReward.load(config.path, device=device)


@register_with("two_scale_identity", Leak)
def _two_scale_identity(config: RewardConfig, device: torch.device, options: Leak) -> Reward:
    _refuse_path(config)
    return TwoScaleIdentity(options.leak)


@register_with("two_scale_prompt", Leak)
def _two_scale_prompt(config: RewardConfig, device: torch.device, options: Leak) -> Reward:
    _refuse_path(config)
    return TwoScalePrompt(options.leak)


@register_with("judge", JudgeOptions)
def _judge(config: RewardConfig, device: torch.device, options: JudgeOptions) -> Reward:
    _refuse_path(config)
    return JudgeReward(options)


@register_with("face", FaceOptions)
def _face(config: RewardConfig, device: torch.device, options: FaceOptions) -> Reward:
    _refuse_path(config)
    return FaceReward.load(options)


def _refuse_path(config: RewardConfig) -> None:
    if config.path is not None:
        raise UserError(f"reward {config.name!r} does not use `path`; it is set by `options`")
