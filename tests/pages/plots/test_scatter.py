from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from customized_grpo.pages.plots.labels import MARKER, Box, place_labels
from customized_grpo.pages.plots.numbers import Measurement
from customized_grpo.pages.plots.scatter import Point, dominated_region, scatter

FRAME = Box(52, 8, 378, 332)
PLACES = st.tuples(st.floats(FRAME.left, FRAME.right), st.floats(FRAME.top, FRAME.bottom))
TOLERANCE = 0.11
"""Coordinates are written to a tenth of a pixel."""


def point(x: float, y: float, half: float | None = 0.01, **options: object) -> Point:
    spans = [
        Measurement(v, None, None) if half is None else Measurement(v, v - half, v + half) for v in (x, y)
    ]
    return Point("arm", *spans, "arm1", **options)  # type: ignore[arg-type]


def draw(points: list[Point], front: list[Point] | None = None) -> str:
    return scatter(points, title="t", x_label="identity", y_label="prompt", front=front or [])


class Axes:
    """Pixels of data, as the tick labels of a chart promise them."""

    def __init__(self, chart: str) -> None:
        root = ElementTree.fromstring(chart)
        found: dict[str, list[tuple[float, float]]] = {"tick middle": [], "tick end": []}
        for text in root.iter("{http://www.w3.org/2000/svg}text"):
            css = text.get("class") or ""
            if css in found:
                at = float(text.get("x") or 0) if css == "tick middle" else float(text.get("y") or 0) - 4
                found[css].append((float((text.text or "").replace("\u2212", "-")), at))
        self.x, self.y = (self._map(found[css]) for css in ("tick middle", "tick end"))

    @staticmethod
    def _map(ticks: list[tuple[float, float]]) -> tuple[float, float]:
        (a, p), (b, q) = ticks[0], ticks[-1]
        slope = (q - p) / (b - a)
        return slope, p - slope * a

    def __call__(self, x: float, y: float) -> tuple[float, float]:
        return self.x[0] * x + self.x[1], self.y[0] * y + self.y[1]


def test_points_seeds_and_whiskers_land_where_the_ticks_say() -> None:
    points = [point(0.62, 0.71, seeds=[(0.61, 0.69), (0.63, 0.74)]), point(0.7, 0.8)]
    chart = draw(points, [point(0.66, 0.75, shape="ring")])
    axes = Axes(chart)
    circles = re.findall(r'<circle class="(\w+)" cx="([\d.]+)" cy="([\d.]+)"', chart)
    drawn = {(kind, float(x), float(y)) for kind, x, y in circles}
    wanted = [("point", 0.62, 0.71), ("point", 0.7, 0.8), ("seed", 0.61, 0.69), ("seed", 0.63, 0.74)]
    for kind, x, y in [*wanted, ("dot", 0.66, 0.75)]:
        at = axes(x, y)
        assert any(kind == k and at == pytest.approx((a, b), abs=2 * TOLERANCE) for k, a, b in drawn), (
            kind,
            x,
            y,
        )
    assert len(drawn) == 5
    number = r'"([\d.]+)"'
    lines = re.findall(f'class="whisker thin" x1={number} x2={number} y1={number} y2={number}', chart)
    drawn_lines = [(float(a), float(c), float(b), float(d)) for a, b, c, d in lines]
    for start, end in (((0.69, 0.8), (0.71, 0.8)), ((0.7, 0.81), (0.7, 0.79))):
        wanted_line = (*axes(*start), *axes(*end))
        assert any(line == pytest.approx(wanted_line, abs=2 * TOLERANCE) for line in drawn_lines)
    assert len(lines) == 6


def test_larger_values_are_further_right_and_further_up() -> None:
    axes = Axes(draw([point(0.1, 0.1), point(0.2, 0.2)]))
    assert axes.x[0] > 0 > axes.y[0]


