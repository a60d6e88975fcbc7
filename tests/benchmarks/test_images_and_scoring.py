"""Images are drawn once and never mixed; each is scored against what the protocol says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from customized_grpo.benchmarks import run
from customized_grpo.benchmarks.encoders import MetricReward
from customized_grpo.benchmarks.images import ImageFolder, generate
from customized_grpo.benchmarks.protocol import GeneratorStamp, ImageProtocol
from customized_grpo.benchmarks.rows import BenchmarkRow
from customized_grpo.benchmarks.scoring import check_scorable, score_images
from customized_grpo.config import load_config
from customized_grpo.config.schema import ModelConfig
from customized_grpo.errors import UserError
from customized_grpo.rewards import FunctionReward
from customized_grpo.rewards.base import ScoringBatch

PROTOCOL = ImageProtocol("dreambench", "d", steps=4, guidance=2.5, height=8, width=8, seed=0)


class Artist:
    """Paints each image in a grey of its own, and remembers which rows it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, rows: Sequence[BenchmarkRow]) -> Iterator[Tensor]:
        for row in rows:
            self.asked.append(row.id)
            for number in range(2):
                yield torch.full((3, 8, 8), (10 * len(row.prompt) + 50 * number) / 255)


def folder(path: Path, **changes: object) -> ImageFolder:
    return ImageFolder(path, replace(PROTOCOL, **changes), GeneratorStamp("tiny", "w"))  # type: ignore[arg-type]


def test_a_second_call_draws_only_what_is_missing_or_broken(tmp_path: Path, rows: list[BenchmarkRow]) -> None:
    artist, images = Artist(), folder(tmp_path / "out")
    assert generate(images, rows, artist, samples=2, rows_together=2) == 6
    files = {(row.id, n): images.file((row, n)) for row in rows for n in range(2)}
    assert len(set(files.values())) == 6
    assert all(file.parent == tmp_path / "out" / "images" for file in files.values())
    assert sorted(tmp_path.rglob("images/*")) == sorted(files.values()), "nothing else is left there"

    artist.asked.clear()
    assert generate(images, rows, artist, samples=2, rows_together=2) == 0 and not artist.asked
    files["..", 1].write_bytes(files["..", 1].read_bytes()[:45])  # cut off, as by a full disk
    files["a/b", 0].unlink()
    Image.new("RGB", (4, 4)).save(files["a/b", 1])
    kept = files["..", 0].stat().st_mtime_ns
    assert generate(images, rows, artist, samples=2, rows_together=2) == 3
    assert artist.asked == ["a/b", ".."]
    assert files["..", 0].stat().st_mtime_ns == kept


@pytest.mark.parametrize("change", ["replaced", "swapped", "without a hash", "with a damaged hash"])
def test_an_image_that_was_not_drawn_here_is_drawn_again_and_named(
    tmp_path: Path, rows: list[BenchmarkRow], change: str
) -> None:
    artist, images = Artist(), folder(tmp_path / "out")
    generate(images, rows, artist, samples=2, rows_together=2)
    first, second = (images.file((rows[0], number)) for number in range(2))
    drawn = first.read_bytes()
    hash_file = tmp_path / "out/hashes" / f"{first.stem}.txt"
    if change == "replaced":
        Image.new("RGB", (8, 8), "white").save(first)  # whole, and of the right size
    elif change == "swapped":
        first.write_bytes(second.read_bytes())
    elif change == "without a hash":
        hash_file.unlink()
    else:
        hash_file.write_bytes(b"\xff\xfe")
    foreign: list[Path] = []
    count = generate(images, rows, artist, samples=2, rows_together=2, on_foreign=foreign.extend)
    assert (count, foreign) == (1, [first]) and first.read_bytes() == drawn


