from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from customized_grpo.pages.plots.cell_plots import interval_plot, share_bar
from customized_grpo.pages.plots.charts import (
    Area,
    Level,
    Line,
    Part,
    XAxis,
    line_chart,
    split_bar,
    stacked_area,
    step_weights,
)
from customized_grpo.pages.plots.numbers import Measurement
from customized_grpo.pages.plots.scales import Scale, compact, domain, spread, tick_labels, ticks

NUMBERS = st.floats(-1e9, 1e9, allow_nan=False).filter(lambda value: value == 0 or abs(value) > 1e-9)
AXIS = XAxis("rollouts", 400, "iteration", 0.01)


@given(low=NUMBERS, width=st.floats(1e-6, 1e6), count=st.integers(2, 8))
def test_ticks_are_round_numbers_inside_the_range(low: float, width: float, count: int) -> None:
    high = low + width
    if (high - low) < 1e-6 * max(abs(low), abs(high), 1):
        return
    found = ticks(low, high, count)
    slack = (high - low) * 1e-6
    assert len(found) <= count + 1
    assert all(low - slack <= value <= high + slack for value in found)
    if len(found) > 1:
        mantissa = float(f"{found[1] - found[0]:.4e}".split("e")[0])
        assert min(abs(mantissa - round_step) for round_step in (1, 2, 5, 10)) < 0.01


@given(values=st.lists(NUMBERS, min_size=1), least=st.floats(0, 10))
def test_a_domain_holds_all_values_and_is_never_empty(values: list[float], least: float) -> None:
    low, high = domain(values, least=least)
    assert low <= min(values) and high >= max(values) and high > low
    assert high - low >= least * 0.999 or low == 0


@given(st.lists(st.floats(0, 200), min_size=1, max_size=8))
def test_labels_are_kept_apart_inside_the_frame_and_in_order(positions: list[float]) -> None:
    placed = spread(positions, 14, 10, 200)
    assert all(9.99 <= value <= 200.01 for value in placed)
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    steps = [placed[b] - placed[a] for a, b in zip(order, order[1:], strict=False)]
    assert all(step >= 13.99 for step in steps)


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.0, 0.05, 0.1], ["0.00", "0.05", "0.10"]),
        ([0.0, 20000.0, 40000.0], ["0", "20k", "40k"]),
        ([0.0, 2e-5], ["0", "2e\u22125"]),
        ([-1.0, 0.0, 1.0], ["\u22121", "0", "1"]),
    ],
)
def test_tick_labels_have_the_decimals_they_need(values: list[float], labels: list[str]) -> None:
    assert tick_labels(values) == labels


def test_percent_ticks_closer_than_one_per_cent_stay_distinct() -> None:
    assert tick_labels([0.02, 0.025, 0.03], percent=True) == ["2.0 %", "2.5 %", "3.0 %"]


def test_compact_numbers() -> None:
    shown = [compact(value) for value in (0, 0.12345, -12.34, 1234567, 2e-5, 45678)]
    assert shown == ["0", "0.123", "\u221212.3", "1.2e6", "2e\u22125", "45,678"]


def test_a_line_goes_through_its_points_and_breaks_where_a_value_is_missing() -> None:
    chart = line_chart([Line("a", [0, 100, 200, 300, 400], [1, 2, None, 2, 1], "prompt")], AXIS, title="t")
    path = re.search(r'class="line solid" d="([^"]+)"', chart)
    assert path is not None
    commands = re.findall(r"([ML]) ([\d.]+) ([\d.]+)", path[1])
    assert [command for command, _, _ in commands] == ["M", "L", "M", "L"]
    heights = [float(y) for _, _, y in commands]
    assert heights[0] == heights[3] > heights[1] == heights[2]  # larger values are further up
    spaces = [float(x) for _, x, _ in commands]
    assert spaces[1] - spaces[0] == pytest.approx(spaces[3] - spaces[2], abs=0.2)


