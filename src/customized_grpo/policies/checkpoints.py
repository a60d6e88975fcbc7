"""Published checkpoints, one record each: sizes, how images are drawn, licence, names.

Guidance and steps are those of the model cards' own examples. FLUX.1-dev is the exception: it sees references
with UNO only, and is drawn here as in the paper (arXiv 2510.18263: guidance 3.5, 25 steps, the shift of SD3,
3), so that a run of the preset flux1-uno, its base and its exported adapter draw in one way. UNO's own code
has a guidance of 4 and shifts by the number of image tokens (arXiv 2504.02160).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from customized_grpo.embedded import EMBEDDED
from customized_grpo.errors import UserError
from customized_grpo.policies.architecture import Architecture
from customized_grpo.policies.published_sizes import (
    FLUX1,
    FLUX2_DEV,
    FLUX3_KLEIN,
    KLEIN_BASE_4B,
    KLEIN_BASE_9B,
    QWEN_EDIT_2509,
    QWEN_EDIT_2511,
    QWEN_IMAGE21,
)
from customized_grpo.policies.sampling import Sampling

HUB = "https://huggingface.co"


@dataclass(frozen=True)
class Licence:
    """A licence as the hub's front matter writes it.

    Attributes:
        identifier: Of the hub's list; "other" for one that is not in it.
        name: Its own name then.
        link: Where its text is then.
    """

    identifier: str
    name: str | None = None
    link: str | None = None

    @property
    def title(self) -> str:
        """The name by which it is looked up."""
        return self.name or self.identifier


APACHE = Licence("apache-2.0")


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint.

    Attributes:
        family: Name in `FAMILIES`.
        pipeline: `_class_name` of its model_index.json.
        architecture: What it consists of.
        sampling: How images are drawn with it.
        licence: As its model card says.
        modelspec: Architecture as `modelspec.architecture` has it; None: as all of the family.
        base_version: kohya's `ss_base_model_version`; None: as all of the family.
    """

    family: str
    pipeline: str
    architecture: Architecture
    sampling: Sampling
    licence: Licence
    modelspec: str | None = None
    base_version: str | None = None


def _non_commercial(name: str, repository: str, file: str = "LICENSE.md") -> Licence:
    return Licence("other", name, f"{HUB}/{repository}/blob/main/{file}")


def _flux1(hub_id: str, pipeline: str, sampling: Sampling) -> Checkpoint:
    licence = _non_commercial("flux-1-dev-non-commercial-license", hub_id)
    return Checkpoint("flux1", pipeline, FLUX1, sampling, licence)


_STEPS_OF_KLEIN = Sampling(guidance=4.0, steps=50, reference_size="flux2")
_STEPS_OF_DISTILLED_KLEIN = Sampling(guidance=1.0, steps=4, reference_size="flux2")


def _klein(architecture: Architecture, licence: Licence, size: str) -> Checkpoint:
    sampling = _STEPS_OF_DISTILLED_KLEIN if architecture.distilled else _STEPS_OF_KLEIN
    # the names of musubi-tuner's sai_model_spec.py and dataset/architectures.py
    modelspec, version = f"Flux.2-klein-{size}", f"flux_2_klein_{size}"
    return Checkpoint("flux2", "Flux2KleinPipeline", architecture, sampling, licence, modelspec, version)


def _klein_9b(architecture: Architecture, hub_id: str) -> Checkpoint:
    return _klein(architecture, _non_commercial("flux-non-commercial-license", hub_id), "9b")


def _qwen_edit(architecture: Architecture, modelspec: str | None = None) -> Checkpoint:
    # a prompt shares its tokens with about 200 of each reference; padding changes no result
    sampling = Sampling(guidance=4.0, steps=40, max_text_tokens=1024, reference_size="qwen_edit")
    return Checkpoint("qwen_edit", "QwenImageEditPlusPipeline", architecture, sampling, APACHE, modelspec)


_AS_IN_THE_PAPER = Sampling(
    guidance=3.5, steps=25, mu=math.log(3), reference_size="uno", options={"reference_ids": "uno"}
)

