"""The check of a recipe's rows at its start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from customized_grpo.config import Config, load_config
from customized_grpo.config.data_sources import ManifestData
from customized_grpo.data import checked_manifest
from customized_grpo.errors import UserError
from customized_grpo.training.rows import ManifestRows, open_rows


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three photos, one of them 3:2 with its subject at the left edge."""
    for number, size in enumerate(((64, 64), (60, 64), (96, 64))):
        Image.new("RGB", size, (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
        mask = Image.new("L", size)
        mask.paste(255, (0, 8, 12, 40))
        mask.save(tmp_path / f"{number}.mask.png")
    return tmp_path


def recipe(folder: Path, *overrides: str, **row: Any) -> Config:
    for name, numbers in (("train", (0, 2)), ("held_out", (1,))):
        items = []
        for number in numbers:
            files = {"references": [f"{number}.png"], "masks": [f"{number}.mask.png"]}
            items.append({"id": f"{name}-{number}", "prompt": "p", **files, **row})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    data = f"data={{kind: manifest, train: {folder}/train.jsonl, held_out: {folder}/held_out.jsonl}}"
    whole = ["rewards.dino.segment=none"] if "masks" in row else []
    return load_config("toybox", [data, *whole, *overrides])


def opened(config: Config, *, show: bool = False) -> ManifestRows:
    assert isinstance(config.data, ManifestData)
    return open_rows(config, config.data, show=show)


def test_references_that_are_cut_are_noted(folder: Path) -> None:
    rows = opened(recipe(folder, "model.reference_fit=crop", masks=None))
    assert len(rows.train) == 2 and rows.held_out is not None and len(rows.held_out) == 1
    (note,) = rows.notes
    assert note.startswith("2 of 3 references lose more than 5%") and f"{folder}/2.png (64 x 96): 33%" in note
    assert opened(recipe(folder, "model.reference_fit=pad", masks=None)).notes == []
    crop = "model.reference_fit=crop"
    assert opened(recipe(folder, crop, "model.height=32", "model.width=48", masks=None)).notes


def test_a_mask_that_the_cut_empties_is_found_before_training(folder: Path) -> None:
    with pytest.raises(UserError, match="nothing is left of the subject of 1 references") as caught:
        opened(recipe(folder, "model.reference_fit=crop"))
    assert (
        "row 'train-2': " in caught.value.message and "2.mask.png marks only what is" in caught.value.message
    )
    assert caught.value.hint is not None and "model.reference_fit=whole" in caught.value.hint
    assert len(opened(recipe(folder, "model.reference_fit=pad")).train) == 2


def test_bad_rows_are_refused_and_many_files_show_progress(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checked_manifest, "MANY_FILES", 2)
    (folder / "0.png").write_bytes((folder / "0.png").read_bytes()[:50])
    config = recipe(folder, masks=None)
    with pytest.raises(UserError, match="1 bad row\n  line 1: .*0.png cannot be decoded"):
        opened(config, show=True)
    assert "checking images of train.jsonl 2/2" in capfd.readouterr().err
    with pytest.raises(UserError, match="1 bad row"):
        opened(config)
    assert capfd.readouterr().err == ""
