"""The held-out judges of ToyBox: every score and monitor of the images that are drawn for its examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from customized_grpo.data.examples import Example
from customized_grpo.statistics import monitors
from customized_grpo.toybox import assets, judges, world

GROUPS = {
    "prop": ("prop", "prop_colour", "side"),
    "floor": ("floor_colour",),
    "sky": ("sky",),
}
MATCH = 0.75  # an image shows a scene if at least this share of its attributes is right


class ToyBoxJudges:
    """Judge whose encoders never took part in training.

    Columns (each [B], fp32):
        judge/identity: cosine between re-identification embeddings of the image and of a true image of
            the subject in the prompted scene.
        judge/prompt: share of the attributes named by the prompt that the classifiers find.
        judge/prop, floor, sky: 1 if the whole group is right.
        judge/emblem: 1 if the classifier finds the subject's emblem.
        monitor/copy_score: 0 honest, 1 a literal copy of the reference (scene embedding of the classifier).
        monitor/background_similarity: of image and reference outside the reference's mask, 1 where equal.
        monitor/plain: 1 if the classifier finds no emblem: the generic toy.
        mode/good, copied, drift, other: which kind of sample the image is; one of them is 1.
    """

    def __init__(self) -> None:
        self.encoder, self.classifier = assets.load_judges()
        self.identity_threshold = float(assets.card()["judges"]["identity_threshold"])

    @torch.inference_mode()
    def columns(self, images: torch.Tensor, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Judge images [B, 3, 64, 64] in [0, 1], one per example."""
        images = images.cpu()
        references = torch.stack([e.references[0] for e in examples])
        targets = torch.stack([e.target for e in examples if e.target is not None])
        identity = (self.encoder(images) * self.encoder(targets)).sum(-1)
        predicted = {name: logits.argmax(-1) for name, logits in self.classifier(images).items()}
        emblems = [example.meta["emblem"] for example in examples]
        asked = judges.attribute_labels([e.meta["scene"] for e in examples], emblems)
        shown = judges.attribute_labels([e.meta["reference_scene"] for e in examples], emblems)
        hits = judges.scene_hits(predicted, asked)
        prompt = hits.mean(1)
        reference_match = judges.scene_hits(predicted, shown).mean(1)
        columns = {"judge/identity": identity, "judge/prompt": prompt}
        columns |= {f"judge/{group}": _all_right(hits, names) for group, names in GROUPS.items()}
        columns["judge/emblem"] = (predicted["emblem"] == asked["emblem"]).float()
        plain = judges.CLASSES["emblem"].index(world.PLAIN)
        columns["monitor/plain"] = (predicted["emblem"] == plain).float()
        columns |= self._modes(identity, prompt, reference_match)
        columns["monitor/copy_score"] = self._copy_score(images, references, examples)
        masks = torch.stack([e.masks[0] for e in examples if e.masks is not None])
        columns["monitor/background_similarity"] = monitors.background_similarity(
            images, references, masks, masks
        )
        return {name: values.float() for name, values in columns.items()}

    def _modes(
        self, identity: torch.Tensor, prompt: torch.Tensor, reference: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return which mode each image is in, from its identity and its match with both scenes, each [B]."""
        copied = (reference >= MATCH) & (reference > prompt)
        prompted = ~copied & (prompt >= MATCH)
        same = identity >= self.identity_threshold
        modes = {
            "good": prompted & same,
            "copied": copied,
            "drift": prompted & ~same,
            "other": ~copied & ~prompted,
        }
        return {f"mode/{name}": share.float() for name, share in modes.items()}

    def _copy_score(
        self, images: torch.Tensor, references: torch.Tensor, examples: Sequence[Example]
    ) -> torch.Tensor:
        others = torch.stack([e.meta["other_view"] for e in examples])
        return monitors.copy_score(
            self._scene_embedding(images), self._scene_embedding(references), self._scene_embedding(others)
        )

    def _scene_embedding(self, images: torch.Tensor) -> torch.Tensor:
        """Return the classifier's features [B, D] before its heads: they know the scene, not the subject."""
        return F.normalize(F.silu(self.classifier.trunk(images)).flatten(1), dim=-1)


def _all_right(hits: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
    """Return [B]: 1 where all attributes of `names` are hit.

    Args:
        hits: [B, len(SCENE_ATTRIBUTES)].
        names: Of attributes.
    """
    columns = [judges.SCENE_ATTRIBUTES.index(name) for name in names]
    return (hits[:, columns] == 1).all(1).float()
