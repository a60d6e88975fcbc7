"""The rewards of a run by name: what each said in training and on held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from customized_grpo.pages.curves import held_out_line, lines_figure, read_series, training_line
from customized_grpo.pages.figures import Figure
from customized_grpo.pages.plots.charts import SMALL
from customized_grpo.pages.plots.numbers import NONE, interval_text, number
from customized_grpo.pages.run_data import RunData

SCORE = "score/"
"""What the metric of a reward's mean begins with; its name follows."""


@dataclass(frozen=True)
class RewardRow:
    """One reward.

    Attributes:
        name: Its name.
        training: Mean over the samples of the first iteration and of the last.
        std: Standard deviation over all samples of the last iteration.
        nan_share: Share of all training samples that it could not score.
        held_out: (number, interval) of the base, of the tuned model and of their difference; empty when they
            were not measured.
    """

    name: str
    training: str
    std: str
    nan_share: str
    held_out: Sequence[tuple[str, str]]


def reward_names(run: RunData) -> list[str]:
    """Return the names of the run's rewards, in the recipe's order."""
    names: dict[str, None] = {}
    # of both: a run whose base alone has been evaluated has no training record yet
    for record in [*run.train[:1], *run.evals[:1]]:
        keys = [key.removeprefix(SCORE) for key in record if key.startswith(SCORE)]
        # "score/NAME/std" and the like belong to NAME
        names |= dict.fromkeys(key for key in keys if "/" not in key)
    return list(names)


def reward_rows(run: RunData) -> list[RewardRow]:
    """Return a row for every reward."""
    rows = []
    for name in reward_names(run):
        means = _values(run, f"{SCORE}{name}")
        spread = _values(run, f"{SCORE}{name}/std")
        missing = _values(run, f"{SCORE}{name}/nan_share")
        comparison = run.comparisons.get(f"{SCORE}{name}")
        held_out = []
        if comparison is not None:
            for part, plus in (
                (comparison.base, False),
                (comparison.tuned, False),
                (comparison.difference, True),
            ):
                held_out.append((number(part.mean, plus), interval_text(part, plus)))
        rows.append(
            RewardRow(
                name,
                f"{number(means[0])} \u2192 {number(means[-1])}" if means else NONE,
                number(spread[-1]) if spread else NONE,
                f"{sum(missing) / len(missing):.1%}" if missing else NONE,
                held_out,
            )
        )
    return rows


def reward_figure(run: RunData, name: str) -> Figure | None:
    """Return the curve of one reward, in training and on held-out prompts."""
    key = f"{SCORE}{name}"
    lines: list[Any] = [
        training_line(run, key, "training", "plain"),
        held_out_line(run, key, "held-out", "good"),
    ]
    caption = (
        "Mean score. Training draws noise in its steps and held-out images do not, so the two levels differ; "
        "a training curve that rises alone means that the rows are learnt by heart."
    )
    return lines_figure(run, f"Reward {name}", caption, lines, size=SMALL)


def _values(run: RunData, key: str) -> list[float]:
    series = read_series(run.train, key)
    return [value for value in series.y if value is not None] if series is not None else []
