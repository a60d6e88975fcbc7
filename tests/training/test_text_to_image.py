"""Rows without references: prompts alone, one kind of reward."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import tiny_families
from customized_grpo.cli.main import main
from customized_grpo.data.checked_manifest import open_manifest

PROMPT_REWARD = "rewards=[{name: clip_t, path: toybox, segment: none}]"
IDENTITY_REWARD = "rewards=[{name: clip_i, path: toybox, segment: none}]"
SHORT = ["train.iterations=1", "rollout.steps=2", "train.trained_fraction=1.0"]


def write_rows(folder: Path, name: str, n_rows: int, n_with_reference: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), "red").save(folder / "photo.png")
    lines = []
    for number in range(n_rows):
        references = ["photo.png"] if number < n_with_reference else []
        row = {"id": f"{name}-{number}", "prompt": f"a toy, number {number}", "references": references}
        lines.append(json.dumps({**row, "subject": f"{name} {number % 3}"}) + "\n")
    (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder / f"{name}.jsonl"


def train(run: Path, rows: Path, *settings: str) -> int:
    data = f"data={{kind: manifest, train: {rows}}}"
    try:
        return main(["train", "toybox-smoke", f"run.dir={run}", data, *SHORT, *settings])
    except SystemExit as left:
        assert isinstance(left.code, int)
        return left.code


def test_prompts_alone_train_with_one_kind_of_reward_and_are_evaluated(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows", "train", 8)
    held_out = write_rows(tmp_path / "rows", "held_out", 6)
    data = f"data={{kind: manifest, train: {rows}, held_out: {held_out}}}"
    assert train(tmp_path / "run", rows, data, PROMPT_REWARD) == 0
    lines = list(map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()))
    (trained,) = [line for line in lines if line["kind"] == "train"]
    assert trained["policy/ratio_max_deviation"] == 0 and trained["policy/grad_norm"] > 0
    assert len([line for line in lines if line["kind"] == "eval"]) == 2
    index = json.loads((tmp_path / "run" / "samples" / "index.json").read_text())
    assert index["rows"] and all(row["reference"] is None for row in index["rows"])
    with pytest.raises(SystemExit) as left:
        main(["report", str(tmp_path / "run")])
    assert left.value.code == 0
    (page,) = (tmp_path / "run").glob("*.html")
    assert "Reference image of the subject" not in page.read_text()


def test_a_reward_of_identity_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write_rows(tmp_path / "rows", "train", 8, n_with_reference=7)
    assert train(tmp_path / "run", rows, IDENTITY_REWARD) == 2
    message = capsys.readouterr().err
    assert "clip_i compares with references, which 1 rows do not have" in message


def test_the_judge_of_an_edit_is_refused_before_it_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows", "train", 8, n_with_reference=5)
    options = "{url: 'http://localhost:1/v1', model: m, rubric: edit_prompt}"
    assert train(tmp_path / "run", rows, f"rewards=[{{name: judge, options: {options}}}]") == 2
    assert "judge compares with references, which 3 rows do not have" in capsys.readouterr().err


def test_rows_without_references_may_choose_other_rewards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows", "train", 8, n_with_reference=4)
    items = [json.loads(line) for line in rows.read_text().splitlines()]
    for item in items:
        if not item["references"]:
            item["meta"] = {"rewards": ["clip_t"]}
    rows.write_text("".join(json.dumps(item) + "\n" for item in items))
    both = f"{PROMPT_REWARD[:-1]}, {{name: dino, path: toybox, segment: none}}]"
    assert train(tmp_path / "run", rows, both) == 0
    records = list(map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()))
    (trained,) = [record for record in records if record["kind"] == "train"]
    assert trained["score/dino/nan_share"] == 0 and trained["score/clip_t/nan_share"] == 0
    del items[5]["meta"]
    rows.write_text("".join(json.dumps(item) + "\n" for item in items))
    assert train(tmp_path / "again", rows, both) == 2
    assert "dino compares with references, which 1 rows do not have" in capsys.readouterr().err


def test_a_family_that_needs_references_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows", "train", 8, n_with_reference=3)
    base = tiny_families.save("qwen_edit", tmp_path / "base")
    settings = ["model.family=qwen_edit", f"model.path={base}", "model.guidance=1.0"]
    assert train(tmp_path / "run", rows, PROMPT_REWARD, *settings) == 2
    message = capsys.readouterr().err
    assert "5 of 8 rows have no references, and qwen_edit does not draw from a prompt alone" in message


def test_rows_of_both_kinds_train_together_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows", "train", 8, n_with_reference=4)
    assert train(tmp_path / "run", rows, PROMPT_REWARD) == 0
    assert "4 of 8 rows have no references: they are drawn from the prompt alone" in capsys.readouterr().err


def test_the_index_of_a_checked_manifest_knows_how_many_have_none(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows", "train", 8, n_with_reference=3)
    assert open_manifest(rows, require_masks=False).n_bare == 5


def test_a_prompt_alone_is_drawn(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as left:
        main(["generate", "toybox", "--prompt", "a toy", "--steps", "2", "--grid", "--out", str(out)])
    assert left.value.code == 0
    assert (out / "0000.png").is_file() and (out / "0000-grid.png").is_file()


def test_a_prompt_alone_is_refused_where_references_are_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tiny_families.save("qwen_edit", tmp_path / "base")
    assert main(["generate", str(base), "--prompt", "a toy", "--out", str(tmp_path / "out")]) == 2
    assert "a qwen_edit does not draw from a prompt alone" in capsys.readouterr().err
