"""Rows of several manifests: their shares, their order, and the rewards that they are given."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from customized_grpo.data.examples import ManifestSource
from customized_grpo.data.fitting import Fitting
from customized_grpo.data.manifest import Row
from customized_grpo.data.mixture import MixedPart, Mixture, draw_rows
from customized_grpo.data.sampler import prompt_indices


@pytest.fixture
def sources(tmp_path: Path) -> list[ManifestSource]:
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    made = []
    for name, count in (("a", 5), ("b", 3), ("c", 40)):
        rows = []
        for number in range(count):
            meta = {"rewards": ["own"]} if number == 1 else {}
            rows.append(Row(f"{name}{number}", "p", (tmp_path / "a.png",), (), None, None, meta))
        made.append(ManifestSource(rows, Fitting(16, 16)))
    return made


def drawn(mixture: Mixture, iterations: int, per_iteration: int, seed: int = 0) -> list[str]:
    rows: list[int] = []
    for iteration in range(iterations):
        rows += mixture.draw(iteration * per_iteration, per_iteration, seed)
    texts = mixture.texts()
    return [texts[row][0] for row in rows]


def test_every_manifest_has_its_share_at_any_time(sources: list[ManifestSource]) -> None:
    mixture = Mixture(
        [MixedPart(source, weight) for source, weight in zip(sources, (5.0, 2.0, 1.0), strict=True)]
    )
    ids = drawn(mixture, 60, 4)
    for count in (16, 40, 240):
        shares = Counter(name[0] for name in ids[:count])
        for name, weight in (("a", 5), ("b", 2), ("c", 1)):
            assert abs(shares[name] - count * weight / 8) < 3, (count, name, shares)
    assert drawn(mixture, 60, 4) == ids != drawn(mixture, 60, 4, seed=1)


def test_the_rows_of_a_manifest_are_visited_in_passes(sources: list[ManifestSource]) -> None:
    mixture = Mixture([MixedPart(source, 1.0) for source in sources])
    ids = drawn(mixture, 40, 5)
    of_a = [name for name in ids if name.startswith("a")]
    passes = [of_a[start : start + 5] for start in range(0, len(of_a) - 4, 5)]
    assert len(passes) > 8 and all(len(set(one)) == 5 for one in passes)
    assert len({tuple(one) for one in passes}) > 3, "each pass has an order of its own"


def test_one_manifest_is_drawn_as_ever(sources: list[ManifestSource]) -> None:
    assert draw_rows(sources[0], 21, 3, 1) == prompt_indices(5, 21, 3, 1)


def test_rows_that_name_no_reward_get_those_of_their_manifest(sources: list[ManifestSource]) -> None:
    mixture = Mixture([MixedPart(sources[0], 1.0), MixedPart(sources[1], 1.0, ("dino", "clip_t"))])
    assert len(mixture) == 8
    assert "rewards" not in mixture[4].meta
    assert mixture[5].id == "b0" and mixture[5].meta == {"rewards": ["dino", "clip_t"]}
    assert mixture[6].id == "b1" and mixture[6].meta == {"rewards": ["own"]}
