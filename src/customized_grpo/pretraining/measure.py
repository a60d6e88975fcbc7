"""The numbers of the model card: how good the trained parts are, on subjects that none of them has seen."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch

from customized_grpo.config import load_config
from customized_grpo.evaluation.held_out import evaluate_policy
from customized_grpo.policies.loading import load_policy
from customized_grpo.pretraining.common import render_bytes
from customized_grpo.rewards.base import Reward
from customized_grpo.rewards.executors import build_scorer
from customized_grpo.rollout.encoding import PromptEncoder
from customized_grpo.rollout.scoring import scoring_batch
from customized_grpo.toybox import judges, world
from customized_grpo.toybox.judging import ToyBoxJudges
from customized_grpo.toybox.source import ToyBoxSource
from customized_grpo.training.deciding import Branching
from customized_grpo.training.doctor import diagnose

SEED = 501
SUBJECTS = 256
PRECISION = "model.precision=fp32"  # the same on every CPU


def area_under_curve(positive: torch.Tensor, negative: torch.Tensor) -> float:
    """Return the chance that a positive scores above a negative (ties count half)."""
    difference = positive[:, None] - negative[None, :]
    return float(((difference > 0).float() + 0.5 * (difference == 0).float()).mean())


def render_pairs(pairs: list[tuple[world.Subject, world.Scene]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images [B, 3, 64, 64] and masks [B, 1, 64, 64] in [0, 1]."""
    pixels, masks = render_bytes(pairs)
    return pixels.float() / 255, masks.float() / 255


def toys_and_scenes(view: str) -> list[tuple[world.Subject, world.Scene]]:
    """Return the measured toys, each in a scene that `view` names."""
    return [(world.subject(SEED, i), world.scene(SEED, i, view)) for i in range(SUBJECTS)]


@torch.no_grad()
def measure_vae(vae: Any) -> dict[str, float]:
    """Return the peak signal-to-noise ratio (dB) of whole images and of the toys alone."""
    images, masks = render_pairs(toys_and_scenes("first"))
    output = (vae.decode(vae.encode(images * 2 - 1).latents).sample / 2 + 0.5).clamp(0, 1)
    error = (output - images).square()
    return {
        "psnr_db": _decibels(error.mean()),
        "subject_psnr_db": _decibels((error * masks).sum() / (3 * masks.sum())),
    }


def _decibels(mean_square_error: torch.Tensor) -> float:
    """Return the peak signal-to-noise ratio of pixels in [0, 1]."""
    return round(-10 * math.log10(float(mean_square_error)), 2)


@torch.no_grad()
def measure_judges(
    encoder: judges.SubjectEncoder, classifier: judges.AttributeClassifier
) -> dict[str, float]:
    """Return accuracy and AUC of the judges on true images, and the threshold of one subject's identity."""
    pairs = toys_and_scenes("first")
    images, _ = render_pairs(pairs)
    first = encoder(images)
    second = encoder(render_pairs(toys_and_scenes("second"))[0])
    plain = encoder(render_pairs([(_plain(toy), scene) for toy, scene in toys_and_scenes("second")])[0])
    same = (first * second).sum(-1)
    other = (first * second.roll(1, 0)).sum(-1)  # every subject beside its neighbour
    without = (first * plain).sum(-1)
    predicted = {name: logits.argmax(-1) for name, logits in classifier(images).items()}
    labels = judges.attribute_labels([scene for _, scene in pairs], [toy.emblem for toy, _ in pairs])
    # the threshold is the level with the fewest errors of both kinds together
    levels = torch.cat([same, without]).sort().values
    errors = torch.stack(
        [(same < level).float().mean() + (without >= level).float().mean() for level in levels]
    )
    return {
        "identity_auc": round(area_under_curve(same, other), 4),
        "identity_plain_auc": round(area_under_curve(same, without), 4),
        "identity_same": round(float(same.mean()), 4),
        "identity_other": round(float(other.mean()), 4),
        "identity_plain": round(float(without.mean()), 4),
        "identity_threshold": round(float(levels[errors.argmin()]), 4),
        "attribute_accuracy": round(float(judges.scene_hits(predicted, labels).mean()), 4),
        "emblem_accuracy": round(float((predicted["emblem"] == labels["emblem"]).float().mean()), 4),
    }


def _plain(toy: world.Subject) -> world.Subject:
    return dataclasses.replace(toy, emblem=world.PLAIN)


