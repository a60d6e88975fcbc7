"""`cgrpo doctor`: what is wrong with a recipe, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from customized_grpo.cli.common import Trust, table
from customized_grpo.errors import UserError

if TYPE_CHECKING:
    from customized_grpo.evaluation.step_gains import MetricGains, StepGains
    from customized_grpo.training.doctor import Diagnosis, RewardHealth

SOURCES = {"reward": "training rewards", "judge": "held-out judges"}


def doctor(
    recipe: Annotated[str, typer.Argument(help="Preset, or path of a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SECTION.KEY=VALUE", help="Settings that replace the recipe's."),
    ] = None,
    prompts: Annotated[int, typer.Option(min=2, help="Training prompts to draw samples for.")] = 16,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the findings to this file.")
    ] = None,
    trust: Trust = None,
) -> None:
    """Examine a recipe without training it.

    Draws one iteration's samples and shows what the rewards say of them, how far they conflict, whether
    training sees what was sampled, and at which denoising steps prompt and identity scores arise. What needs
    action is printed with its fix, and makes the exit status 2.

    For example: cgrpo doctor toybox rollout.eta=0.6
    """
    from customized_grpo.config import load_config

    config = load_config(recipe, overrides or ())
    if json_file is not None and (json_file.is_dir() or not json_file.parent.is_dir()):
        raise UserError(f"--json {json_file}: not a file in an existing folder")

    from customized_grpo.training.doctor import diagnose

    diagnosis = diagnose(config, prompts)
    print(render(diagnosis))
    if json_file is not None:
        _write(json_file, diagnosis)
    if count := len(diagnosis.problems):
        raise UserError(f"{count} problem{'s' * (count > 1)} found; see above for what to do")


def _write(file: Path, diagnosis: Diagnosis) -> None:
    from customized_grpo.runs.folder import RunFolder

    try:
        RunFolder(file.parent).write_json(file.name, diagnosis.to_json())
    except OSError as error:
        raise UserError(f"--json {file}: {error.strerror}") from error


def render(found: Diagnosis) -> str:
    """Return a diagnosis as plain text: rewards, their conflict, gains by step, and what to act on."""
    group_size = found.samples // found.prompts
    parts = [
        f"{found.prompts} prompts, {group_size} samples each, as the first iteration of training draws them",
        _rewards_table(found.rewards),
        "\n".join([*_conflict_lines(found), _ratio_line(found)]),
        *_gains_tables(found.step_gains),
        found.premise,
    ]
    if found.problems:
        parts.append("\n".join(f"problem: {p.problem}\n    fix: {p.fix}" for p in found.problems))
    return "\n\n".join(parts)


def _rewards_table(rewards: Sequence[RewardHealth]) -> str:
    rows = [["reward", "kind", "mean", "in-group std", "groups without spread", "not scored"]]
    for reward in rewards:
        numbers = [f"{reward.mean:.3f}", f"{reward.group_std:.3f}"]
        shares = [f"{reward.zero_std_groups:.1%}", f"{reward.nan_samples:.1%}"]
        rows.append([reward.name, reward.kind, *numbers, *shares])
    return table(rows)


def _conflict_lines(found: Diagnosis) -> list[str]:
    if math.isnan(found.rho):
        return ["prompt and identity reward do not both vary in any group: nothing to say of their conflict"]
    lines = [
        f"correlation of prompt and identity reward inside groups: rho = {found.rho:+.3f}",
        f"advantages in conflict: {found.conflict:.1%} of the samples "
        f"({found.conflict_null:.1%} in Gaussian rewards of this rho)",
    ]
    if found.sars is not None:
        pairs = ", ".join(f"{weight:.3f} -> {matched:.3f}" for weight, matched in found.sars.weights)
        lines += [
            f"SARS at gamma {found.sars.gamma:g} pulls towards equal weights by k = {found.sars.pull:.3f}: "
            "on average it acts like",
            f"  prompt weights {pairs} and a step {found.sars.step_scale:.2f} times as long",
        ]
    return lines


def _ratio_line(found: Diagnosis) -> str:
    if found.ratio_deviation is None:
        return "first-pass ratio: not measured, as there is no sample to train on"
    return (
        f"first-pass ratio: deviates from 1 by at most {found.ratio_deviation:.1e} "
        f"(limit {found.ratio_tolerance:.0e})"
    )


def _gains_tables(gains: StepGains) -> list[str]:
    """Return a table of each source that measured both prompt and identity."""
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
        cells = [f"{m.gain[step]:+.3f} [{m.low[step]:+.3f}, {m.high[step]:+.3f}]" for m in metrics]
        rows.append([str(step), f"{gains.sigmas[step]:.3f}", f"{weight:.3f}", *cells])
    rows.append(["all", "", "", *(f"{m.scores[0]:.3f} -> {m.scores[-1]:.3f}" for m in metrics)])
    rows.append(["centre", "", "", *(_centre(metric) for metric in metrics)])
    return table(rows)


def _centre(metric: MetricGains) -> str:
    """Return where on the trajectory, from 0 to 1, the gains are centred."""
    if metric.centre is None:
        return "none: no clear gain"
    return f"{metric.centre.mean:.3f} [{metric.centre.low:.3f}, {metric.centre.high:.3f}]"
