"""Where the rows of a run come from: an embedded world, or manifests."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from customized_grpo.fields import Count, FilePath, Pixels, Positive, Section, Seed, Text
from customized_grpo.reference_sizes import ReferenceRule

RewardNames = Annotated[tuple[Text, ...], Field(strict=False, min_length=1)]


class ToyboxData(Section):
    """The embedded world: subjects and prompts drawn from a seed, images rendered when needed."""

    kind: Literal["toybox"]
    """Source of the training rows: toybox or two-scale (embedded worlds), or manifest (your files)."""
    subjects: Count = 256
    """Number of subjects to train on."""
    seed: Seed = 0
    """Seed of the world: the same seed gives the same subjects and prompts for every run.seed."""
    held_out_subjects: Annotated[int, Field(ge=2)] = 24
    """Number of subjects used for evaluation only."""
    held_out_prompts_per_subject: Count = 2
    """Number of prompts each held-out subject is evaluated with."""


class TwoScaleData(Section):
    """The world of two scales: all of its toys in all of its scenes, a fixed quarter of them held out."""

    kind: Literal["two-scale"]
    """Source of the training rows: toybox or two-scale (embedded worlds), or manifest (your files)."""


class MixedRows(Section):
    """A further manifest that is trained on."""

    train: FilePath
    """JSONL file of its rows, relative to the working directory."""
    weight: Positive = 1.0
    """Its share of the prompts, relative to 1, the weight of data.train."""
    rewards: RewardNames | None = None
    """Names of the rewards that score its rows which name none in their meta; null means all."""


class ManifestData(Section):
    """Your own rows: a JSONL file with prompts and image paths relative to it."""

    kind: Literal["manifest"]
    """Source of the training rows: toybox or two-scale (embedded worlds), or manifest (your files)."""
    train: FilePath
    """JSONL file of the rows to train on, relative to the working directory."""
    held_out: FilePath | None = None
    """JSONL file of the rows used for evaluation only; null means no evaluation on rows of your own."""
    # not strict: YAML has lists
    mix: Annotated[tuple[MixedRows, ...], Field(strict=False)] = ()
    """Further manifests to train on, each with its share of the prompts."""
    rewards: RewardNames | None = None
    """Names of the rewards that score rows of data.train which name none in their meta; null means all."""
    reference_size: ReferenceRule | Pixels | None = None
    """Size of references for the model: a rule of docs/data.md, or N for N x N pixels; null: its own rule."""


DataConfig = Annotated[ToyboxData | TwoScaleData | ManifestData, Field(discriminator="kind")]
