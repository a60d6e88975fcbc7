"""Held-out judges for rows of your own: rewards that training does not use, and a copy score.

ToyBox has judges of its own; the judges of photos are configured in `evaluation.judges`. With them the
report, the alarms and `compare` work on photos as they do on ToyBox.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from customized_grpo.errors import UserError
from customized_grpo.kinds import KINDS
from customized_grpo.pixels import to_uint8
from customized_grpo.rewards import build_reward
from customized_grpo.rewards.base import (
    Reward,
    as_scores,
    checked_scores,
    fingerprint_of,
    is_groupwise,
    needs_references,
)
from customized_grpo.rewards.executors import check_names
from customized_grpo.rewards.features import FeatureCache, content_key
from customized_grpo.rewards.segmenter import TextSegmenter
from customized_grpo.rewards.similarity import Encoder, ReferenceSimilarity
from customized_grpo.rollout.scoring import scoring_batch
from customized_grpo.statistics import monitors

if TYPE_CHECKING:
    from customized_grpo.config.schema import RewardConfig
    from customized_grpo.data.examples import Example

CACHED_PHOTOS = 4096

MODEL_KEYS = ({"weights"}, {"recogniser"}, {"url", "model"})
"""Keys of a fingerprint that name the model: another rubric, seed or threshold makes no other judge of it."""


class RewardJudges:
    """Held-out judges that are rewards.

    Columns (each [B], fp32; NaN where a row has no target or masks that it needs):
        judge/prompt, judge/identity, judge/quality: Mean of the judges of that kind, weighted as the recipe
            says. If every row has a target, another photo of the subject, identity is similarity to it: a
            copy of the reference then scores no higher than an honest image. Otherwise, and for judges that
            need the references themselves (`base.needs_references`), it is similarity to the references, and
            a copy scores best: read it beside the copy score.
        judge_score/NAME: Of each judge, by its name.
        monitor/copy_score: 0 for an honest image, 1 for a literal copy of a reference, -1 for the target
            itself, by the encoder of the first identity judge that has one. Needs a target. Of several
            references the nearest counts.
        monitor/background_similarity: Similarity of the image and the first reference, outside the
            reference's mask. The subject's place in the generated image is unknown, so the mask is used for
            both: a subject that moved counts as background, and the value is a little too low.

    Args:
        judges: Rewards of any kind.
        names: Their names.
        weights: Their weights.
        by_target: Whether every row has a target.
        segmenter: Finds the subjects in the images, for judges that need them.

    Raises:
        UserError: A judge needs masks of the targets, which have none.
    """

    def __init__(
        self,
        judges: Sequence[Reward],
        names: Sequence[str],
        weights: Sequence[float],
        *,
        by_target: bool,
        segmenter: TextSegmenter | None = None,
    ) -> None:
        self.judges = list(judges)
        self.names = list(names)
        self.by_target = by_target
        self.segmenter = segmenter
        self.weights = torch.tensor(list(weights), dtype=torch.float32)
        similar = [judge for judge in judges if isinstance(judge, ReferenceSimilarity)]
        segmenting = [j.name for j in similar if j.segment != "none" and not needs_references(j)]
        if by_target and segmenting:
            raise UserError(
                f"evaluation.judges: {', '.join(segmenting)} cuts out the subject, but targets have no masks",
                hint="Set segment: none for it.",
            )
        # The copy score compares features: the first judge with an encoder lends it.
        self._encoder: Encoder | None = similar[0].encoder if similar else None
        self._device = similar[0].device if similar else torch.device("cpu")
        self._cache = FeatureCache(CACHED_PHOTOS)

    def check_apart(self, fingerprints: Sequence[Mapping[str, Any]]) -> None:
        """Refuse judges that have the model of a training reward: they would be hacked along with it.

        Args:
            fingerprints: Fingerprints of the training rewards.

        Raises:
            UserError: Names every judge whose weights (or whole fingerprint) a training reward has as well.
        """
        trained = {_identity(fingerprint) for fingerprint in fingerprints}
        own = zip(self.judges, self.fingerprints(), strict=True)
        same = [judge.name for judge, fingerprint in own if _identity(fingerprint) in trained]
        if same:
            raise UserError(
                f"evaluation.judges: {', '.join(same)} has the weights of a training reward, not held out",
                hint="Choose a judge with another model, such as another encoder's path.",
            )

    def fingerprints(self) -> list[dict[str, Any]]:
        """Return the fingerprint of every judge."""
        return [fingerprint_of(judge) for judge in self.judges]

    @torch.no_grad()
    def columns(self, images: Tensor, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return the columns of images [B, 3, H, W] in [0, 1], one example per image."""
        images = images.cpu()
        scores = self._scores(images, examples) if self.judges else None
        columns: dict[str, Tensor] = {}
        for kind in KINDS:
            # column of `scores` -> its judge
            members = [k for k, judge in enumerate(self.judges) if judge.kind == kind]
            if members and scores is not None:
                # shares add up to 1 before the sum, so that a single judge's scores are kept bit for bit
                shares = self.weights[members] / self.weights[members].sum()
                columns[f"judge/{kind}"] = scores[:, members] @ shares
        for k, name in enumerate(self.names):
            if scores is not None:
                columns[f"judge_score/{name}"] = scores[:, k]
        if self._encoder is not None:
            columns["monitor/copy_score"] = self._copy_score(images, examples, self._encoder)
        return {**columns, "monitor/background_similarity": _background(images, examples)}

    def _scores(self, images: Tensor, examples: Sequence[Example]) -> Tensor:
        """Return the score of every judge [B, K]."""
        batch = scoring_batch(images, examples)
        if self.segmenter is not None:
            batch = self.segmenter.with_masks(batch)
        by_target = batch
        if self.by_target:
            # Judged by target only if every held-out row has one: none is left out here.
            targets = [[example.target] for example in examples if example.target is not None]
            by_target = replace(batch, references=targets, reference_masks=None)  # targets have no masks
        columns = []
        for judge in self.judges:
            # only a likeness can be one to the target: an edit is an edit of the reference
            is_likeness = judge.kind == "identity" and not needs_references(judge)
            columns.append(checked_scores(judge, by_target if is_likeness else batch))
        return as_scores(columns)

    def _copy_score(self, images: Tensor, examples: Sequence[Example], encoder: Encoder) -> Tensor:
        """Return the copy score of each image [B]; NaN where its example has no target."""
        nearest = torch.full((len(images),), math.nan)
        # one entry per pair of an image and one of its references
        rows: list[int] = []
        references: list[Tensor] = []
        targets: list[Tensor] = []
        for row, example in enumerate(examples):
            if example.target is not None:
                for reference in example.references:
                    rows.append(row)
                    references.append(reference)
                    targets.append(example.target)
        if not rows:
            return nearest
        # once for each image; below, `rows` repeats its features for every reference
        image_features = encoder(images.to(self._device)).cpu()
        pair_scores = monitors.copy_score(
            image_features[rows],
            self._photo_features(references, encoder),
            self._photo_features(targets, encoder),
        )
        for row, score in zip(rows, pair_scores.tolist(), strict=True):
            nearest[row] = torch.fmax(nearest[row], torch.tensor(score))  # of NaN and a number: the number
        return nearest

    def _photo_features(self, photos: Sequence[Tensor], encoder: Encoder) -> Tensor:
        """Return features [N, D] on the CPU; each photo is encoded once, alone, as sizes may differ."""
        keys = [content_key(to_uint8(photo)) for photo in photos]

        def encode(missing: Sequence[int]) -> Tensor:
            return torch.cat([encoder(photos[index][None].to(self._device)).cpu() for index in missing])

        return self._cache.get(keys, encode)


