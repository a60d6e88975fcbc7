"""When denoising decides each quality: gains by step beside the weights of TDW, and its premise in words."""

from __future__ import annotations

from collections.abc import Sequence

from customized_grpo.pages.comparison_data import Record
from customized_grpo.pages.figures import Figure, Section, existing
from customized_grpo.pages.plots import charts
from customized_grpo.pages.plots.frame import Level, Line, XAxis

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
    """Return gains by step, TDW's weights, and the premise in words.

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
        # The finding in words is `evaluation.step_gains.premise`, written into the results by the doctor.
        steps.get("premise") or "",
        "Progress runs from 0, noise, to 1, the picture. Measured with the base model on "
        f"{steps['samples']} samples of {steps['rows']} prompts.",
    ]
    figures = existing(_gains(steps, "reward"), _weights(steps), _gains(steps, "judge"))
    return Section("When each quality is decided", " ".join(filter(None, lead)), figures)


def _gains(steps: Record, kind: str) -> Figure | None:
    """Return the gains of both qualities by one kind of score, over the steps; None when there are none."""
    lines = []
    for name in QUALITIES:
        entry = steps["metrics"].get(f"{kind}/{name}")
        if entry is not None:
            # A gain is of a whole step, so it stands in the step's middle.
            x = [step + 0.5 for step in range(len(entry["gain"]))]
            lines.append(_line(name, x, entry))
    if not lines:
        return None
    title, caption = CAPTIONS[kind]
    axis = XAxis("step", len(lines[0].x), steps=True)
    picture = charts.line_chart(lines, axis, title=title, levels=[Level("no gain", 0.0)])
    return Figure(title, picture, caption)


def _line(name: str, x: Sequence[float], entry: Record) -> Line:
    return Line(
        name, x, entry["gain"], name, low=entry["low"], high=entry["high"], dots=True, show_value=False
    )


def _weights(steps: Record) -> Figure:
    title = "Weights of TDW by step"
    weights = steps["prompt_weights"]
    trained = [True] * (len(weights) - 1) + [False]
    caption = (
        "The share of each step's learning signal that comes from the prompt advantage; identity has the "
        "rest. The pale last step is never trained."
    )
    return Figure(title, charts.step_weights(weights, title=title, trained=trained), caption)
