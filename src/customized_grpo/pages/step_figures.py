"""When denoising decides each quality: gains by step beside the weights of TDW, and what they say of them."""

from __future__ import annotations

from collections.abc import Sequence

from customized_grpo.pages.comparison_data import Record, interval
from customized_grpo.pages.plots import charts
from customized_grpo.pages.plots.charts import Level, Line, XAxis
from customized_grpo.pages.plots.numbers import interval_text, number
from customized_grpo.pages.run_figures import Figure, Section

QUALITIES = ("prompt", "identity")

CAPTIONS = {
    "reward": (
        "Gain of the rewards by step",
        "How much a step raises the reward of the picture that the model predicts at that point; bands are "
        "95 % intervals. The two rewards have different units, so compare when they rise, not how far.",
    ),
    "judge": (
        "Gain of the held-out judges by step",
        "The same for the judges that training never saw.",
    ),
}
"""(title, caption) of the gains of each kind of score."""


def step_section(steps: Record) -> Section | None:
    """Gains by step, TDW's weights, and the premise in words.

    Args:
        steps: The step_gains of results.json; empty when they were not measured.

    Returns:
        The section, or None when there is nothing to show.
    """
    if not steps:
        return None
    lead = [
        "TDW weighs the prompt early and identity later, as it assumes that denoising decides them in that "
        "order.",
        *_findings(steps),
        "Progress runs from 0, noise, to 1, the picture. Measured with the base model on "
        f"{steps['samples']} samples of {steps['rows']} prompts.",
    ]
    found = [_gains(steps, "reward"), _weights(steps), _gains(steps, "judge")]
    figures = [figure for figure in found if figure is not None]
    return Section("When each quality is decided", " ".join(filter(None, lead)), figures)


def _gains(steps: Record, kind: str) -> Figure | None:
    """Gains of both qualities by one kind of score, over the steps; None when there are none."""
    lines = []
    for name in QUALITIES:
        entry = steps["metrics"].get(f"{kind}/{name}")
        if entry is not None:
            x = [index + 0.5 for index in range(len(entry["gain"]))]
            lines.append(_line(name, x, entry))
    if not lines:
        return None
    title, caption = CAPTIONS[kind]
    axis = XAxis("step", len(lines[0].x), steps=True)
    return Figure(title, charts.line_chart(lines, axis, title=title, levels=[Level("no gain", 0.0)]), caption)


def _line(name: str, x: Sequence[float], entry: Record) -> Line:
    return Line(
        name, x, entry["gain"], name, low=entry["low"], high=entry["high"], dots=True, show_value=False
    )


def _weights(steps: Record) -> Figure:
    weights, title = steps["prompt_weights"], "Weights of TDW by step"
    trained = [True] * (len(weights) - 1) + [False]
    caption = (
        "The share of each step's learning signal that comes from the prompt advantage; identity has the "
        "rest. The pale last step is never trained."
    )
    return Figure(title, charts.step_weights(weights, title=title, trained=trained), caption)


def _findings(steps: Record) -> list[str]:
    """Return the differences of centres in words or, where there are none, why."""
    found = [
        _premise(steps, "difference", "reward", "rewards"),
        _premise(steps, "judge_difference", "judge", "held-out judges"),
    ]
    return found if any(found) else [str(steps.get("premise") or "")]


def _premise(steps: Record, key: str, kind: str, words: str) -> str:
    """What a difference of centres says about the premise, in a sentence; empty when it was not measured."""
    difference = interval(steps.get(key))
    if difference is None:
        return ""
    centres = [interval((steps["metrics"].get(f"{kind}/{name}") or {}).get("centre")) for name in QUALITIES]
    where = ""
    if centres[0] is not None and centres[1] is not None:
        where = (
            f"the gains in prompt following are centred at progress {centres[0].mean:.2f} and those in "
            f"identity at {centres[1].mean:.2f}: "
        )
    order = "later" if difference.mean >= 0 else "earlier"
    judgement = {
        "up": "which agrees with the premise",
        "down": "which contradicts the premise",
    }.get(difference.verdict, "which does not settle the premise")
    span = interval_text(difference, plus=True)
    return (
        f"By the {words}, {where}identity comes {order} by {number(abs(difference.mean))}"
        + (f" (95 % interval of the difference {span})" if span else "")
        + f", {judgement}."
    )
