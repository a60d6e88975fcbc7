"""The interface of a reward: its input, its scores, and how several rewards are asked.

B samples, K rewards. A reward gets images with their prompts and references, and returns one number per
sample. NaN means that it could not judge the sample, which then does not count. It never returns a made-up
score. A groupwise reward gets the images of one prompt, all of its group, in one batch.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from customized_grpo.errors import UserError
from customized_grpo.text_limits import TextLimit

Item = TypeVar("Item")

NOT_ASKED = float("inf")
"""Score of a sample whose row did not choose the reward; a reward's own infinite scores become NaN."""

Kind = Literal["prompt", "identity", "quality"]
"""One of `kinds.KINDS`."""


@dataclass(frozen=True)
class ScoringBatch:
    """Images to score, on any device.

    Attributes:
        images: Generated images [B, 3, H, W], fp32 in [0, 1].
        prompts: The prompt of each image.
        references: For each image its references [3, h, w], fp32 in [0, 1], of any sizes.
        reference_masks: For each reference the subject [1, h, w] in [0, 1], 1 inside; None if there are none.
        image_masks: The subject in each generated image [B, 1, H, W] in [0, 1]; None if not known.
        meta: The data row of each image; "id" names it in messages.
        image_instances: The M subjects found in each image, bool [M, H, W]; None if nothing looked for them.
    """

    images: Tensor
    prompts: list[str]
    references: list[list[Tensor]]
    reference_masks: list[list[Tensor]] | None
    image_masks: Tensor | None
    meta: list[dict[str, Any]]
    image_instances: list[Tensor] | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[1] != 3 or self.images.dtype != torch.float32:
            raise ValueError(
                f"images must be fp32 [B, 3, H, W], not {self.images.dtype} {list(self.images.shape)}"
            )
        per_sample: dict[str, Sized | None] = {
            "prompts": self.prompts,
            "references": self.references,
            "reference_masks": self.reference_masks,
            "image_masks": self.image_masks,
            "meta": self.meta,
            "image_instances": self.image_instances,
        }
        for name, values in per_sample.items():
            if values is not None and len(values) != len(self.images):
                raise ValueError(f"{len(values)} {name} for {len(self.images)} images")

    def __len__(self) -> int:
        return len(self.images)

    def select(self, rows: Sequence[int]) -> ScoringBatch:
        """Return the samples with these numbers, in this order."""
        rows = list(rows)
        masks = self.reference_masks
        return ScoringBatch(
            images=self.images[rows],
            prompts=[self.prompts[row] for row in rows],
            references=[self.references[row] for row in rows],
            reference_masks=None if masks is None else [masks[row] for row in rows],
            image_masks=None if self.image_masks is None else self.image_masks[rows],
            meta=[self.meta[row] for row in rows],
            image_instances=_chosen(self.image_instances, rows),
        )

    def map_images(self, function: Callable[[Tensor], Tensor]) -> ScoringBatch:
        """Return the batch with every image and mask replaced by what `function` makes of it.

        The samples of a group have one reference, which is mapped once.
        """
        mapped: dict[int, Tensor] = {}

        def map_once(image: Tensor) -> Tensor:
            # By identity, not by content: the samples of a group hold one and the same tensor.
            if id(image) not in mapped:
                mapped[id(image)] = function(image)
            return mapped[id(image)]

        def map_rows(rows: list[list[Tensor]]) -> list[list[Tensor]]:
            return [list(map(map_once, row)) for row in rows]

        return replace(
            self,
            images=function(self.images),
            references=map_rows(self.references),
            reference_masks=None if self.reference_masks is None else map_rows(self.reference_masks),
            image_masks=None if self.image_masks is None else function(self.image_masks),
        )

    @staticmethod
    def join(batches: Sequence[ScoringBatch]) -> ScoringBatch:
        """Return the samples of batches with images of one size, one batch after the other."""
        if len(batches) == 1:
            return batches[0]
        # what one of them lacks the whole lacks: some masks are as good as none
        masks = _of_all([batch.reference_masks for batch in batches])
        image_masks = _of_all([batch.image_masks for batch in batches])
        instances = _of_all([batch.image_instances for batch in batches])
        return ScoringBatch(
            images=torch.cat([batch.images for batch in batches]),
            prompts=_chained([batch.prompts for batch in batches]),
            references=_chained([batch.references for batch in batches]),
            reference_masks=_chained(masks) if masks else None,
            image_masks=torch.cat(image_masks) if image_masks else None,
            meta=_chained([batch.meta for batch in batches]),
            image_instances=_chained(instances) if instances else None,
        )

    def label(self, row: int) -> str:
        """Return the name of a sample in messages: its number and, if its row has one, the row's id."""
        return f"sample {row} (row {self.meta[row]['id']!r})" if "id" in self.meta[row] else f"sample {row}"


