"""`cgrpo doctor`: the problems of a recipe, found before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from customized_grpo.cli.common import (
    JsonFile,
    Overrides,
    Recipe,
    Trust,
    problem_count,
    table,
    write_json_file,
)
from customized_grpo.errors import UserError

if TYPE_CHECKING:
    from customized_grpo.evaluation.step_gains import MetricGains, StepGains
    from customized_grpo.training.doctor import Diagnosis, RewardHealth

SOURCES = {"reward": "training rewards", "judge": "held-out judges"}


def doctor(
    recipe: Recipe,
    overrides: Overrides = None,
    prompts: Annotated[int, typer.Option(min=2, help="Training prompts to draw samples for.")] = 16,
    json_file: JsonFile = None,
    trust: Trust = None,
) -> None:
    """Examine a recipe without training it.

    Draws the samples of one iteration and prints their rewards, how far the rewards conflict, whether
    training sees the samples as they were drawn, and the denoising steps at which prompt and identity scores
    arise. Problems are printed with their fixes and make the exit status 2.

    For example: cgrpo doctor toybox rollout.eta=0.6
    """
    from customized_grpo.config import load_config

    config = load_config(recipe, overrides or ())

    from customized_grpo.training.doctor import diagnose

    diagnosis = diagnose(config, prompts)
    print(render(diagnosis))
    write_json_file(json_file, diagnosis.to_json())
    if diagnosis.problems:
        raise UserError(f"{problem_count(len(diagnosis.problems))}; see above for what to do")


def render(diagnosis: Diagnosis) -> str:
    """Return a diagnosis as plain text: rewards, their conflict, gains by step, and problems."""
    group_size = diagnosis.samples // diagnosis.prompts
    parts = [
        f"{diagnosis.prompts} prompts, {group_size} samples each, as in the first iteration of training",
        _rewards_table(diagnosis.rewards),
        "\n".join([*_conflict_lines(diagnosis), _ratio_line(diagnosis)]),
        *_gains_tables(diagnosis.step_gains),
        diagnosis.premise,
        *(f"note: {note}" for note in diagnosis.notes),
    ]
    if diagnosis.problems:
        lines = [f"problem: {problem.problem}\n    fix: {problem.fix}" for problem in diagnosis.problems]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _rewards_table(rewards: Sequence[RewardHealth]) -> str:
    rows = [["reward", "kind", "mean", "in-group std", "groups without spread", "not scored"]]
    for reward in rewards:
        numbers = [f"{reward.mean:.3f}", f"{reward.group_std:.3f}"]
        shares = [f"{reward.zero_std_groups:.1%}", f"{reward.nan_samples:.1%}"]
        rows.append([reward.name, reward.kind, *numbers, *shares])
    return table(rows)


def _conflict_lines(diagnosis: Diagnosis) -> list[str]:
    if len({reward.kind for reward in diagnosis.rewards} - {"quality"}) < 2:
        return ["conflict of prompt and identity: none, as only one of them is rewarded"]
    if math.isnan(diagnosis.rho):
        return [
            "conflict of the rewards: unknown, because no group varies in both prompt and identity reward"
        ]
    lines = [
        f"correlation of prompt and identity reward inside groups: rho = {diagnosis.rho:+.3f}",
        f"advantages in conflict: {diagnosis.conflict:.1%} of the samples "
        f"({diagnosis.conflict_null:.1%} in Gaussian rewards of this rho)",
    ]
    if diagnosis.sars is not None:
        sars = diagnosis.sars
        pairs = ", ".join(f"{weight:.3f} -> {matched:.3f}" for weight, matched in sars.weights)
        lines += [
            f"SARS at gamma {sars.gamma:g} pulls towards equal weights by k = {sars.pull:.3f}: "
            "on average it acts like",
            f"  prompt weights {pairs} and a step {sars.step_scale:.2f} times as long",
        ]
    return lines


def _ratio_line(diagnosis: Diagnosis) -> str:
    if diagnosis.ratio_deviation is None:
        return "first-pass ratio: not measured, because there is no sample to train on"
    return (
        f"first-pass ratio: deviates from 1 by at most {diagnosis.ratio_deviation:.1e} "
        f"(limit {diagnosis.ratio_tolerance:.0e})"
    )


def _gains_tables(gains: StepGains) -> list[str]:
    """Return a table for each source that measured both prompt and identity."""
    tables = []
    for source, name in SOURCES.items():
        metrics = [gains.metrics.get(f"{source}/{kind}") for kind in ("prompt", "identity")]
        measured = [metric for metric in metrics if metric is not None]
        if len(measured) == 2:
            title = f"gains of the predicted clean image at each step, by the {name}"
            tables.append(f"{title}\n{_gains_table(gains, measured)}")
    return tables


def _gains_table(gains: StepGains, metrics: Sequence[MetricGains]) -> str:
    rows = [["step", "sigma", "prompt weight", "prompt gain", "identity gain"]]
    for step, weight in enumerate(gains.prompt_weights):
        cells = [_gain(metric, step) for metric in metrics]
        rows.append([str(step), f"{gains.sigmas[step]:.3f}", f"{weight:.3f}", *cells])
    totals = [f"{metric.scores[0]:.3f} -> {metric.scores[-1]:.3f}" for metric in metrics]
    rows.append(["all", "", "", *totals])
    rows.append(["centre", "", "", *(_centre(metric) for metric in metrics)])
    return table(rows)


def _gain(metric: MetricGains, step: int) -> str:
    return f"{metric.gain[step]:+.3f} [{metric.low[step]:+.3f}, {metric.high[step]:+.3f}]"


def _centre(metric: MetricGains) -> str:
    """Return where on the trajectory, from 0 to 1, the gains are centred."""
    if metric.centre is None:
        return "none: no clear gain"
    return f"{metric.centre.mean:.3f} [{metric.centre.low:.3f}, {metric.centre.high:.3f}]"