def measure_rewards(rewards: list[Reward]) -> dict[str, dict[str, float]]:
    """Return what each reward sees in true images: the scene, the emblem, other toys and captions, a copy.

    `scene` and `emblem` are the mean differences that the prompted scene (instead of the reference's) and the
    emblem (instead of the plain toy) make, in standard deviations of the four images of a prompt, as the
    advantages of a group are; see `leaks`.
    """
    source = ToyBoxSource(SUBJECTS, 1, SEED, "measure")
    examples = [source[i] for i in range(SUBJECTS)]
    copies = torch.stack([example.references[0] for example in examples])
    targets = torch.stack([example.target for example in examples if example.target is not None])
    images = _factorial(source)
    measured = {}
    for reward in rewards:

        def score(pixels: torch.Tensor, reward: Reward = reward) -> torch.Tensor:
            return reward.score(scoring_batch(pixels, examples))

        values = {key: score(pixels) for key, pixels in images.items()}
        honest = score(targets)
        wrong = score(targets.roll(1, 0))  # the image of the next example
        effects = factorial_effects(values)
        deviation = float(torch.stack(list(values.values())).var(0, correction=0).mean().sqrt())
        measured[reward.name] = {
            "auc": round(area_under_curve(honest, wrong), 4),
            "honest": round(float(honest.mean()), 4),
            "other": round(float(wrong.mean()), 4),
            "copy": round(float(score(copies).mean()), 4),
            "scene": round(effects[0] / deviation, 4),
            "emblem": round(effects[1] / deviation, 4),
        }
    return measured


def _factorial(source: ToyBoxSource) -> dict[tuple[bool, bool], torch.Tensor]:
    """Return true images [SUBJECTS, 3, 64, 64] by (in the prompted scene, with the emblem).

    In the reference's scene the toy is turned as in the prompted one, as an honest copy of the scene is.
    """
    images = {}
    for is_prompted in (True, False):
        for has_emblem in (True, False):
            pairs = []
            for index in range(len(source)):
                toy = source.toy(index)
                reference, prompted, _ = source.scenes(index)
                scene = prompted if is_prompted else dataclasses.replace(reference, yaw=prompted.yaw)
                pairs.append((toy if has_emblem else _plain(toy), scene))
            images[is_prompted, has_emblem] = render_pairs(pairs)[0]
    return images


def factorial_effects(values: dict[tuple[bool, bool], torch.Tensor]) -> tuple[float, float]:
    """Return the main effects of the two factors of a 2 x 2 design on its values, each [N]."""
    mean = {key: float(column.mean()) for key, column in values.items()}
    first = (mean[True, True] + mean[True, False] - mean[False, True] - mean[False, False]) / 2
    second = (mean[True, True] + mean[False, True] - mean[True, False] - mean[False, False]) / 2
    return first, second


def leaks(
    rewards: dict[str, dict[str, float]], identity: Mapping[str, float], prompt: Mapping[str, float]
) -> dict[str, float]:
    """Return how much the rewards of each kind are paid for the other kind's decision.

    l_id is what identity gains by the reference's scene, over what it gains by the emblem; l_p is what the
    prompt rewards gain by the plain toy, over what they gain by the prompted scene.

    Args:
        rewards: Of `measure_rewards`.
        identity, prompt: Weights of the rewards of both kinds, by name, as a recipe has them.
    """

    def total(weights: Mapping[str, float], effect: str) -> float:
        return sum(weight * rewards[name][effect] for name, weight in weights.items())

    return {
        "l_id": round(-total(identity, "scene") / total(identity, "emblem"), 3),
        "l_p": round(-total(prompt, "emblem") / total(prompt, "scene"), 3),
    }


def measure_decisions(prompts: int) -> dict[str, Any]:
    """Return when the packed base decides each quality, as `cgrpo doctor toybox` draws it from every step.

    Args:
        prompts: Prompts whose trajectories branch.

    Returns:
        `open`: the share of a score's variance that is still open before each step, by judge or reward;
        `std`: the standard deviation among samples that share their initial noise, as those of a group do.
    """
    config = load_config("toybox", [PRECISION])
    branching = Branching(prompts=prompts, points=config.rollout.steps)
    decisions = diagnose(config, 1, branching).decisions
    assert decisions is not None, "points were asked for"
    measured: dict[str, Any] = {
        "steps": config.rollout.steps,
        "sampler": config.rollout.sampler,
        "open": {},
        "std": {},
    }
    for name, curve in decisions.curves.items():
        measured["open"][name] = [round(share, 3) for share in curve.share]
        measured["std"][name] = round(math.sqrt(curve.open[0]), 4)
    return measured


def measure_base(prompts: int, path: str = "toybox") -> dict[str, float]:
    """Return the held-out scores of a base as `cgrpo train` would measure them before training.

    Args:
        prompts: Number of prompts, each about a toy of its own.
        path: Folder of the base; "toybox" is the one that is packed.
    """
    config = load_config("toybox", [f"model.path={path}", PRECISION])
    policy = load_policy(config.model, seed=0)
    source = ToyBoxSource(prompts, 1, SEED, "base")
    scores, _ = evaluate_policy(
        policy,
        [source[i] for i in range(prompts)],
        build_scorer(config.rewards),
        ToyBoxJudges(),
        encoder=PromptEncoder.from_config(config.model, policy),
        sigmas=policy.sigmas(config.rollout.steps, policy.n_tokens(64, 64)),
        samples_per_prompt=1,
        seed=SEED,
        batch_size=64,
        kept=(),
    )
    return {name: round(value, 4) for name, value in scores.metrics().items()}
