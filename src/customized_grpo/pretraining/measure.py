"""How good the trained parts are, on subjects none of them has seen; the numbers of the model card."""

from __future__ import annotations

import math
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

SEED = 501
SUBJECTS = 256


def area_under_curve(positive: torch.Tensor, negative: torch.Tensor) -> float:
    """Return the chance that a positive scores above a negative (ties count half)."""
    difference = positive[:, None] - negative[None, :]
    return float(((difference > 0).float() + 0.5 * (difference == 0).float()).mean())


def true_views() -> tuple[torch.Tensor, torch.Tensor, list[list[world.Scene]]]:
    """Return pictures [SUBJECTS, 2, 3, 64, 64], masks and scenes: each toy in two scenes."""
    scenes = [[world.scene(SEED, i, view) for view in range(2)] for i in range(SUBJECTS)]
    pictures, masks = render_bytes([(world.subject(SEED, i), s) for i in range(SUBJECTS) for s in scenes[i]])
    shape = (SUBJECTS, 2)
    return pictures.float().div(255).unflatten(0, shape), masks.float().div(255).unflatten(0, shape), scenes


@torch.no_grad()
def measure_vae(vae: Any) -> dict[str, float]:
    """Return the peak signal-to-noise ratio (dB) of the whole picture and of the toy alone."""
    pictures, masks, _ = true_views()
    images, mask = pictures[:, 0], masks[:, 0]
    output = (vae.decode(vae.encode(images * 2 - 1).latents).sample / 2 + 0.5).clamp(0, 1)
    error = (output - images).square()
    decibels = lambda value: round(-10 * math.log10(float(value)), 2)  # noqa: E731
    return {
        "psnr_db": decibels(error.mean()),
        "subject_psnr_db": decibels((error * mask).sum() / (3 * mask.sum())),
    }


@torch.no_grad()
def measure_judges(
    encoder: judges.SubjectEncoder, classifier: judges.AttributeClassifier
) -> dict[str, float]:
    """Return accuracy and AUC of the judges on true pictures, and the threshold between same and other."""
    pictures, _, scenes = true_views()
    first, second = encoder(pictures[:, 0]), encoder(pictures[:, 1])
    same, other = (first * second).sum(-1), (first * second.roll(1, 0)).sum(-1)
    predicted = {name: logits.argmax(-1) for name, logits in classifier(pictures[:, 0]).items()}
    hits = judges.attribute_hits(predicted, judges.labels([pair[0] for pair in scenes]))
    levels = torch.cat([same, other]).sort().values
    errors = torch.stack(
        [(same < level).float().mean() + (other >= level).float().mean() for level in levels]
    )
    return {
        "identity_auc": round(area_under_curve(same, other), 4),
        "identity_same": round(float(same.mean()), 4),
        "identity_other": round(float(other.mean()), 4),
        "identity_threshold": round(float(levels[errors.argmin()]), 4),
        "attribute_accuracy": round(float(hits.nanmean()), 4),
    }


def measure_rewards(rewards: list[Reward]) -> dict[str, float]:
    """Return how well each reward tells the right subject or caption, and its premium on a literal copy."""
    source = ToyBoxSource(SUBJECTS, 1, SEED, "measure")
    examples = [source[i] for i in range(SUBJECTS)]
    targets = torch.stack([e.target for e in examples if e.target is not None])
    copies = torch.stack([e.references[0] for e in examples])
    measured: dict[str, float] = {}
    for reward in rewards:
        honest, wrong, copied = (
            reward.score(scoring_batch(images, examples)) for images in (targets, targets.roll(1, 0), copies)
        )
        measured |= {
            f"{reward.name}_auc": round(area_under_curve(honest, wrong), 4),
            f"{reward.name}_honest": round(float(honest.mean()), 4),
            f"{reward.name}_other": round(float(wrong.mean()), 4),
            f"{reward.name}_copy": round(float(copied.mean()), 4),
        }
    return measured


def measure_base(prompts: int) -> dict[str, float]:
    """Return the held-out scores of the base as `cgrpo train` would measure them before training."""
    config = load_config("toybox")
    policy = load_policy(config.model, seed=0)
    source = ToyBoxSource(prompts, 1, SEED, "base")
    scores, _ = evaluate_policy(
        policy,
        [source[i] for i in range(prompts)],
        build_scorer(config.rewards),
        ToyBoxJudges(),
        encoder=PromptEncoder.from_config(config, policy),
        sigmas=policy.sigmas(config.rollout.steps, policy.n_tokens(64, 64)),
        samples_per_prompt=1,
        seed=SEED,
        batch_size=64,
    )
    return {name: round(value, 4) for name, value in scores.metrics().items()}