def test_ticks_of_y_are_beside_their_hairlines() -> None:
    chart = draw([point(0.62, 0.71), point(0.7, 0.8)])
    labels = [float(y) - 4 for y in re.findall(r'class="tick end" x="[\d.]+" y="([\d.]+)"', chart)]
    lines = re.findall(r'class="grid" x1="52" x2="378" y1="([\d.]+)"', chart)
    assert labels == pytest.approx([float(y) for y in lines], abs=TOLERANCE)


def test_without_an_interval_there_is_no_whisker() -> None:
    assert "whisker" not in draw([point(0.1, 0.2, None), point(0.3, 0.4, None)])


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=8), st.floats(0.001, 1))
def test_everything_stays_inside_the_frame(places: list[tuple[float, float]], half: float) -> None:
    chart = draw([point(x, y, half, seeds=[(x - 2 * half, y + 3 * half)]) for x, y in places])
    shapes = re.findall(r'<circle class="\w+" cx="([\d.-]+)" cy="([\d.-]+)"', chart)
    ends = re.findall(r'whisker thin" x1="([\d.-]+)" x2="([\d.-]+)" y1="([\d.-]+)" y2="([\d.-]+)"', chart)
    across = [float(x) for x, _ in shapes] + [float(v) for a, b, _, _ in ends for v in (a, b)]
    up = [float(y) for _, y in shapes] + [float(v) for _, _, c, d in ends for v in (c, d)]
    assert FRAME.left - TOLERANCE <= min(across) and max(across) <= FRAME.right + TOLERANCE
    assert FRAME.top - TOLERANCE <= min(up) and max(up) <= FRAME.bottom + TOLERANCE


def _inside(outline: list[tuple[float, float]], x: float, y: float) -> bool:
    """Even-odd rule, against sides that do not pass through the point."""
    inside = False
    for (a, b), (c, d) in zip(outline, [*outline[1:], *outline[:1]], strict=True):
        if (b > y) != (d > y) and x < a + (y - b) / (d - b) * (c - a):
            inside = not inside
    return inside


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), max_size=8))
def test_the_shaded_region_is_what_the_front_dominates(front: list[tuple[int, int]]) -> None:
    outline = dominated_region(front, (0, 0))
    for i, j in itertools.product(range(14), range(14)):
        x, y = i + 0.5, j + 0.5
        assert _inside(outline, x, y) == any(a >= x and b >= y for a, b in front)


def test_the_shade_is_drawn_on_the_scales_of_the_points() -> None:
    front = [point(0.6, 0.8), point(0.7, 0.7), point(0.65, 0.6)]
    chart = draw([point(0.66, 0.75)], front)
    axes = Axes(chart)
    shade = re.search(r'class="shade" d="M ([^"]+) Z"', chart)
    assert shade is not None
    corners = [tuple(map(float, pair.split())) for pair in shade[1].split(" L ")]
    steps = [axes(0.7, 0.7), axes(0.6, 0.7), axes(0.6, 0.8)]  # the third point is dominated
    assert corners[2:5] == [pytest.approx(step, abs=2 * TOLERANCE) for step in steps]
    assert corners[0] == (FRAME.left, FRAME.bottom) and corners[-1][0] == FRAME.left


def test_the_front_is_joined_in_the_order_given() -> None:
    front = [point(0.6, 0.8), point(0.5, 0.7), point(0.7, 0.6)]
    chart = draw([], front)
    line = re.search(r'class="front" d="M ([^"]+)"', chart)
    assert line is not None
    axes = Axes(chart)
    drawn = [tuple(map(float, pair.split())) for pair in line[1].split(" L ")]
    wanted = [axes(0.6, 0.8), axes(0.5, 0.7), axes(0.7, 0.6)]
    assert drawn == [pytest.approx(place, abs=2 * TOLERANCE) for place in wanted]


def test_a_point_beside_the_front_dominates_but_is_not_joined() -> None:
    front, base = [point(0.6, 0.6), point(0.7, 0.5)], point(0.5, 0.8, shape="cross")
    chart = scatter([], title="t", x_label="x", y_label="y", front=front, beside=[base])
    shade = re.search(r'class="shade" d="M ([^"]+) Z"', chart)
    line = re.search(r'class="front" d="([^"]+)"', chart)
    assert shade is not None and line is not None and line[1].count(" L ") == 1
    axes = Axes(chart)
    corners = [tuple(map(float, pair.split())) for pair in shade[1].split(" L ")]
    assert any(corner == pytest.approx(axes(0.5, 0.8), abs=2 * TOLERANCE) for corner in corners)