CHECKPOINTS: dict[str, Checkpoint] = {
    # As the base of UNO, which alone makes it take references.
    "black-forest-labs/FLUX.1-dev": _flux1("black-forest-labs/FLUX.1-dev", "FluxPipeline", _AS_IN_THE_PAPER),
    "black-forest-labs/FLUX.1-Kontext-dev": _flux1(
        "black-forest-labs/FLUX.1-Kontext-dev",
        "FluxKontextPipeline",
        Sampling(guidance=2.5, steps=28, reference_size="kontext"),
    ),
    "black-forest-labs/FLUX.2-dev": Checkpoint(
        family="flux2",
        pipeline="Flux2Pipeline",
        architecture=FLUX2_DEV,
        sampling=Sampling(guidance=4.0, steps=28, reference_size="flux2"),
        licence=_non_commercial(
            "flux-dev-non-commercial-license", "black-forest-labs/FLUX.2-dev", "LICENSE.txt"
        ),
        modelspec="Flux.2-dev",
        base_version="flux_2_dev",
    ),
    "black-forest-labs/FLUX.2-klein-4B": _klein(replace(KLEIN_BASE_4B, distilled=True), APACHE, "4b"),
    "black-forest-labs/FLUX.2-klein-base-4B": _klein(KLEIN_BASE_4B, APACHE, "4b"),
    "black-forest-labs/FLUX.2-klein-9B": _klein_9b(
        replace(KLEIN_BASE_9B, distilled=True), "black-forest-labs/FLUX.2-klein-9B"
    ),
    "black-forest-labs/FLUX.2-klein-base-9B": _klein_9b(
        KLEIN_BASE_9B, "black-forest-labs/FLUX.2-klein-base-9B"
    ),
    "Qwen/Qwen-Image-Edit-2509": _qwen_edit(QWEN_EDIT_2509),
    "Qwen/Qwen-Image-Edit-2511": _qwen_edit(QWEN_EDIT_2511, "Qwen-Image-Edit-2511"),
    "black-forest-labs/flux-3-image-klein-base": Checkpoint(
        family="flux3",
        pipeline="Flux3ModularPipeline",
        architecture=FLUX3_KLEIN,
        sampling=Sampling(guidance=4.0, steps=50, reference_size="flux2"),
        licence=_non_commercial("flux-kommunity", "black-forest-labs/flux-3-image-klein-base"),
    ),
    "Qwen/Qwen-Image-2.1": Checkpoint(
        family="qwen_image21",
        pipeline="QwenImage21Pipeline",
        architecture=QWEN_IMAGE21,
        sampling=Sampling(guidance=1.0, steps=40, reference_size="qwen_edit"),
        licence=_non_commercial("qwen-research", "Qwen/Qwen-Image-2.1", "LICENSE"),
    ),
}
"""Published checkpoints by hub id."""


def find_similar(pipeline: str, *, distilled: bool) -> Checkpoint | None:
    """Return the published checkpoint that a folder or a copy on the hub is most likely derived from.

    Args:
        pipeline: `_class_name` of its model_index.json.
        distilled: `is_distilled` of it.
    """
    # FLUX.2-klein and its distilled form have one class; the index says which it is
    of_class = [checkpoint for checkpoint in CHECKPOINTS.values() if checkpoint.pipeline == pipeline]
    for checkpoint in of_class:
        if checkpoint.architecture.distilled == distilled:
            return checkpoint
    return None


def licence_of(path: str) -> Licence | None:
    """Return the licence of a hub id or of an embedded base; None if it is not known."""
    if path in EMBEDDED:
        return APACHE
    checkpoint = CHECKPOINTS.get(path)
    return None if checkpoint is None else checkpoint.licence


def build_transformer(name: str, device: torch.device | str, dtype: torch.dtype) -> Any:
    """Return the transformer of a published checkpoint at full size, with random weights.

    For measuring speed and memory: nothing is downloaded, and the weights are made on the device.

    Args:
        name: Hub id, one of `CHECKPOINTS`.
        device: Where the weights are made; "meta" for none.
        dtype: Type of the weights.

    Raises:
        UserError: No such checkpoint is known.
    """
    if name not in CHECKPOINTS:
        raise UserError(f"{name!r} is not a known checkpoint", hint=f"Known: {', '.join(CHECKPOINTS)}.")
    return (
        CHECKPOINTS[name]
        .architecture.transformer.build(device=device, dtype=dtype)
        .requires_grad_(False)
        .eval()
    )
