"""What the published checkpoints are sampled with, by their class: the defaults of a generator.

Guidance and steps are those of the model cards' own examples (FLUX.1-Kontext-dev, FLUX.2-klein-4B and -base,
FLUX.2-dev, Qwen-Image-Edit-2509; for FLUX.1-dev those of UNO, arXiv 2504.02160, which makes it see
references). The size is one megapixel, which all of them were trained at.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PUBLISHED_SIZE = 1024

_SAMPLING: dict[str, dict[str, Any]] = {
    "FluxKontextPipeline": {"family": "flux1", "guidance": 2.5, "steps": 28},
    "FluxPipeline": {"family": "flux1", "guidance": 4.0, "steps": 25, "reference_ids": "uno"},
    "Flux2KleinPipeline": {"family": "flux2", "guidance": 4.0, "steps": 50},
    "Flux2Pipeline": {"family": "flux2", "guidance": 4.0, "steps": 28},
    # the prompt shares its tokens with about 200 of each reference; padding changes no result
    "QwenImageEditPlusPipeline": {
        "family": "qwen_edit",
        "guidance": 4.0,
        "steps": 40,
        "max_text_tokens": 1024,
    },
}
_DISTILLED_KLEIN = {"guidance": 1.0, "steps": 4}


def published_settings(path: str, index: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the settings of a checkpoint as `generator_settings` takes them; None for an unknown class.

    Args:
        path: Folder or hub id.
        index: Its model_index.json.
    """
    sampling = _SAMPLING.get(str(index.get("_class_name")))
    if sampling is None:
        return None
    if index.get("is_distilled"):
        sampling = {**sampling, **_DISTILLED_KLEIN}
    size = {"height": PUBLISHED_SIZE, "width": PUBLISHED_SIZE}
    model = {"path": path, **size, **{key: value for key, value in sampling.items() if key != "steps"}}
    return {"model": model, "steps": sampling["steps"], "batch_size": 1}


def known_classes() -> list[str]:
    """Return the values of `_class_name` that `published_settings` knows."""
    return list(_SAMPLING)
