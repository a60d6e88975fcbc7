"""Photos with captions beside them: every photo is a target of its own caption and a reference of others."""

from __future__ import annotations

from pathlib import Path

import pytest

import sources
from customized_grpo.data.adapters import captions
from customized_grpo.data.adapters.base import Bad, Draft, Ignored, Options
from customized_grpo.errors import UserError


def read(folder: Path, reference: str | None = None) -> tuple[list[Draft], list[str], list[str]]:
    items = list(captions.read(folder, Options(reference=reference)))
    drafts = [item for item in items if isinstance(item, Draft)]
    bad = [item.reason for item in items if isinstance(item, Bad)]
    return drafts, bad, [item.kind for item in items if isinstance(item, Ignored)]


def names(draft: Draft) -> tuple[str, list[str]]:
    assert draft.target is not None
    return Path(draft.target.name).name, [Path(image.name).name for image in draft.references]


def test_each_photo_is_a_target_once_and_never_its_own_reference(tmp_path: Path) -> None:
    folder = sources.captions(tmp_path / "dog")
    drafts, bad, ignored = read(folder)
    assert [(draft.id, draft.prompt, draft.subject) for draft in drafts] == [
        (f"dog-0{n}", f"my dog in scene {n}", "dog") for n in range(3)
    ]
    assert [names(draft) for draft in drafts] == [
        ("00.png", ["01.png"]),
        ("01.png", ["02.png"]),
        ("02.png", ["00.png"]),
    ]
    assert not bad and not ignored
    drafts, _, _ = read(folder, "all")
    assert [names(draft) for draft in drafts] == [
        ("00.png", ["01.png", "02.png"]),
        ("01.png", ["00.png", "02.png"]),
        ("02.png", ["00.png", "01.png"]),
    ]


def test_photos_with_masks_are_the_references_and_one_without_a_caption_is_one_alone(tmp_path: Path) -> None:
    for subject in ("cat", "dog"):
        sources.captions(tmp_path / subject)
    sources.save(tmp_path / "dog/01.mask.png", 255, mode="L")
    (tmp_path / "dog/01.txt").unlink()
    drafts, bad, ignored = read(tmp_path)
    of_dog = [names(draft) for draft in drafts if draft.subject == "dog"]
    assert of_dog == [("00.png", ["01.png"]), ("02.png", ["01.png"])]
    assert all(len(draft.masks) == 1 for draft in drafts if draft.subject == "dog")
    assert len(drafts) == 5 and not bad
    assert ignored == ["photos without a caption, which are references alone"]


def test_a_caption_is_found_by_its_name_in_any_case_and_one_of_no_photo_is_counted(tmp_path: Path) -> None:
    folder = sources.captions(tmp_path / "dog")
    (folder / "01.txt").rename(folder / "01.TXT")
    (folder / "02.txt").rename(folder / "02.png.txt")
    (folder / "class.txt").write_text("dog")
    drafts, bad, ignored = read(folder)
    assert [draft.prompt for draft in drafts] == ["my dog in scene 0", "my dog in scene 1"] and not bad
    assert ignored == [
        "captions without a photo of their name",
        "photos without a caption, which are references alone",
    ]


def test_what_cannot_be_used_is_said(tmp_path: Path) -> None:
    folder = sources.captions(tmp_path / "dog")
    (folder / "01.txt").write_text("\n")
    drafts, bad, _ = read(folder)
    assert len(drafts) == 2 and len(bad) == 1 and "01.txt" in bad[0]
    alone = sources.captions(tmp_path / "cat", count=1)
    assert read(alone)[1] == ["subject 'cat' has no photo besides '00.png' to be the reference"]
    (alone / "00.txt").unlink()
    with pytest.raises(UserError, match="no photo of .*cat has a caption"):
        read(alone)
    with pytest.raises(UserError, match="captions takes turns or all"):
        read(folder, "first")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no photos"):
        read(tmp_path / "empty")