def test_a_chart_names_series_and_levels_with_their_last_values() -> None:
    lines = [Line("tuned", [0, 400], [0.5, 0.625], "prompt", low=[0.4, 0.5], high=[0.6, 0.7])]
    chart = line_chart(lines, AXIS, title="judge", levels=[Level("base", 0.5, 0.4, 0.6)])
    text = " ".join(ElementTree.fromstring(chart).itertext())
    for expected in ("tuned", "0.625", "base", "0.500", "rollouts", "iteration"):
        assert expected in text
    assert chart.count('class="band"') == 2


def test_outliers_of_the_raw_values_stay_inside_the_frame() -> None:
    raw: list[float | None] = [0.5] * 99 + [1e6]
    x = [float(value) for value in range(100)]
    chart = line_chart([Line("a", x, [0.5] * 100, "prompt", raw=raw)], XAxis("rollouts", 100), title="t")
    path = re.search(r'class="raw" d="([^"]+)"', chart)
    assert path is not None
    assert all(0 <= float(y) <= 236 for _, y in re.findall(r"[ML] ([\d.]+) (-?[\d.]+)", path[1]))


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ValueError, match="no values"):
        line_chart([Line("a", [0, 1], [None, None], "prompt")], AXIS, title="t")


def test_stacked_shares_that_sum_to_one_reach_the_top() -> None:
    areas = [Area("good", "good", [0.2, 0.75]), Area("copied", "copied", [0.8, 0.25])]
    chart = stacked_area([0, 400], areas, AXIS, title="modes")
    tops = [
        re.findall(r"[ML] [\d.]+ ([\d.]+)", d) for d in re.findall(r'class="area"[^>]* d="([^"]+)"', chart)
    ]
    assert tops[1][:2] == ["8", "8"]  # the upper edge of the frame
    assert tops[0][:2] == tops[1][3:1:-1]  # each area stands on the one below
    assert "75 %" in chart and "25 %" in chart


def test_step_bars_divide_at_the_prompt_weight_and_pale_out_untrained_steps() -> None:
    chart = step_weights([0.75, 0.25], title="weights", trained=[True, False])
    bars = re.findall(r'class="bar( pale)?" style="--c:var\(--(\w+)\)"[^>]* height="([\d.]+)"', chart)
    heights = {(pale, colour): float(height) for pale, colour, height in bars}
    assert heights["", "prompt"] == pytest.approx(3 * heights["", "identity"], rel=0.01)
    assert heights[" pale", "identity"] == pytest.approx(3 * heights[" pale", "prompt"], rel=0.01)


def test_an_interval_right_of_zero_is_drawn_right_of_the_dashes() -> None:
    chart = interval_plot(Measurement(0.5, 0.25, 0.75), 1.0, tone="better", title="t")
    zero = float(re.search(r'class="zero" x1="([\d.]+)"', chart)[1])  # type: ignore[index]
    left = float(re.search(r'class="whisker" x1="([\d.]+)"', chart)[1])  # type: ignore[index]
    assert left == Scale(-1, 1, 4, 156)(0.25) > zero == Scale(-1, 1, 4, 156)(0)


def test_each_row_of_ticks_has_round_numbers_of_its_own_unit() -> None:
    axis = XAxis("rollouts", 1440, "iteration", 30 / 1440)
    chart = line_chart([Line("a", [0, 1440], [1, 2], "prompt")], axis, title="t")
    ticks_of = {
        css: re.findall(rf'class="{css} middle" x="([\d.]+)"[^>]*>([\d.k]+)<', chart)
        for css in ("tick", "unit")
    }
    assert [label for _, label in ticks_of["tick"]] == ["0", "500", "1000"]
    assert [label for _, label in ticks_of["unit"]] == ["0", "10", "20", "30"]
    zero, ten = (float(x) for x, _ in ticks_of["unit"][:2])
    half = float(ticks_of["tick"][1][0])
    # iteration 10 is at 480 rollouts, a little left of 500
    assert ten - zero == pytest.approx((half - zero) * 480 / 500, abs=0.2)


@pytest.mark.parametrize("iterations", [1, 2, 3, 7])
def test_what_is_counted_has_no_tick_between_two_whole_numbers(iterations: int) -> None:
    axis = XAxis("rollouts", iterations * 8, "iteration", 1 / 8)
    chart = line_chart([Line("a", [0, iterations * 8], [1, 2], "prompt")], axis, title="t")
    labels = re.findall(r'class="(?:tick|unit) middle"[^>]*>([^<]+)<', chart)
    assert labels and all(label.isdigit() for label in labels)


