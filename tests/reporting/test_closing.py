"""The last lines of a run on the terminal."""

from __future__ import annotations

from customized_grpo.reporting.closing import closing_lines


def part(value: float) -> dict[str, dict[str, float]]:
    bounds = {"mean": value, "low": value - 0.1, "high": value + 0.1}
    return dict.fromkeys(("score/dino", "judge/prompt", "reward/prompt", "monitor/saturation"), bounds)


SUMMARY = {"base": part(0.5), "tuned": part(0.75), "difference": part(0.25)}


def test_rewards_by_name_and_judges_are_told_beside_the_base() -> None:
    header, *lines = closing_lines(SUMMARY, [])
    assert header == "held-out, base -> tuned, difference with its 95 % interval"
    assert lines == [
        "  score/dino    0.500 -> 0.750  +0.250 [+0.150, +0.350]",
        "  judge/prompt  0.500 -> 0.750  +0.250 [+0.150, +0.350]",
    ]


def test_alarms_come_before_the_numbers_and_qualify_them() -> None:
    first, second, header, *_ = closing_lines(SUMMARY, ["diversity is low", "copy_score rose"])
    assert [first, second] == [
        "alarm at the last evaluation: diversity is low",
        "alarm at the last evaluation: copy_score rose",
    ]
    assert header.endswith("the alarms above qualify it")


def test_nothing_held_out_has_no_lines() -> None:
    assert closing_lines({}, []) == []
