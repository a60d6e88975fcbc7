"""Tiny checkpoints of every family, of the published classes, as folders in diffusers' layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tiny_flux2
import tiny_flux3
import tiny_qwen_edit
import tiny_qwen_image21
from customized_grpo.libraries import quiet


def _save_flux1(folder: Path) -> None:
    from customized_grpo.toybox.models import build_pipeline

    build_pipeline(0).save_pretrained(folder)


def _save_flux2(folder: Path) -> None:
    tiny_flux2.klein().save_pretrained(folder)


def _save_qwen_edit(folder: Path) -> None:
    tiny_qwen_edit.save_pipeline(tiny_qwen_edit.build_pipeline(), folder)


def _save_qwen_image21(folder: Path) -> None:
    tiny_qwen_image21.save_pipeline(tiny_qwen_image21.build_pipeline(), folder)


def _save_flux3(folder: Path) -> None:
    tiny_flux3.save_pipeline(tiny_flux3.build_pipeline(), folder)


SAVE: dict[str, Callable[[Path], None]] = {
    "flux1": _save_flux1,
    "flux2": _save_flux2,
    "qwen_edit": _save_qwen_edit,
    "qwen_image21": _save_qwen_image21,
    "flux3": _save_flux3,
}
"""How a family's checkpoint is written into a folder."""


def save(family: str, folder: Path) -> Path:
    """Write a family's tiny checkpoint and return its folder."""
    with quiet():
        SAVE[family](folder)
    return folder
