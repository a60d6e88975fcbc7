"""Following a metrics file: every record once, and a rewritten file from its beginning."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from customized_grpo.errors import UserError
from customized_grpo.reporting.metrics import MetricsWriter
from customized_grpo.reporting.tail import MetricsTail


def record(iteration: int) -> dict[str, object]:
    return {"kind": "train", "iteration": iteration, "reward/prompt": iteration / 8}


def line(iteration: int) -> str:
    return f'{{"kind": "train", "iteration": {iteration}}}\n'


def write(path: Path, iterations: range) -> None:
    with MetricsWriter(path) as writer:
        for iteration in iterations:
            writer.write(record(iteration))


def iterations(tail: MetricsTail) -> tuple[bool, list[object]]:
    change = tail.read()
    return change.restarted, [entry["iteration"] for entry in change.records]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_each_look_gives_what_is_new(path: Path) -> None:
    tail = MetricsTail(path)
    assert iterations(tail) == (False, [])
    write(path, range(1, 3))
    assert iterations(tail) == (False, [1, 2])
    assert iterations(tail) == (False, [])
    write(path, range(3, 4))
    assert iterations(tail) == (False, [3])


@pytest.mark.parametrize("written", [9, len(line(2)) - 1])
def test_half_a_line_is_left_until_it_is_whole(path: Path, written: int) -> None:
    whole = line(2)
    path.write_text(line(1) + whole[:written])
    tail = MetricsTail(path)
    assert iterations(tail) == (False, [1])
    path.write_text(line(1) + whole)
    assert iterations(tail) == (False, [2])


def test_a_resumed_run_that_drops_records_starts_again(path: Path) -> None:
    write(path, range(1, 6))
    tail = MetricsTail(path)
    tail.read()
    with MetricsWriter.open(path, upto_iteration=3) as writer:
        writer.write(record(4))
    assert iterations(tail) == (True, [1, 2, 3, 4])


def test_a_file_of_the_same_inode_and_another_content_starts_again(path: Path) -> None:
    path.write_text(line(1) + line(2))
    tail = MetricsTail(path)
    tail.read()
    inode = path.stat().st_ino
    path.write_text(line(7) + line(8) + line(9))
    assert path.stat().st_ino == inode
    assert iterations(tail) == (True, [7, 8, 9])


def test_a_file_that_is_gone_starts_again(path: Path) -> None:
    write(path, range(1, 3))
    tail = MetricsTail(path)
    tail.read()
    path.unlink()
    assert iterations(tail) == (True, [])
    write(path, range(1, 2))
    assert iterations(tail) == (False, [1])


def test_a_line_torn_by_a_kill_is_passed_when_the_next_writer_has_removed_it(path: Path) -> None:
    path.write_text(line(1) + '{"kind": "tr\n')
    tail = MetricsTail(path)
    assert iterations(tail) == (False, [1])
    write(path, range(2, 3))
    assert iterations(tail) == (True, [1, 2])


@pytest.mark.parametrize(
    ("damaged", "message"),
    [("nonsense\n", "line 2: not a JSON object"), ('{"iteration": -1}\n', "line 2: iteration must be")],
)
def test_a_damaged_line_before_others_is_an_error_that_names_it(
    path: Path, damaged: str, message: str
) -> None:
    path.write_text(line(1) + damaged + line(3))
    with pytest.raises(UserError, match=message):
        MetricsTail(path).read()


def test_a_pipe_in_the_place_of_the_file_is_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    assert iterations(MetricsTail(path)) == (False, [])