@pytest.mark.parametrize("count", [0, 1])
def test_a_front_of_one_or_none_has_no_line(count: int) -> None:
    chart = draw([point(0.1, 0.2)], [point(0.3, 0.4)][:count])
    assert 'class="front"' not in chart and ('class="shade"' in chart) == bool(count)


def test_the_base_is_a_cross_centred_on_its_place() -> None:
    chart = draw([point(0.1, 0.2, shape="cross"), point(0.3, 0.4)])
    start = re.search(r'class="cross" d="M ([\d.]+) ([\d.]+) l 9 9 m 0 -9 l -9 9"', chart)
    assert start is not None
    centre = float(start[1]) + 4.5, float(start[2]) + 4.5
    assert centre == pytest.approx(Axes(chart)(0.1, 0.2), abs=2 * TOLERANCE)


def test_nothing_to_plot_is_an_error() -> None:
    with pytest.raises(ValueError, match="no points"):
        draw([])


def test_every_text_is_escaped() -> None:
    hostile = "</text><script>alert(1)</script>\"'"
    bad = Point(hostile, Measurement(0, -1, 1), Measurement(0, -1, 1), "arm1", hostile)
    chart = scatter([bad], title=hostile, x_label=hostile, y_label=hostile, front=[bad, bad])
    assert "<script" not in chart
    assert ElementTree.fromstring(chart).get("aria-label") == hostile


@given(st.lists(PLACES, min_size=1, max_size=30))
def test_labels_cover_neither_each_other_nor_a_point(places: list[tuple[float, float]]) -> None:
    boxes = place_labels(places, [str(index) for index in range(len(places))], FRAME)
    for one, two in itertools.combinations(boxes, 2):
        assert one.overlap(two) == pytest.approx(0, abs=1e-6)
    for box in boxes:
        assert FRAME.left <= box.left and box.right <= FRAME.right + 1e-9
        assert FRAME.top <= box.top and box.bottom <= FRAME.bottom + 1e-9
        for x, y in places:
            square = Box(x - MARKER, y - MARKER, x + MARKER, y + MARKER)
            assert box.overlap(square) == pytest.approx(0, abs=1e-6)


def test_names_of_a_crowded_corner_are_kept_apart() -> None:
    places = [(400 + 7 * (index % 3), 100 + 9 * index) for index in range(10)]
    boxes = place_labels(places, ["Customized-GRPO, variant"] * 10, FRAME)
    assert not any(one.overlap(two) for one, two in itertools.combinations(boxes, 2))


def test_a_label_gives_way_to_a_whisker_but_not_far() -> None:
    whiskers = [Box(150, 195, 350, 205), Box(245, 150, 255, 250)]
    free, crossed = (place_labels([(250, 200)], ["name"], FRAME, avoid)[0] for avoid in ((), whiskers))
    assert free.overlap(whiskers[0]) > 0 == sum(map(crossed.overlap, whiskers))
    assert abs(crossed.left - 250) < 40 and abs(crossed.top - 200) < 40


def test_a_label_without_words_takes_no_room() -> None:
    boxes = place_labels([(200, 200), (200, 200)], ["", "name"], FRAME)
    assert boxes[0] == Box(200, 200, 200, 200) and boxes[1].right - boxes[1].left > 20


def test_a_label_that_had_to_move_away_is_tied_to_its_point() -> None:
    near = [point(0.1, 0.1, None, label="a"), point(0.9, 0.9, None, label="b")]
    assert "leader" not in draw(near)
    crowd = [point(0.5, 0.5 + 1e-4 * index, None, label="some name") for index in range(8)]
    assert draw([*near, *crowd]).count('class="leader"') >= 4
