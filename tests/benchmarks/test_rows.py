"""Every benchmark's files become the rows that it is defined by, and broken files are named."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from customized_grpo.benchmarks.protocol import data_hash
from customized_grpo.benchmarks.rows import OMNICONTEXT_TASKS, choose_rows, list_rows, shard
from customized_grpo.errors import UserError
from dreambooth import save_photo


def test_dreambench_drops_the_token_and_tells_prompt_types_and_animals_apart(dreambench: Path) -> None:
    found = list_rows("dreambench", dreambench)
    assert [(row.id, row.prompt, row.prompt_type, row.category) for row in found] == [
        ("dog6-00", "a dog in the jungle", "recontext", "live"),
        ("dog6-01", "a dog wearing a red hat", "accessory", "live"),
        ("dog6-02", "a dog in a chef outfit", "accessory", "live"),
        ("dog6-03", "a wet dog", "property", "live"),
        ("teapot-00", "a teapot in the jungle", "recontext", "object"),
        ("teapot-01", "a red teapot", "property", "object"),
        ("fancy_boot-00", "a boot in the jungle", "recontext", "object"),
        ("fancy_boot-01", "a red boot", "property", "object"),
    ]
    boot = found[-1]
    assert [file.name for file in boot.references] == ["00.jpg"]
    assert [file.name for file in boot.photos] == ["00.jpg", "01.jpg", "02.jpg", "03.jpg"]
    assert list_rows("dreambench", dreambench / "dataset") == found


def test_the_real_dreambench_has_750_rows_and_158_photos(dreambooth_photos: Path) -> None:
    found = list_rows("dreambench", dreambooth_photos)
    assert len(found) == 750 and len({row.id for row in found}) == 750
    assert len({row.subject for row in found}) == 30
    assert sum(len(photos) for photos in {row.subject: row.photos for row in found}.values()) == 158
    assert Counter((row.category, row.prompt_type) for row in found) == {
        ("object", "recontext"): 420,
        ("object", "property"): 105,
        ("live", "recontext"): 90,
        ("live", "accessory"): 90,
        ("live", "property"): 45,
    }


def test_dreambench_without_prompts_or_photos_is_refused(dreambench: Path) -> None:
    for file in (dreambench / "dataset" / "teapot").iterdir():
        file.unlink()
    with pytest.raises(UserError, match="no photo of teapot"):
        list_rows("dreambench", dreambench)
    (dreambench / "dataset" / "prompts_and_classes.txt").write_text("nothing")
    with pytest.raises(UserError, match="0 subjects, 0 object prompts"):
        list_rows("dreambench", dreambench)
    with pytest.raises(UserError, match="is not DreamBench"):
        list_rows("dreambench", dreambench / "nowhere")


def test_dreambenchpp_pairs_captions_with_images_and_groups_its_nine_prompts(tmp_path: Path) -> None:
    for folder, stem in (("live_subject/animal", "00"), ("style", "03")):
        save_photo(tmp_path / "images" / folder / f"{stem}.jpg", (9, 9, 9))
        caption = tmp_path / "captions" / folder / f"{stem}.txt"
        caption.parent.mkdir(parents=True)
        caption.write_text("\n".join(["Shiba Inu", *(f"prompt {n}" for n in range(9))]) + "\n")
    found = list_rows("dreambenchpp", tmp_path)
    assert len(found) == 18
    assert {row.category for row in found} == {"animal", "style"}
    assert Counter(row.prompt_type for row in found[:9]) == {
        "photorealistic": 4,
        "stylised": 3,
        "imaginative": 2,
    }
    assert found[0].subject == "animal-00-shiba-inu" and found[8].prompt == "prompt 8"
    (tmp_path / "captions" / "style" / "._03.txt").write_bytes(b"\0\5\26\7\xff")
    captions = list((tmp_path / "captions").rglob("[0-9]*.txt"))
    for caption in captions:  # as git on Windows and its editors leave them
        caption.write_bytes(b"\xef\xbb\xbf" + caption.read_bytes().replace(b"\n", b"\r\n"))
    assert list_rows("dreambenchpp", tmp_path) == found
    captions[0].write_bytes("Hündin".encode("latin-1"))
    with pytest.raises(UserError, match=r"txt: cannot be read \(not UTF-8\)"):
        list_rows("dreambenchpp", tmp_path)
    captions[0].write_text("x")
    (tmp_path / "captions" / "style" / "03.txt").write_text("Style\nonly one\n")
    (tmp_path / "images" / "live_subject" / "animal" / "00.jpg").unlink()
    with pytest.raises(UserError) as refused:
        list_rows("dreambenchpp", tmp_path)
    assert "1 prompts, not 9" in str(refused.value) and "does not exist" in str(refused.value)


@pytest.mark.parametrize("inner", ["images/style/03.jpg", "captions/style/03.txt"])
def test_a_link_that_leaves_dreambenchpp_is_refused(tmp_path: Path, inner: str) -> None:
    bench = tmp_path / "bench"
    save_photo(bench / "images" / "style" / "03.jpg", (9, 9, 9))
    caption = bench / "captions" / "style" / "03.txt"
    caption.parent.mkdir(parents=True)
    caption.write_text("\n".join(["Style", *(f"prompt {n}" for n in range(9))]) + "\n")
    assert len(list_rows("dreambenchpp", bench)) == 9
    (bench / inner).rename(tmp_path / "secret")
    (bench / inner).symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match=f"'{inner}' is a link that leaves"):
        list_rows("dreambenchpp", bench)


def test_a_link_that_leaves_dreambench_is_refused(dreambench: Path, tmp_path: Path) -> None:
    photo = dreambench / "dataset" / "teapot" / "00.jpg"
    photo.rename(tmp_path / "secret.jpg")
    photo.symlink_to(tmp_path / "secret.jpg")
    with pytest.raises(UserError, match="subject teapot: .*'teapot/00.jpg' is a link that leaves"):
        list_rows("dreambench", dreambench)


def test_omnicontext_reads_several_references_and_lists_bad_lines(tmp_path: Path) -> None:
    save_photo(tmp_path / "a.png", (1, 2, 3))
    save_photo(tmp_path / "b.png", (3, 2, 1))
    lines: list[dict[str, Any]] = [
        {"key": n, "task_type": task, "instruction": "both at sea", "input_images": ["a.png", "b.png"]}
        for n, task in enumerate(OMNICONTEXT_TASKS)
    ]
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    found = list_rows("omnicontext", tmp_path)
    assert len(found) == 8 and [p.name for p in found[0].references] == ["a.png", "b.png"]
    assert {row.prompt_type for row in found} == {"single", "multi", "scene"}
    assert {row.category for row in found} == {"character", "object", "character_object"}
    lines[0]["instruction"] = "both\u2028at sea"
    file.write_text("\ufeff" + "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    assert len(list_rows("omnicontext", tmp_path)) == 8
    lines[1]["task_type"] = "double"
    lines[2]["input_images"] = ["../secret.png"]
    del lines[3]["instruction"]
    file.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError) as refused:
        list_rows("omnicontext", tmp_path)
    for text in ("line 2: unknown task_type 'double'", "line 3: ", "line 4: not an object with key"):
        assert text in str(refused.value)


def test_a_manifest_gathers_the_photos_of_a_subject_over_its_rows(tmp_path: Path) -> None:
    for name in ("1", "2", "3"):
        save_photo(tmp_path / f"{name}.png", (50, 60, 70))
    items = [
        {"id": "r1", "prompt": "p", "references": ["1.png"], "target": "2.png", "subject": "cat"},
        {"id": "r2", "prompt": "q", "references": ["3.png"], "subject": "cat", "meta": {"category": "pet"}},
    ]
    (tmp_path / "manifest.jsonl").write_text("\n".join(map(json.dumps, items)))
    first, second = list_rows("manifest", tmp_path)
    assert (
        [file.name for file in first.photos] == ["1.png", "2.png", "3.png"] == [f.name for f in second.photos]
    )
    assert (first.category, second.category) == ("all", "pet")


def test_few_rows_still_have_many_subjects_and_many_prompts(dreambench: Path) -> None:
    found = list_rows("dreambench", dreambench)
    few = choose_rows(found, limit=3)
    assert [row.id for row in few] == ["dog6-00", "teapot-01", "fancy_boot-00"]
    assert choose_rows(found, limit=100) == found
    assert {row.subject for row in choose_rows(found, subjects=["teapot"])} == {"teapot"}
    with pytest.raises(UserError, match="no 'tea'"):
        choose_rows(found, subjects=["tea"])


@pytest.mark.parametrize("world", [1, 2, 3, 9])
def test_shards_are_the_rows_each_once(dreambench: Path, world: int) -> None:
    found = list_rows("dreambench", dreambench)
    shards = [shard(found, rank, world) for rank in range(world)]
    assert sorted(row.id for part in shards for row in part) == sorted(row.id for row in found)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    with pytest.raises(ValueError, match="no process"):
        shard(found, world, world)


def test_the_hash_of_the_data_sees_prompts_and_pixels(dreambench: Path) -> None:
    before = data_hash(list_rows("dreambench", dreambench))
    assert data_hash(list_rows("dreambench", dreambench)) == before
    save_photo(dreambench / "dataset" / "teapot" / "01.jpg", (1, 1, 1))
    assert data_hash(list_rows("dreambench", dreambench)) != before
