"""Held-out judges for rows of your own: rewards that training never sees, and copying by their encoder.

ToyBox brings judges of its own; photos get theirs from `evaluation.judges`. With them the report, the alarms
and `compare` work on photos as they do on ToyBox.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from customized_grpo.errors import UserError
from customized_grpo.pixels import to_uint8
from customized_grpo.rewards import build_reward
from customized_grpo.rewards.base import Reward, ScoringBatch, score_all
from customized_grpo.rewards.features import FeatureCache, content_key
from customized_grpo.rewards.similarity import Encoder, ReferenceSimilarity
from customized_grpo.statistics import monitors

if TYPE_CHECKING:
    from customized_grpo.config.schema import RewardConfig
    from customized_grpo.data.examples import Example

KINDS = ("identity", "prompt")
CACHED_PHOTOS = 4096


class RewardJudges:
    """Judges made of rewards.

    Columns (each [B], fp32; NaN where a row lacks what is needed):
        judge/identity, judge/prompt: mean of the judges of that kind, weighted as the recipe says. Identity
            is likeness to the row's target, another true picture of the subject, when every row has one: a
            copy of the reference then earns no more than an honest picture. Otherwise it is likeness to the
            references, and a copy scores best: read it beside the copy score.
        monitor/copy_score: 0 honest, 1 a literal copy of a reference, -1 the target itself; by the encoder of
            the first identity judge that has one. Needs a target. Of several references the nearest counts.
        monitor/background_similarity: of picture and first reference, outside the reference's mask. Where the
            subject is in the generated picture is not known, so that mask stands in for both: a subject that
            moved counts as background, and the value is a little too low.

    Args:
        judges: Rewards of kind identity or prompt.
        weights: Their weights.
        by_target: Whether every row has a target.

    Raises:
        UserError: A judge is of another kind, or wants masks of the targets, which there are none of.
    """

    def __init__(self, judges: Sequence[Reward], weights: Sequence[float], *, by_target: bool) -> None:
        if wrong := [judge.name for judge in judges if judge.kind not in KINDS]:
            raise UserError(
                f"evaluation.judges: {', '.join(wrong)} is of kind quality",
                "A judge is of kind identity or prompt.",
            )
        self.judges, self.by_target = list(judges), by_target
        self.weights = torch.tensor(list(weights), dtype=torch.float32)
        similar = [judge for judge in judges if isinstance(judge, ReferenceSimilarity)]
        if by_target and (cut := [judge.name for judge in similar if judge.segment != "none"]):
            raise UserError(
                f"evaluation.judges: {', '.join(cut)} cuts out the subject, but targets have no masks",
                "Set segment: none for it.",
            )
        self._encoder: Encoder | None = similar[0].encoder if similar else None
        self._device = similar[0].device if similar else torch.device("cpu")
        self._cache = FeatureCache(CACHED_PHOTOS)

    def check_apart(self, fingerprints: Sequence[Mapping[str, Any]]) -> None:
        """Refuse judges that are training rewards in disguise: they would be gamed along with them.

        Args:
            fingerprints: Of the training rewards.

        Raises:
            UserError: Names every judge whose weights (or whole fingerprint) a training reward has, too.
        """
        taken = {_identity(fingerprint) for fingerprint in fingerprints}
        if same := [judge.name for judge in self.judges if _identity(judge.fingerprint()) in taken]:
            raise UserError(
                f"evaluation.judges: {', '.join(same)} has the weights of a training reward, not held out",
                "Choose a judge with another model, such as another encoder's path.",
            )

    @torch.no_grad()
    def columns(self, images: Tensor, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Judge pictures [B, 3, H, W] in [0, 1], one example per picture."""
        images = images.cpu()
        scores = score_all(self.judges, self._batch(images, examples)) if self.judges else None
        columns: dict[str, Tensor] = {}
        for kind in KINDS:
            members = [k for k, judge in enumerate(self.judges) if judge.kind == kind]
            if members and scores is not None:
                shares = self.weights[members] / self.weights[members].sum()
                columns[f"judge/{kind}"] = scores[:, members] @ shares
        if self._encoder is not None:
            columns["monitor/copy_score"] = self._copy_score(images, examples, self._encoder)
        return {**columns, "monitor/background_similarity": _background(images, examples)}

    def _batch(self, images: Tensor, examples: Sequence[Example]) -> ScoringBatch:
        masks = [e.masks for e in examples]
        known = [list(m) for m in masks if m is not None]
        return ScoringBatch(
            images=images,
            prompts=[e.prompt for e in examples],
            references=[
                [e.target] if self.by_target and e.target is not None else list(e.references)
                for e in examples
            ],
            reference_masks=known if not self.by_target and len(known) == len(masks) else None,
            image_masks=None,
            meta=[{"id": e.id, **e.meta} for e in examples],
        )

    def _copy_score(self, images: Tensor, examples: Sequence[Example], encoder: Encoder) -> Tensor:
        nearest = torch.full((len(images),), math.nan)
        rows = [n for n, e in enumerate(examples) if e.target is not None for _ in e.references]
        if not rows:
            return nearest
        references = [r for e in examples if e.target is not None for r in e.references]
        targets = [e.target for e in examples if e.target is not None for _ in e.references]
        made = encoder(images.to(self._device)).cpu()
        each = monitors.copy_score(
            made[rows], self._photo_features(references, encoder), self._photo_features(targets, encoder)
        )
        for row, value in zip(rows, each.tolist(), strict=True):
            nearest[row] = torch.fmax(nearest[row], torch.tensor(value))
        return nearest

    def _photo_features(self, photos: Sequence[Tensor], encoder: Encoder) -> Tensor:
        """Return features [N, D] on the CPU; each photo is encoded once, alone, as sizes may differ."""
        keys = [content_key(to_uint8(photo)) for photo in photos]
        return self._cache.get(
            keys,
            lambda wanted: torch.cat([encoder(photos[i][None].to(self._device)).cpu() for i in wanted]),
        )


def build_judges(
    configs: Sequence[RewardConfig], held_out: Sequence[Example], device: torch.device
) -> RewardJudges | None:
    """Return the judges of a recipe; None if it names none.

    Raises:
        UserError: One cannot be built, or does not fit the rows.
    """
    if not configs:
        return None
    return RewardJudges(
        [build_reward(config, device) for config in configs],
        [config.weight for config in configs],
        by_target=bool(held_out) and all(e.target is not None for e in held_out),
    )


def _background(images: Tensor, examples: Sequence[Example]) -> Tensor:
    similarity = torch.full((len(images),), math.nan)
    rows = [n for n, e in enumerate(examples) if e.masks is not None]
    if not rows:
        return similarity
    masks = torch.stack([e.masks[0] for e in examples if e.masks is not None])
    references = torch.stack([examples[n].references[0] for n in rows])
    similarity[rows] = monitors.background_similarity(images[rows], references, masks, masks)
    return similarity


def _identity(fingerprint: Mapping[str, Any]) -> str:
    """Return what makes two rewards one model: their weights, or else all that is known of them."""
    return str(fingerprint.get("weights", sorted(fingerprint.items())))