@runtime_checkable
class Reward(Protocol):
    """Anything that scores images."""

    @property
    def name(self) -> str:
        """Name in metrics and messages."""
        ...

    @property
    def kind(self) -> Kind:
        """What it measures: rules and schedules act on prompt and identity, quality is added to them."""
        ...

    def score(self, batch: ScoringBatch) -> Tensor:
        """Return fp32 [B], higher is better, NaN where a sample could not be scored.

        It must not change the batch's tensors: other rewards read them too.
        """
        ...

    def fingerprint(self) -> dict[str, Any]:
        """Return JSON that changes whenever the scores may: weights, preprocessing, options."""
        ...


def is_groupwise(reward: object) -> bool:
    """Return whether a reward compares the images of one prompt, and so needs its whole group at once.

    It says so by an attribute `groupwise` that is true; without it, a reward scores images one by one.
    """
    return bool(getattr(reward, "groupwise", False))


def needs_references(reward: object) -> bool:
    """Return whether nothing can stand for the references of a row, such as another photo of its subject.

    So it is for the judge of an edit, which asks what became of the reference, and for a reward that takes
    each reference for another subject. They say so by an attribute `needs_references` that is true.
    """
    return bool(getattr(reward, "needs_references", False))


@runtime_checkable
class CutsPrompts(Protocol):
    """A reward whose text encoder reads the beginning of a long prompt only."""

    def text_limit(self) -> TextLimit:
        """Return how much it reads."""
        ...


class HasKind(Protocol):
    """A reward's name and kind, wherever it runs."""

    @property
    def name(self) -> str:
        """Name in metrics and messages."""
        ...

    @property
    def kind(self) -> Kind:
        """What it measures."""
        ...


class RewardError(UserError):
    """A reward raised an error, or did not return scores [B]."""


@dataclass(frozen=True)
class FunctionReward:
    """A reward that is a plain function.

    Attributes:
        name: Name in metrics and messages.
        kind: prompt, identity or quality.
        function: Maps a ScoringBatch to fp32 [B].
        groupwise: Whether a batch must be the whole group of one prompt.
        version: Change it when the function's scores change: a run is resumed only with equal rewards.
    """

    name: str
    kind: Kind
    function: Callable[[ScoringBatch], Tensor]
    version: int = 1
    groupwise: bool = False

    def score(self, batch: ScoringBatch) -> Tensor:
        """Return the function's scores."""
        return self.function(batch)

    def fingerprint(self) -> dict[str, Any]:
        """Return the function's full name and version."""
        function = f"{self.function.__module__}:{self.function.__qualname__}"
        facts = {"name": self.name, "kind": self.kind, "function": function, "version": self.version}
        return facts | ({"groupwise": True} if self.groupwise else {})


def score_all(rewards: Sequence[Reward], batch: ScoringBatch) -> Tensor:
    """Score a batch with every reward.

    Returns:
        Scores [B, K], fp32, on the CPU. Infinite scores become NaN: they are no scores either.

    Raises:
        UserError: A reward refused the batch, for a reason the user can fix (such as a missing mask).
        RewardError: A reward raised anything else, or did not return floats [B]; names the reward.
    """
    if not rewards:
        raise ValueError("no rewards")
    return as_scores([checked_scores(reward, batch) for reward in rewards])


