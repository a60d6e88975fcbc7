from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from customized_grpo.data.examples import ManifestSource
from customized_grpo.data.fitting import Fitting
from customized_grpo.data.manifest import load_manifest
from customized_grpo.errors import UserError
from customized_grpo.toybox.export import PROMPTS_PER_SUBJECT, export_manifest
from customized_grpo.toybox.source import ToyBoxSource


def eight_bit(image: torch.Tensor) -> torch.Tensor:
    return (image * 255).round() / 255


def test_an_exported_world_is_read_back_by_the_ordinary_loader(tmp_path: Path) -> None:
    manifest = export_manifest(tmp_path / "new" / "folder", 3, 5)
    loaded = ManifestSource(load_manifest(manifest, require_masks=True), Fitting(64, 64))
    source = ToyBoxSource(3, PROMPTS_PER_SUBJECT, 5, "train")
    assert len(loaded) == len(source) == 6
    for index in range(6):
        row, original = loaded[index], source[index]
        assert (row.id, row.prompt, row.subject) == (original.id, original.prompt, original.subject)
        assert row.masks is not None and original.masks is not None
        assert row.target is not None and original.target is not None
        assert torch.equal(row.references[0], eight_bit(original.references[0]))
        assert torch.equal(row.target, eight_bit(original.target))
        assert torch.equal(row.masks[0], eight_bit(original.masks[0]))
        scene = original.meta["scene"]
        assert row.meta["scene"] == dataclasses.asdict(scene)


def test_an_empty_folder_is_accepted(tmp_path: Path) -> None:
    assert export_manifest(tmp_path, 1, 0) == tmp_path / "manifest.jsonl"


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="not an empty folder"):
        export_manifest(tmp_path, 1, 0)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not an empty folder"):
        export_manifest(tmp_path / "file", 1, 0)
