"""Records of a run that a power cut or a hand has damaged: what is missing is said, never guessed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from customized_grpo.errors import UserError
from customized_grpo.evaluation.scores import read_scores
from customized_grpo.runs.folder import RunFolder
from customized_grpo.training.records import check_records, read_records, scores_file, set_aside

TEXTS = '{"columns": {"a": ["x"]}, "ids": ["a/0"], "subjects": ["a"]}'
SHORT = '{"columns": {"a": [1.0, 2.0]}, "ids": ["a/0"], "subjects": ["a"]}'
SCORES = {"ids": ["a/0"], "subjects": ["a"], "columns": {"judge/prompt": [0.5]}}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """Three iterations; the base and the second were evaluated."""
    run = RunFolder(tmp_path)
    lines = [{"kind": "eval", "iteration": 0}]
    for iteration in (1, 2, 3):
        lines.append({"kind": "train", "iteration": iteration})
    lines.insert(3, {"kind": "eval", "iteration": 2})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for iteration in (0, 2):
        run.write_json(scores_file(iteration), SCORES)
    return run


def test_whole_records_are_whole(folder: RunFolder) -> None:
    records = read_records(folder, 3)
    assert (records.evaluated, records.missing_lines) == ([0, 2], [])
    assert check_records(records, [2], ()) == []
    assert read_scores(folder.path / scores_file(2)).columns == {"judge/prompt": [0.5]}


def empty(path: Path) -> None:
    path.write_bytes(b"")


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def zeros(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


DAMAGES = [empty, remove, cut, zeros]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("iteration", [0, 2])
def test_damaged_scores_are_no_evaluation(
    folder: RunFolder, damage: Callable[[Path], None], iteration: int
) -> None:
    damage(folder.path / scores_file(iteration))
    records = read_records(folder, 3)
    assert records.evaluated == [0, 2][1 - iteration // 2 :][:1]
    with pytest.raises(UserError, match=scores_file(iteration)):
        read_scores(folder.path / scores_file(iteration))
    if iteration == 0:
        assert check_records(records, [2], ()) == [], "the base can be measured again"
        return
    with pytest.raises(UserError, match="scores of evaluations .*, of iteration 2") as refused:
        check_records(records, [2], ["metrics"])
    assert "--allow-change evaluations" in str(refused.value.hint)
    assert len(check_records(records, [2], ["evaluations"])) == 1


@pytest.mark.parametrize("damage", [empty, remove, zeros])
def test_without_metrics_nothing_counts_as_done(folder: RunFolder, damage: Callable[[Path], None]) -> None:
    damage(folder.path / "metrics.jsonl")
    records = read_records(folder, 3)
    assert (records.evaluated, records.missing_lines) == ([], [1, 2, 3])
    with pytest.raises(UserError, match="of iteration 1, 2, 3") as refused:
        check_records(records, [2], ())
    assert "--allow-change metrics --allow-change evaluations" in str(refused.value.hint)


def test_one_line_that_is_gone_is_named(folder: RunFolder) -> None:
    path = folder.path / "metrics.jsonl"
    kept = [line for line in path.read_text().splitlines() if line != '{"kind": "train", "iteration": 2}']
    path.write_text("\n".join(kept) + "\n")
    assert read_records(folder, 3).missing_lines == [2]


@pytest.mark.parametrize(
    "content", ["{}", '{"columns": 1}', '{"columns": {"a": 1}, "ids": [], "subjects": []}']
)
def test_scores_of_another_shape_are_one_message(folder: RunFolder, content: str) -> None:
    (folder.path / scores_file(2)).write_text(content)
    with pytest.raises(UserError, match="is damaged"):
        read_scores(folder.path / scores_file(2))


def test_scores_that_no_longer_compare_are_moved_not_deleted(folder: RunFolder) -> None:
    place = set_aside(folder, 3)
    assert place is not None and (place / "iteration_000002.json").is_file()
    assert not (folder.path / scores_file(2)).exists()
    assert set_aside(folder, 3) is None
