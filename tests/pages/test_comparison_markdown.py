from __future__ import annotations

from typing import Any

import pytest

from customized_grpo.pages.comparison_markdown import comparison_markdown


def span(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.01, "high": mean + 0.01}


@pytest.fixture
def results() -> dict[str, Any]:
    scores = {"judge/identity": span(0.6), "judge/prompt": span(0.7), "monitor/copy_score": span(0.1)}
    test = {**span(0.02), "p": 0.0001, "p_holm": 0.0004}
    nothing = dict.fromkeys(("final", "outside_front", "against_control", "quadrants", "group_std"))
    return {
        "name": "toybox",
        "arms": [
            {"name": "naive", "label": "naive 1:1"},
            {"name": "own", "label": "my | *own* <script>"},
            {"name": "late", "label": "late"},
        ],
        "seeds": [0, 1],
        "threads_per_run": 1,
        "runs": [
            {"state": "finished", "wall_s": 1800.0, "rollouts": 2304},
            {"state": "finished", "wall_s": 1800.0, "rollouts": 2304},
            {"state": "missing", "wall_s": None, "rollouts": None},
        ],
        "definitions": [{"term": "Front", "text": "What naive GRPO reaches."}],
        "analysis": {
            "base": scores,
            "verdicts": ["No run shows competitive degradation."],
            "arms": [
                {**nothing, "name": "naive", "runs": 1, "degraded": 1, "final": scores},
                {
                    "name": "own", "runs": 1, "degraded": 0, "final": scores,
                    "outside_front": {"margin": span(0.03)},
                    "against_control": {"control": "naive", "judge/identity": test, "judge/prompt": test},
                    "quadrants": {"conflict": 0.5, "both_positive": 0.3, "both_negative": 0.2, "null": 0.49},
                    "group_std": {"prompt": 0.1, "identity": 0.2},
                },
                {**nothing, "name": "late", "runs": 0, "degraded": 0},
            ],
        },
    }  # fmt: skip


def test_it_shows_every_arm_with_intervals(results: dict[str, Any]) -> None:
    text = comparison_markdown(results)
    assert "| naive 1:1 | 1 | 0.600 [0.590, 0.610] | 0.700 [0.690, 0.710] | 1 of 1 | – | 0.100" in text
    assert "0 of 1 | +0.030 [+0.020, +0.040] |" in text
    assert "| late | 0 | – | – | – | – | – |" in text
    assert "2 of 3 runs finished, 2,304 rollouts each, 1.0 hours" in text
    assert "* No run shows competitive degradation." in text and "* **Front**: What naive" in text


def test_controls_and_quadrants_are_shown_where_there_are_any(results: dict[str, Any]) -> None:
    text = comparison_markdown(results)
    assert "| naive 1:1 | +0.020 [+0.010, +0.030] | < .001 | +0.020" in text
    assert "| 50.0% (49.0%) | 30.0% | 20.0% | 0.100 | 0.200 |" in text


def test_labels_cannot_break_the_table(results: dict[str, Any]) -> None:
    (row,) = [
        line for line in comparison_markdown(results).splitlines() if "own" in line and "0 of 1" in line
    ]
    assert row.startswith(r"| my \| \*own\* \<script\> | 1 |")


def test_every_row_of_a_table_has_as_many_cells_as_its_head(results: dict[str, Any]) -> None:
    lines = comparison_markdown(results).replace(r"\|", "").splitlines()
    tables = [line.count("|") for line in lines if line.startswith("|")]
    assert tables == [8] * 6 + [7] * 3 + [7] * 3


def test_without_controls_their_table_is_left_out(results: dict[str, Any]) -> None:
    results["analysis"]["arms"][1]["against_control"] = None
    assert "gainst control" not in comparison_markdown(results)
