"""The bases that come with the package, by what recipes call them in the place of a folder or hub id."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EMBEDDED: Mapping[str, str] = {
    "toybox": "customized_grpo.toybox.assets",
    "two-scale": "customized_grpo.two_scale.assets",
}
"""Modules of their weights, each with `base_folder` and `load_base_pipeline`; a preset has the same name."""


def embedded_folder(path: str) -> Path:
    """Return the folder of an embedded base."""
    folder: Path = importlib.import_module(EMBEDDED[path]).base_folder()
    return folder


def load_embedded(path: str) -> Any:
    """Return the pipeline of an embedded base, in fp32."""
    return importlib.import_module(EMBEDDED[path]).load_base_pipeline()
