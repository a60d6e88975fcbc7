"""The weights of the base that ship with the package."""

from __future__ import annotations

from pathlib import Path

from customized_grpo.two_scale.model import TwoScaleModel, TwoScalePipeline
from customized_grpo.weights.models import explained

ASSETS = Path(__file__).parent / "assets"


def base_folder() -> Path:
    """Return the folder of the base generator."""
    return ASSETS


def load_base_pipeline() -> TwoScalePipeline:
    """Return the base generator in fp32."""
    folder = base_folder()
    with explained(f"{folder}: the embedded weights of two-scale could not be loaded"):
        # local files only: what is in the package must not be asked of the hub
        return TwoScalePipeline(TwoScaleModel.from_pretrained(folder / "transformer", local_files_only=True))
