"""The plane of a comparison: identity against prompt following, one point an arm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from customized_grpo.pages.comparison_data import ArmView, ComparisonData, Pair
from customized_grpo.pages.figures import Figure
from customized_grpo.pages.plots.scatter import Point, scatter

NAMED = 9
"""Arms whose names fit beside their points; with more of them only the numbers stand there."""

LONGEST_NAME = 18
"""Characters of a name in a chart."""

LONGEST_NAME_IN_PLANE = 26
"""Characters of a name in the plane, which is larger."""


@dataclass(frozen=True)
class Pareto:
    """The plane of the two qualities.

    Attributes:
        figure: The plane.
        legend: The arms to name below it, where it shows only their numbers.
    """

    figure: Figure
    legend: Sequence[ArmView]


def pareto(data: ComparisonData) -> Pareto | None:
    """Return identity against prompt following, one point an arm; None before an arm has both."""
    pair = data.pair
    if pair is None:
        return None
    others = [arm for arm in data.arms if arm.weight is None and _is_measured(arm, pair)]
    # the first point gets the best place for its name, see `scatter`
    others.sort(key=lambda arm: not arm.highlighted)
    numbered = len(others) > NAMED
    points: list[Point] = []
    for arm in others:
        label = str(arm.number) if numbered else shorten(arm.title, LONGEST_NAME_IN_PLANE)
        points += _points(arm, pair, label)
    front: list[Point] = []
    for arm in data.front:
        front += _points(arm, pair, f"w={arm.weight:g}")
    beside: list[Point] = []  # dominates like the front, but is not joined to it
    base_identity = data.base.get(pair.identity)
    base_prompt = data.base.get(pair.prompt)
    if base_identity is not None and base_prompt is not None:
        cross = Point("base", base_identity, base_prompt, "base", "base", "cross")
        if data.base_counts:
            beside.append(cross)
        else:
            points.append(cross)
    chart = scatter(
        points,
        beside=beside,
        front=front,
        title=f"{pair.prompt_name} against {pair.identity_name.lower()}, by arm",
        x_label=pair.identity_name.lower(),
        y_label=pair.prompt_name.lower(),
    )
    # by number, in which readers look it up; `others` is in the order of drawing
    legend = sorted(others, key=lambda arm: arm.number) if numbered else ()
    return Pareto(Figure("Identity against prompt", chart, _plane_caption(data)), legend)


def _plane_caption(data: ComparisonData) -> str:
    caption = (
        "Further right the subject is kept better, further up the prompt is followed better. Large points "
        "are means over the seeds at the end of training, whiskers their 95 % intervals, small dots the "
        "single runs. "
    )
    if data.front:
        caption += (
            "The line joins plain weighted sums in order of w, the constant weight of the prompt reward. An "
            "arm in the shade is matched or beaten on both qualities by one of them"
            + (" or by the base. " if data.base_counts else ". ")
        )
    return caption + "The cross is the base model. The numbers are in the table below."


def _is_measured(arm: ArmView, pair: Pair) -> bool:
    return bool(arm.measurement("final", pair.identity) and arm.measurement("final", pair.prompt))


def _points(arm: ArmView, pair: Pair, label: str) -> list[Point]:
    """Return the point of an arm with the dots of its runs; nothing before it has both qualities."""
    x = arm.measurement("final", pair.identity)
    y = arm.measurement("final", pair.prompt)
    if x is None or y is None:
        return []
    seeds = []
    for run in arm.finished:
        # the last evaluation, as the mean that the dot belongs to is of the end of training
        last = run["evals"][-1] if run.get("evals") else {}
        identity = last.get(pair.identity)
        prompt = last.get(pair.prompt)
        if identity is not None and prompt is not None:
            seeds.append((float(identity), float(prompt)))
    shape = "ring" if arm.weight is not None else "disc"
    return [Point(arm.title, x, y, arm.colour, label, shape, seeds)]


def shorten(words: str, longest: int = LONGEST_NAME) -> str:
    """Return the words, cut where a chart has no room for more."""
    # one place is for the ellipsis, which follows a letter and no blank
    return words if len(words) <= longest else words[: longest - 1].rstrip() + "\u2026"
