"""What held-out rows share with training rows is found by name and by content."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from customized_grpo.data.checked_manifest import CheckedManifest, open_manifest
from customized_grpo.data.manifest import Row, write_manifest
from customized_grpo.data.overlap import Overlap, find_overlap
from customized_grpo.errors import UserError
from sources import save


def row(name: str, image: Path, subject: str | None = None, target: Path | None = None) -> Row:
    return Row(name, "a prompt", (image,), subject=subject, target=target)


def of(*rows: Row) -> CheckedManifest:
    """Return rows as a manifest beside their images."""
    path = rows[0].references[0].with_name(f"{rows[0].id}.jsonl")
    write_manifest(path, rows)
    return open_manifest(path, require_masks=False)


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Three images of one size in bytes or another; the last is a copy of the first."""
    files = [save(tmp_path / f"{colour}.png", colour) for colour in ("red", "blue")]
    return [*files, Path(shutil.copy(files[0], tmp_path / "copy.png"))]


def test_rows_about_other_things_share_nothing(images: list[Path]) -> None:
    overlap = find_overlap(of(row("a", images[0], "dog")), of(row("b", images[1], "cat")))
    assert overlap == Overlap() and not overlap
    assert overlap.to_json() == {"shared_subjects": [], "shared_images": 0}


def test_a_subject_of_both_is_named_and_a_row_without_one_is_its_own(images: list[Path]) -> None:
    train = of(row("a", images[0], "dog"), row("b", images[0]))
    overlap = find_overlap(train, of(row("c", images[1], "dog"), row("b", images[1])))
    assert overlap.subjects == ("b", "dog")
    assert "2 subjects (b, dog)" in overlap.sentence()


@pytest.mark.parametrize("as_target", [False, True])
def test_an_image_is_found_under_another_name_and_another_subject(
    images: list[Path], as_target: bool
) -> None:
    held_out = row("b", images[1], "cat", images[2]) if as_target else row("b", images[2], "cat")
    overlap = find_overlap(of(row("a", images[0], "dog")), of(held_out))
    assert (overlap.subjects, overlap.images) == ((), ("copy.png",))
    assert "1 image (copy.png)" in overlap.sentence()
    assert overlap.to_json()["shared_images"] == 1


def test_a_file_that_cannot_be_read_is_a_message(images: list[Path]) -> None:
    train = of(row("a", images[0]))
    held_out = of(row("b", images[2]))
    images[2].unlink()
    with pytest.raises(UserError, match="copy.png"):
        find_overlap(train, held_out)


def test_files_of_one_sampled_digest_are_compared_by_all_their_bytes(images: list[Path]) -> None:
    filler = bytes(40_000)
    images[0].write_bytes(images[0].read_bytes() + filler)
    content = bytearray(images[0].read_bytes())
    content[10_000] = 1  # behind the end mark of the image, and between the blocks of the digest
    images[1].write_bytes(content)
    train = of(row("a", images[0], "dog"))
    held_out = of(row("b", images[1], "cat"))
    assert (train.files.digests == held_out.files.digests).all()
    assert not find_overlap(train, held_out)
