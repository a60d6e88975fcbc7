"""What the check of a data set finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import sources
from customized_grpo.cli.data import render
from customized_grpo.data.check import check_manifests, find_manifests
from customized_grpo.errors import UserError


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"row {number}",
        "prompt": f"prompt {number}",
        "references": [f"{number}.png"],
        "target": f"t{number}.png",
        "subject": f"subject {number}",
    } | changes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight different images, four of which are targets."""
    for number in range(4):
        sources.save(tmp_path / f"{number}.png", (60 * number, 0, 0))
        sources.save(tmp_path / f"t{number}.png", (0, 60 * number, 200), (20, 10))
    sources.save(tmp_path / "mask.png", 255, mode="L")
    return tmp_path


def write(folder: Path, name: str, *rows: dict[str, Any]) -> Path:
    (folder / name).write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder / name


def problems(*manifests: Path, require_masks: bool = False) -> list[str]:
    return list(check_manifests(manifests, require_masks=require_masks).problems)


def test_a_good_data_set_is_summarised(folder: Path) -> None:
    train = write(
        folder,
        "train.jsonl",
        row(0, masks=["mask.png"]),
        row(1, prompt="word " * 100, references=["1.png", "2.png"]),
    )
    held_out = write(folder, "held_out.jsonl", row(3, target=None, subject=None))
    found = check_manifests([train, held_out], require_masks=False)
    assert found.problems == []
    assert found.rows == {"train.jsonl": 2, "held_out.jsonl": 1}
    assert found.subjects == {"train.jsonl": 2, "held_out.jsonl": 1} and found.all_subjects == 3
    assert found.references_per_row == {1: 2, 2: 1}
    assert found.images == 6 and found.sizes == {"12 x 8": 4, "20 x 10": 2}
    assert found.masks == pytest.approx(1 / 3) and found.targets == pytest.approx(2 / 3)
    assert found.longest_prompt == 102 and found.long_prompts == 1
    assert json.loads(json.dumps(found.to_json()))["references_per_row"] == {"1": 2, "2": 1}


def test_a_prompt_without_spaces_is_not_one_word(folder: Path) -> None:
    prompt = "\u4e00\u53ea\u732b\u5750\u5728\u6c99\u53d1\u4e0a" * 20  # 160 Chinese characters
    found = check_manifests([write(folder, "m.jsonl", row(0, prompt=prompt), row(1))], require_masks=False)
    assert found.longest_prompt == 322 and found.long_prompts == 1


def test_every_bad_line_is_a_problem_beside_the_good_rows(folder: Path) -> None:
    manifest = write(folder, "m.jsonl", row(0), row(1, references=["gone.png"]), row(2, prompt=""), row(3))
    found = check_manifests([manifest], require_masks=False)
    assert found.rows == {"m.jsonl": 2}
    assert found.problems == [
        "m.jsonl line 2: `references`: 'gone.png' does not exist",
        "m.jsonl line 3: `prompt` is empty",
    ]


def test_missing_masks_are_a_problem_on_request(folder: Path) -> None:
    manifest = write(folder, "m.jsonl", row(0), row(1, masks=["mask.png"]))
    assert problems(manifest) == []
    assert problems(manifest, require_masks=True) == [
        "m.jsonl line 1: has no `masks`, which the reward needs"
    ]


def test_a_target_that_is_its_reference_is_found_by_content(folder: Path) -> None:
    Image.open(folder / "0.png").save(folder / "other.bmp")  # another file, the same pixels
    manifest = write(folder, "m.jsonl", row(0, target="other.bmp"), row(1))
    assert problems(manifest) == ["m.jsonl line 1: the target shows the same pixels as a reference"]


def test_a_row_that_repeats_another_is_found_by_content(folder: Path) -> None:
    Image.open(folder / "0.png").save(folder / "other.bmp")
    same = row(0, id="again", references=["other.bmp"], target="t1.png")
    assert problems(write(folder, "m.jsonl", row(0), same, row(0, id="x", prompt="another"))) == [
        "m.jsonl line 2: the same prompt and references as m.jsonl line 1"
    ]


def test_subjects_and_images_in_two_parts_are_leaks(folder: Path) -> None:
    Image.open(folder / "t1.png").save(folder / "other.bmp")
    train = write(folder, "train.jsonl", row(0), row(1))
    held_out = write(folder, "held.jsonl", row(2, subject="subject 0"), row(3, references=["other.bmp"]))
    assert problems(train, held_out) == [
        "subject 'subject 0' is in train.jsonl and in held.jsonl",
        "held.jsonl line 2: shows an image of train.jsonl line 2 in train.jsonl",
    ]


def test_a_subject_in_two_parts_counts_once(folder: Path) -> None:
    train = write(folder, "train.jsonl", row(0), row(1))
    found = check_manifests([train, write(folder, "held.jsonl", row(0), row(1))], require_masks=False)
    assert found.subjects == {"train.jsonl": 2, "held.jsonl": 2} and found.all_subjects == 2
    assert "subjects:            2 (train.jsonl 2, held.jsonl 2)" in render(found)


def test_a_problem_of_every_row_is_shown_a_few_times_and_counted(folder: Path) -> None:
    manifest = write(folder, "m.jsonl", *(row(n, references=["gone.png"], target=None) for n in range(50)))
    found = check_manifests([manifest], require_masks=False)
    assert len(found.problems) == 50  # all of them for --json
    shown = [line for line in render(found).splitlines() if line.startswith("problem: ")]
    assert len(shown) == 4 and shown[-1] == "problem: ... and 47 more like m.jsonl line 3"


def test_images_shared_inside_one_part_are_no_problem(folder: Path) -> None:
    manifest = write(folder, "m.jsonl", row(0), row(1, references=["0.png"], subject="subject 0"))
    assert problems(manifest) == []


def test_an_empty_manifest_is_a_problem(folder: Path) -> None:
    (folder / "m.jsonl").write_text("\n")
    assert problems(folder / "m.jsonl") == ["m.jsonl holds no rows"]


def test_the_manifests_of_a_folder_are_found(folder: Path) -> None:
    with pytest.raises(UserError, match="has no manifest.jsonl") as caught:
        find_manifests(folder)
    assert caught.value.hint is not None and "--layout" in caught.value.hint
    whole = write(folder, "manifest.jsonl", row(0))
    assert find_manifests(folder) == [whole] == find_manifests(whole)
    parts = [write(folder, name, row(0)) for name in ("train.jsonl", "held_out.jsonl")]
    assert find_manifests(folder) == parts