def test_an_interrupted_call_keeps_what_it_drew(tmp_path: Path, rows: list[BenchmarkRow]) -> None:
    def stop(count: int) -> None:
        raise KeyboardInterrupt

    artist, images = Artist(), folder(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        generate(images, rows, artist, samples=2, rows_together=1, on_batch=stop)
    assert generate(images, rows, artist, samples=2, rows_together=1) == 4


@pytest.mark.parametrize("changes", [{"steps": 5}, {"seed": 1}, {"data": "e"}, {"guidance": 3.0}])
def test_images_of_another_protocol_are_refused(
    tmp_path: Path, rows: list[BenchmarkRow], changes: dict[str, object]
) -> None:
    generate(folder(tmp_path), rows, Artist(), samples=2, rows_together=3)
    with pytest.raises(UserError, match=f"{next(iter(changes))}: "):
        generate(folder(tmp_path, **changes), rows, Artist(), samples=2, rows_together=3)


def test_images_of_another_model_are_refused_whatever_its_name(
    tmp_path: Path, rows: list[BenchmarkRow]
) -> None:
    generate(folder(tmp_path), rows, Artist(), samples=2, rows_together=3)
    ImageFolder(tmp_path, PROTOCOL, GeneratorStamp("same, moved", "w")).claim()
    with pytest.raises(UserError, match="weights: w, v"):
        ImageFolder(tmp_path, PROTOCOL, GeneratorStamp("tiny", "v")).claim()


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff"])
def test_a_damaged_stamp_is_one_message_that_names_it(
    tmp_path: Path, rows: list[BenchmarkRow], content: bytes
) -> None:
    generate(folder(tmp_path), rows, Artist(), samples=2, rows_together=3)
    (tmp_path / "images.json").write_bytes(content)
    with pytest.raises(UserError, match=r"images\.json: "):
        folder(tmp_path).claim()


def brightness_of_references(batch: ScoringBatch) -> Tensor:
    """Mean over the references of each image; NaN for the row called '..'."""
    means = [torch.stack([r.mean() for r in refs]).mean() for refs in batch.references]
    scores = torch.stack(means)
    return torch.where(torch.tensor([m["id"] == ".." for m in batch.meta]), torch.nan, scores)


def brightness(batch: ScoringBatch) -> Tensor:
    return batch.images.mean((1, 2, 3))


def test_scores_are_of_the_kept_pngs_and_of_the_photos_of_the_mode(
    tmp_path: Path, rows: list[BenchmarkRow]
) -> None:
    images = folder(tmp_path / "out")
    generate(images, rows, Artist(), samples=2, rows_together=3)
    drawings = [(row, n) for row in rows for n in range(2)]
    encoders = [
        MetricReward("photos", FunctionReward("photos", "identity", brightness_of_references)),
        MetricReward("image", FunctionReward("image", "prompt", brightness), scale=255.0),
    ]

    def score(mode: str, batch_size: int) -> dict[str, np.ndarray]:
        return score_images(
            images,
            drawings,
            encoders,
            mode=mode,
            segment="none",
            batch_size=batch_size,  # type: ignore[arg-type]
        )

    def grey(file: Path) -> float:
        return float(np.asarray(Image.open(file).convert("RGB")).mean()) / 255

    single, everything = score("single", 4), score("all", 1)
    assert single["image"] == pytest.approx([70, 120, 70, 120, 70, 120], abs=1e-3)
    for n, (row, _) in enumerate(drawings):
        if row.id == "..":
            assert np.isnan(single["photos"][n]) and np.isnan(everything["photos"][n])
        else:
            assert single["photos"][n] == pytest.approx(grey(row.references[0]), abs=1e-4)
            assert everything["photos"][n] == pytest.approx(np.mean([grey(p) for p in row.photos]), abs=1e-4)


def test_cutting_out_needs_masks_and_only_the_given_references_have_them(rows: list[BenchmarkRow]) -> None:
    check_scorable(rows, "all", "none")
    with pytest.raises(UserError, match="3 rows have no masks"):
        check_scorable(rows, "single", "reference")
    masked = [replace(row, masks=row.references) for row in rows]
    check_scorable(masked, "single", "reference")
    with pytest.raises(UserError, match="only the given references have masks"):
        check_scorable(masked, "all", "reference")


def test_an_encoder_that_compares_the_images_of_a_group_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ranking = FunctionReward("ranking", "quality", brightness, groupwise=True)
    monkeypatch.setattr(run, "build_reward", lambda config, device: ranking)
    request = run.BenchmarkRequest("toybox", "dreambench", Path("data"), encoders=["clip_t=toybox"])
    with pytest.raises(UserError, match="--encoder ranking compares the images of a group"):
        run.build_metric_rewards(request)


def test_images_of_another_setting_of_the_model_do_not_mix(tmp_path: Path) -> None:
    def claim(**settings: object) -> None:
        ImageFolder(tmp_path, PROTOCOL, GeneratorStamp("tiny", "w"), settings).claim()

    claim(max_text_tokens=8, options={"a": (1, 2)})
    claim(max_text_tokens=8, options={"a": (1, 2)})
    with pytest.raises(UserError, match="model.max_text_tokens: 8, 64"):
        claim(max_text_tokens=64, options={"a": (1, 2)})
    # a folder of an older version does not say
    stamp = json.loads((tmp_path / "images.json").read_text())
    del stamp["model"]
    (tmp_path / "images.json").write_text(json.dumps(stamp))
    claim(max_text_tokens=64)


def test_every_setting_of_a_model_counts_unless_it_changes_no_image() -> None:
    settings = load_config("toybox-smoke", []).model.model_dump(mode="json", exclude=run.SAME_IMAGES)
    assert set(ModelConfig.model_fields) >= run.SAME_IMAGES
    assert set(settings) == {"family", "options", "mu", "max_text_tokens", "precision", "quantisation"}