def build_judges(
    configs: Sequence[RewardConfig],
    held_out: Sequence[Example],
    device: torch.device,
    segmenter: TextSegmenter | None = None,
) -> RewardJudges | None:
    """Return the judges of a recipe; None if it names none.

    Raises:
        UserError: One cannot be built, two have one name, or one does not fit the rows.
    """
    if not configs:
        return None
    judges = [build_reward(config, device) for config in configs]
    groupwise = [judge.name for judge in judges if is_groupwise(judge)]
    if groupwise:
        raise UserError(
            f"evaluation.judges: {', '.join(groupwise)} compares the images of a group, and judges score "
            "images one by one",
            hint="Choose a judge that scores single images.",
        )
    names = [config.label or judge.name for config, judge in zip(configs, judges, strict=True)]
    check_names("evaluation.judges", names)
    return RewardJudges(
        judges,
        names,
        [config.weight for config in configs],
        by_target=bool(held_out) and all(e.has_target for e in held_out),
        segmenter=segmenter,
    )


def in_shape(photo: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return a photo or mask [C, h, w] as the monitor compares it with an image, [C, H, W].

    One that has the shape already stays as it is. Another is cut to the image's aspect around its middle.

    Args:
        photo: As the model sees it.
        shape: H and W.
    """
    if tuple(photo.shape[1:]) == shape:
        return photo
    height, width = photo.shape[1:]
    # The largest centred window in the proportions of the image.
    scale = min(height / shape[0], width / shape[1])
    kept_height = max(1, round(shape[0] * scale))
    kept_width = max(1, round(shape[1] * scale))
    top = (height - kept_height) // 2
    left = (width - kept_width) // 2
    kept = photo[None, :, top : top + kept_height, left : left + kept_width]
    return functional.interpolate(kept, shape, mode="bilinear", antialias=True)[0]


def _background(images: Tensor, examples: Sequence[Example]) -> Tensor:
    """Return the background similarity of each image [B]; NaN where its example has no masks."""
    similarity = torch.full((len(images),), math.nan)
    rows = [n for n, e in enumerate(examples) if e.masks is not None]
    if not rows:
        return similarity
    shape = (images.shape[2], images.shape[3])
    # Of several references the monitor looks at the first.
    masks = torch.stack([in_shape(e.masks[0], shape) for e in examples if e.masks is not None])
    references = torch.stack([in_shape(examples[n].references[0], shape) for n in rows])
    # A drawn image has no mask of its own: the reference's serves for both.
    similarity[rows] = monitors.background_similarity(images[rows], references, masks, masks)
    return similarity


def _identity(fingerprint: Mapping[str, Any]) -> str:
    """Return a string that is equal for two rewards of one model: what names the model, or else all."""
    for keys in MODEL_KEYS:
        if keys <= fingerprint.keys():
            return str([(key, fingerprint[key]) for key in sorted(keys)])
    return str(sorted(fingerprint.items()))