def is_asked(name: str, meta: Mapping[str, Any]) -> bool:
    """Return whether a row is to be scored by a reward: by all, or by those that its `meta.rewards` lists."""
    chosen = meta.get("rewards")
    return chosen is None or name in chosen


def is_asked_by_any(names: Iterable[str], meta: Mapping[str, Any]) -> bool:
    """Return whether a row is to be scored by one of some rewards."""
    return any(is_asked(name, meta) for name in names)


def as_scores(columns: Sequence[Tensor]) -> Tensor:
    """Put the scores [B] of K rewards side by side, [B, K]; infinite scores become NaN."""
    scores = torch.stack(list(columns), dim=1)
    return scores.masked_fill(scores.isinf(), float("nan"))


def checked_scores(reward: Reward, batch: ScoringBatch) -> Tensor:
    """Return the scores of one reward, fp32 [B] on the CPU; raises as `score_all` does."""
    before = _versions(batch)
    with naming(reward.name, batch):
        scores = reward.score(batch)
        if isinstance(scores, Tensor):
            # A graph would keep the activations of the reward in memory until the update. Inside the block,
            # because a device may report only now what failed while it scored.
            scores = scores.detach().cpu()
    if not isinstance(scores, Tensor) or scores.dtype != torch.float32 or scores.shape != (len(batch),):
        got = f"{scores.dtype} {list(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise RewardError(
            f"reward {reward.name!r} must return torch.float32 [{len(batch)}], got {got} on {_samples(batch)}"
        )
    if _versions(batch) != before:
        # No RewardError: dropping these scores would leave the changed images to the other rewards.
        raise UserError(
            f"images, references or masks were changed in place while reward {reward.name!r} scored "
            f"{_samples(batch)}",
            hint="Other rewards get the same tensors. Work on new ones: images - 0.5, or images.clone().",
        )
    return scores


def fingerprint_of(reward: Reward) -> dict[str, Any]:
    """Return a reward's fingerprint as a checkpoint gives it back: with lists for tuples, and text for keys.

    Raises:
        UserError: It fails, or is no dict of JSON, so that no checkpoint could hold it.
    """
    try:
        fingerprint = reward.fingerprint()
        plain = json.loads(json.dumps(fingerprint, allow_nan=False))
    except UserError:
        raise
    except Exception as error:  # a reward may be foreign code
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"the fingerprint of reward {reward.name!r} cannot be saved: {reason}") from error
    if not isinstance(plain, dict):
        raise UserError(
            f"the fingerprint of reward {reward.name!r} must be a dict, not {type(fingerprint).__name__}"
        )
    return plain


def _versions(batch: ScoringBatch) -> list[int]:
    """Return how often torch has changed each tensor of a batch in place."""
    tensors = [batch.images]
    for rows in (batch.references, batch.reference_masks or []):
        tensors += itertools.chain.from_iterable(rows)
    if batch.image_masks is not None:
        tensors.append(batch.image_masks)
    tensors += batch.image_instances or []
    return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


@contextmanager
def naming(name: str, batch: ScoringBatch) -> Iterator[None]:
    """Turn every error in the block but a UserError into a RewardError that names reward and samples.

    SystemExit too: a reward is code that may call `sys.exit`, and a training would end as if it were done.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise RewardError(
            f"reward {name!r} failed on {_samples(batch)}: {type(error).__name__}: {error}"
        ) from error


def _chosen(values: list[Item] | None, rows: Sequence[int]) -> list[Item] | None:
    return None if values is None else [values[row] for row in rows]


def _of_all(parts: Sequence[Item | None]) -> list[Item]:
    """Return the parts; none of them if one is missing."""
    present = [part for part in parts if part is not None]
    return present if len(present) == len(parts) else []


def _chained(rows: Sequence[list[Item]]) -> list[Item]:
    return list(itertools.chain.from_iterable(rows))


def _samples(batch: ScoringBatch) -> str:
    return f"samples {batch.label(0)} to {batch.label(len(batch) - 1)}"
