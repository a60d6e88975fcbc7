from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from customized_grpo.errors import UserError
from customized_grpo.reporting.metrics import MetricsWriter, read_metrics


def record(iteration: int, **more: float | None) -> dict[str, object]:
    return {"kind": "train", "iteration": iteration, "rollouts": iteration * 8, **more}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "metrics.jsonl"


def write(path: Path, iterations: range) -> None:
    with MetricsWriter(path) as writer:
        for iteration in iterations:
            writer.write(record(iteration))


def iterations(path: Path) -> list[object]:
    return [entry["iteration"] for entry in read_metrics(path)]


def test_each_record_is_on_disk_when_write_returns(path: Path) -> None:
    writer = MetricsWriter(path)
    writer.write(record(1))
    assert iterations(path) == [1]
    writer.close()


def test_what_is_not_finite_is_written_as_null(path: Path) -> None:
    with MetricsWriter(path) as writer:
        writer.write(record(1, a=float("nan"), b=float("inf"), c=float("-inf"), d=0.5))
    text = path.read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert [json.loads(text)[key] for key in "abcd"] == [None, None, None, 0.5]


def test_a_value_that_is_no_scalar_is_refused_with_its_name(path: Path) -> None:
    with MetricsWriter(path) as writer, pytest.raises(TypeError, match=r"reward/prompt.*list"):
        writer.write({"kind": "train", "iteration": 1, "reward/prompt": [0.5]})  # type: ignore[dict-item]
    assert read_metrics(path) == []


@pytest.mark.parametrize("broken", [{"iteration": 1}, {"kind": "train"}, {"kind": "tarin", "iteration": 1}])
def test_a_record_without_kind_or_iteration_is_refused(path: Path, broken: dict[str, object]) -> None:
    with MetricsWriter(path) as writer, pytest.raises(ValueError, match="kind|iteration"):
        writer.write(broken)  # type: ignore[arg-type]


def test_opening_again_appends(path: Path) -> None:
    write(path, range(1, 3))
    write(path, range(3, 5))
    assert iterations(path) == [1, 2, 3, 4]


def test_resume_forgets_later_iterations_and_keeps_its_own(path: Path) -> None:
    write(path, range(1, 8))
    with MetricsWriter.open(path, upto_iteration=4) as writer:
        writer.write(record(5))
    assert iterations(path) == [1, 2, 3, 4, 5]


def test_resume_from_the_start_forgets_all_but_iteration_0(path: Path) -> None:
    write(path, range(0, 4))
    MetricsWriter.open(path, upto_iteration=0).close()
    assert iterations(path) == [0]


@given(cut=st.integers(1, 60))
def test_a_torn_last_line_loses_no_other_record(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("torn") / "metrics.jsonl"
    write(path, range(1, 4))
    content = path.read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n") + 1
    path.write_bytes(content[: max(last + 1, len(content) - cut)])
    whole = [1, 2, 3] if cut == 1 else [1, 2]  # without its newline a line is still whole
    assert iterations(path) == whole
    with MetricsWriter.open(path) as writer:
        writer.write(record(9))
    assert iterations(path) == [*whole, 9]


def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(path: Path) -> None:
    write(path, range(1, 4))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:9], lines[2]]) + "\n")
    with pytest.raises(UserError, match="line 2"):
        read_metrics(path)


def test_a_line_that_is_no_object_is_an_error(path: Path) -> None:
    write(path, range(1, 2))
    path.write_text("[1]\n" + path.read_text())
    with pytest.raises(UserError, match="line 1.*object"):
        read_metrics(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iteration": "2"}, "line 2: iteration must be a whole number, not '2'"),
        ({"iteration": [2]}, "line 2: iteration must be a whole number"),
        ({"iteration": -1}, "line 2: iteration must be a whole number"),
        ({"iteration": None}, "line 2: iteration must be a whole number"),
        ({"loss": {"mean": 1}}, "line 2: loss must be one value"),
    ],
)
def test_a_record_that_the_writer_would_not_write_is_an_error(
    path: Path, change: dict[str, object], message: str
) -> None:
    write(path, range(1, 3))
    lines = path.read_text().splitlines()
    path.write_text(lines[0] + "\n" + json.dumps({**json.loads(lines[1]), **change}) + "\n")
    with pytest.raises(UserError, match=re.escape(message)):
        read_metrics(path)


def test_numbers_that_json_does_not_have_were_not_measured(path: Path) -> None:
    path.parent.mkdir()
    path.write_text('{"kind": "train", "iteration": 1, "loss": NaN, "norm": -Infinity}\n')
    assert read_metrics(path) == [{"kind": "train", "iteration": 1, "loss": None, "norm": None}]


def test_a_missing_file_is_a_user_error(path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_metrics(path)


def test_text_outside_ascii_survives(path: Path) -> None:
    with MetricsWriter(path) as writer:
        writer.write({"kind": "event", "iteration": 1, "event": "alarm", "message": "ρ < 0\nzwei Zeilen"})
    assert read_metrics(path)[0]["message"] == "ρ < 0\nzwei Zeilen"
