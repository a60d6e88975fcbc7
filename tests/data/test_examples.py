"""Examples of files, opened one by one or when they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from customized_grpo.data import examples as examples_module
from customized_grpo.data.examples import ManifestSource
from customized_grpo.data.fitting import Fitting
from customized_grpo.data.manifest import Row


@pytest.fixture
def source(tmp_path: Path) -> ManifestSource:
    rows = []
    for number in range(6):
        files = [tmp_path / f"{number}-{name}.png" for name in "abmt"]
        for place, file in enumerate(files):
            colour: Any = 255 if place == 2 else (40 * number, 60 * place, 9)
            Image.new("L" if place == 2 else "RGB", (12, 8), colour).save(file)
        references = (files[0],) if number % 2 else (files[0], files[1])
        masks = (files[2],) * len(references)
        rows.append(Row(f"r{number}", f"prompt {number}", references, masks, files[3], None, {"n": number}))
    return ManifestSource(rows, Fitting(16, 16, "crop"))


def test_examples_on_demand_are_those_of_the_source(source: ManifestSource) -> None:
    for index, stored in enumerate(source.on_demand(keep=2)):
        eager = source[index]
        assert (stored.id, stored.prompt, stored.subject, stored.meta) == (
            eager.id,
            eager.prompt,
            eager.subject,
            eager.meta,
        )
        assert stored.bucket == eager.bucket and stored.has_target
        for one, other in zip(stored.references, eager.references, strict=True):
            assert one.equal(other)
        assert stored.masks is not None and eager.masks is not None and stored.masks[0].equal(eager.masks[0])
        assert stored.target is not None and eager.target is not None and stored.target.equal(eager.target)


def test_nothing_is_opened_before_it_is_asked_for_and_few_rows_are_kept(
    source: ManifestSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real: Callable[[Path], Image.Image] = examples_module.open_image
    monkeypatch.setattr(examples_module, "open_image", lambda file: opened.append(file.name) or real(file))
    stored = source.on_demand(keep=2)
    assert [example.bucket for example in stored][1] == ((3, 16, 16),) and stored[0].has_target and not opened
    for _ in range(3):  # encoder, rewards and judges ask for a batch of two
        for example in stored[:2]:
            assert example.references and example.target is not None
    assert opened == ["0-a.png", "0-b.png", "0-t.png", "1-a.png", "1-t.png"]
    assert stored[2].references and stored[0].references  # row 0 was used least recently, and is opened again
    assert opened[5:] == ["2-a.png", "2-b.png", "2-t.png", "0-a.png", "0-b.png", "0-t.png"]