def test_a_split_bar_gives_shares_of_the_whole() -> None:
    chart = split_bar([Part("rollout", "prompt", 30.0), Part("update", "positive", 10.0)], title="time")
    assert "rollout 75%" in chart and "update 25%" in chart


HOSTILE = "</text><script>alert(1)</script>\"'"


def test_every_text_is_escaped() -> None:
    lines = [Line(HOSTILE, [0, 1], [1, 2], "prompt")]
    axis = XAxis(HOSTILE, 1, HOSTILE, 1)
    charts = [
        line_chart(lines, axis, title=HOSTILE, levels=[Level(HOSTILE, 1)], marks=[(0.5, HOSTILE)]),
        stacked_area([0, 1], [Area(HOSTILE, "good", [1, 1])], axis, title=HOSTILE),
        step_weights([0.5], title=HOSTILE, trained=[True]),
        interval_plot(Measurement(0, -1, 1), 1, tone="better", title=HOSTILE),
        split_bar([Part(HOSTILE, "prompt", 1.0)], title=HOSTILE),
        share_bar([(HOSTILE, "prompt", 1.0)], 0.5, title=HOSTILE),
    ]
    for chart in charts:
        assert "<script" not in chart
        labels = [element.get("aria-label") for element in ElementTree.fromstring(chart).iter()]
        assert HOSTILE in labels


def test_steps_have_their_points_and_labels_in_the_middle_of_their_bars() -> None:
    bars = step_weights([0.75, 0.25, 0.5], title="weights", trained=[True, True, False])
    gains = line_chart(
        [Line("a", [0.5, 1.5, 2.5], [1, 2, 3], "prompt", dots=True)], XAxis("step", 3, steps=True), title="t"
    )
    edges = re.findall(
        r'class="bar[^"]*" style="--c:var\(--prompt\)" x="([\d.]+)"[^>]* width="([\d.]+)"', bars
    )
    middles = [float(x) + float(width) / 2 for x, width in edges]
    dots = [float(x) for x in re.findall(r'class="dot" cx="([\d.]+)"', gains)]
    labels = [float(x) for x in re.findall(r'class="tick middle" x="([\d.]+)" y="[\d.]+">\d<', gains)]
    assert dots == pytest.approx(middles, abs=0.2) and labels == pytest.approx(middles, abs=0.2)
    assert "<title>1.000 at step 0</title>" in gains and "<title>2.000 at step 1</title>" in gains


def test_a_share_bar_divides_the_whole_and_ticks_the_null() -> None:
    bar = share_bar([("a", "conflict", 0.5), ("b", "positive", 0.3), ("c", "negative", 0.2)], 0.4, title="t")
    pieces = [tuple(map(float, pair)) for pair in re.findall(r' x="([\d.]+)" y="3" width="([\d.]+)"', bar)]
    scale = Scale(0, 1, 1, 239)
    assert [x for x, _ in pieces] == pytest.approx([scale(0), scale(0.5), scale(0.8)], abs=0.11)
    assert pieces[-1][0] + pieces[-1][1] <= scale(1)
    tick = re.search(r'class="null" x1="([\d.]+)"', bar)
    assert tick is not None and float(tick[1]) == pytest.approx(scale(0.4), abs=0.11)
    assert 'class="null"' not in share_bar([("a", "conflict", 1.0)], None, title="t")


def test_an_axis_of_gains_may_start_at_zero() -> None:
    chart = interval_plot(Measurement(0.5, 0.0, 2.0), 1.0, tone="better", title="t", start=0.0)
    scale = Scale(0, 1, 4, 156)
    found = re.search(
        r'class="zero" x1="([\d.]+)".*whisker" x1="([\d.]+)" x2="([\d.]+)".*cx="([\d.]+)"', chart
    )
    assert found is not None
    assert [float(x) for x in found.groups()] == [scale(0), scale(0), scale(1), scale(0.5)]
