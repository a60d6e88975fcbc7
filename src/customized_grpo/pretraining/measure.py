"""The numbers of the model card: how good the trained parts are, on subjects that none of them has seen."""

from __future__ import annotations

import math
from typing import Any

import torch

from customized_grpo.config import load_config
from customized_grpo.evaluation.held_out import evaluate_policy
from customized_grpo.policies.loading import load_policy
from customized_grpo.pretraining.images import render_subjects, scenes_of_subjects
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
    """Return images [SUBJECTS, 2, 3, 64, 64], masks and scenes[subject][view]: each toy in two scenes."""
    scenes = scenes_of_subjects(SEED, SUBJECTS, views=2)
    pixels, subject_masks = render_subjects(SEED, range(SUBJECTS), scenes)
    images = pixels.float().div(255).unflatten(0, (SUBJECTS, 2))
    masks = subject_masks.float().div(255).unflatten(0, (SUBJECTS, 2))
    return images, masks, scenes


@torch.no_grad()
def measure_vae(vae: Any) -> dict[str, float]:
    """Return the peak signal-to-noise ratio (dB) of whole images and of the toys alone."""
    both_views, both_masks, _ = true_views()
    images = both_views[:, 0]
    masks = both_masks[:, 0]
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
    images, _, scenes = true_views()
    first = encoder(images[:, 0])
    second = encoder(images[:, 1])
    same = (first * second).sum(-1)
    other = (first * second.roll(1, 0)).sum(-1)  # every subject beside its neighbour
    predicted = {name: logits.argmax(-1) for name, logits in classifier(images[:, 0]).items()}
    labels = judges.attribute_labels([pair[0] for pair in scenes])
    hits = judges.attribute_hits(predicted, labels)
    # the threshold is the level with the fewest errors of both kinds together
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
    """Return how well each reward knows the right subject or caption, and its score of a literal copy."""
    source = ToyBoxSource(SUBJECTS, 1, SEED, "measure")
    examples = [source[i] for i in range(SUBJECTS)]
    targets = torch.stack([e.target for e in examples if e.target is not None])
    copies = torch.stack([e.references[0] for e in examples])
    measured: dict[str, float] = {}
    for reward in rewards:
        honest = reward.score(scoring_batch(targets, examples))
        wrong = reward.score(scoring_batch(targets.roll(1, 0), examples))  # the image of the next example
        copied = reward.score(scoring_batch(copies, examples))
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
        encoder=PromptEncoder.from_config(config.model, policy),
        sigmas=policy.sigmas(config.rollout.steps, policy.n_tokens(64, 64)),
        samples_per_prompt=1,
        seed=SEED,
        batch_size=64,
        kept=(),
    )
    return {name: round(value, 4) for name, value in scores.metrics().items()}
