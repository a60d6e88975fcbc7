"""When denoising decides each quality: the share still open at each step beside the weights of TDW."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from customized_grpo.pages.comparison_data import Record
from customized_grpo.pages.figures import Figure, Section, existing
from customized_grpo.pages.plots import charts
from customized_grpo.pages.plots.frame import Line, XAxis
from customized_grpo.pages.plots.numbers import NONE, number

QUALITIES = ("prompt", "identity")
SOURCES = {"judge": "the held-out judges", "reward": "the training rewards"}
QUARTERS = (0.25, 0.5, 0.75)
"""Progress at which the table of all scores says how much is open."""


@dataclass(frozen=True)
class ScoreRow:
    """One score in the table of all scores.

    Attributes:
        name: The score.
        spread: Standard deviation among continuations from the first noisy step.
        open: Share of the variance that is still open at each of `QUARTERS`.
        centre: Where on the trajectory, from 0 to 1, its decisions are centred, and the interval.
    """

    name: str
    spread: str
    open: Sequence[str]
    centre: tuple[str, str]


def decision_section(decisions: Record) -> Section | None:
    """Return the share still open by step, TDW's weights, and the premise in words.

    Args:
        decisions: What `cgrpo doctor` measured; empty when it measured nothing.

    Returns:
        The section, or None when there is nothing to show.
    """
    if not decisions:
        return None
    points = ", ".join(map(str, decisions["points"]))
    lead = (
        "TDW weighs the prompt early and identity later, as it assumes that denoising decides them in that "
        f"order. Measured with the base model: {decisions['continuations']} continuations from the state "
        f"before the steps {points} of {decisions['prompts']} prompts; the curves are straight in between."
    )
    shares = [_open_shares(decisions, source) for source in SOURCES]
    figures = existing(*shares, _weights(decisions), _calibrated(decisions))
    # The finding in words is `evaluation.decisions.premise`, written into the results by the doctor.
    return Section("When each quality is decided", lead, figures, finding=decisions["premise"])


def score_rows(decisions: Record) -> list[ScoreRow]:
    """Return a row for every score that was measured."""
    rows = []
    for name, curve in decisions["curves"].items():
        shares = curve["share"]
        centre = curve["centre"]
        rows.append(
            ScoreRow(
                name,
                # a variance, of the continuations from the first noisy step
                number(curve["open"][0] ** 0.5),
                # from progress to the nearest state; n steps have n + 1 of them
                [f"{shares[round(quarter * (len(shares) - 1))]:.0%}" for quarter in QUARTERS],
                (NONE, "") if centre is None else _centre(centre),
            )
        )
    return rows


def _centre(centre: Record) -> tuple[str, str]:
    return f"{centre['mean']:.2f}", f"{centre['low']:.2f} to {centre['high']:.2f}"


def _open_shares(decisions: Record, source: str) -> Figure | None:
    """Return the share of both qualities that is still open, by one kind of score; None without any."""
    lines = []
    for quality in QUALITIES:
        curve = decisions["curves"].get(f"{source}/{quality}")
        # a score in which continuations never differ has no share
        if curve is not None and curve["share"][0] > 0:
            lines.append(_line(quality, curve))
    if not lines:
        return None
    title = f"Still open, by {SOURCES[source]}"
    # n steps have n + 1 states, the noise and the finished image among them
    axis = XAxis("step", len(lines[0].x) - 1, steps=True)
    caption = (
        "Share of the variance among continuations that the steps from here on decide; it starts at 100 % "
        "and falls where a quality is decided. Bands are 95 % intervals over prompts."
    )
    chart = charts.line_chart(lines, axis, title=title, y_range=(0.0, 1.0), percent=True)
    return Figure(title, chart, caption)


def _line(quality: str, curve: Record) -> Line:
    shares = curve["share"]
    # the state before step i stands at the step's left edge, the finished image at the right end
    x = [float(step) for step in range(len(shares))]
    bounds = {"low": curve["share_low"], "high": curve["share_high"]}
    return Line(quality, x, shares, quality, **bounds, show_value=False)


def _weights(decisions: Record) -> Figure:
    caption = (
        "The share of each step's learning signal that comes from the prompt advantage; identity has the "
        "rest. Pale steps draw no noise and are not trained; the last step never is."
    )
    return _step_weights(decisions, "Weights of the schedule by step", decisions["prompt_weights"], caption)


def _calibrated(decisions: Record) -> Figure | None:
    """Return the weights that the decisions call for; None where they could not be calibrated."""
    calibrated = decisions["calibrated"]
    if calibrated is None:
        return None
    # steps without noise have no measured weight, and so no interval
    widths = [calibrated["high"][step] - calibrated["low"][step] for step in decisions["noisy_steps"]]
    caption = (
        f"What the decisions by {SOURCES[calibrated['source']]} call for: the prompt's share of all that a "
        "step decides, from 10 to 90 %. The 95 % interval of a weight over prompts is "
        f"{sum(widths) / len(widths):.0%} wide on average. The option --calibrate writes them for a recipe."
    )
    return _step_weights(decisions, "Calibrated weights by step", calibrated["weights"], caption)


def _step_weights(decisions: Record, title: str, weights: Sequence[float], caption: str) -> Figure:
    trained = [step in decisions["noisy_steps"] for step in range(len(weights))]
    return Figure(title, charts.step_weights(weights, title=title, trained=trained), caption)
