"""`cgrpo doctor`: the problems of a recipe, found before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from customized_grpo.cli.common import (
    JsonFile,
    Overrides,
    Recipe,
    Trust,
    output_file,
    problem_count,
    table,
    write_json_file,
)
from customized_grpo.errors import UserError
from customized_grpo.reporting.lines import fitted

if TYPE_CHECKING:
    from customized_grpo.evaluation.decisions import Decisions
    from customized_grpo.statistics.decisions import DecisionCurve
    from customized_grpo.training.doctor import Diagnosis, RewardHealth

SOURCES = {"judge": "held-out judges", "reward": "training rewards"}


def doctor(
    recipe: Recipe,
    overrides: Overrides = None,
    prompts: Annotated[int, typer.Option(min=2, help="Training prompts to draw samples for.")] = 16,
    branch_prompts: Annotated[
        int | None,
        typer.Option(
            min=2, help="Training prompts whose trajectories branch; by default 8, 32 with --calibrate."
        ),
    ] = None,
    continuations: Annotated[
        int, typer.Option(min=2, help="Continuations that are drawn from each branch point.")
    ] = 12,
    points: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Most denoising steps from which they branch, 0: no decision curves; by default 6, 12 with "
            "--calibrate.",
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        output_file("--calibrate", "Write calibrated weights to this file, for schedule.name=calibrated."),
    ] = None,
    page: Annotated[
        Path | None, output_file("--page", "Also write a page with figures to this HTML file.")
    ] = None,
    json_file: JsonFile = None,
    trust: Trust = None,
) -> None:
    """Examine a recipe without training it.

    Draws the samples of one iteration and prints their rewards, how far the rewards conflict, whether
    training sees the samples as they were drawn, and the denoising steps at which prompt and identity are
    decided: from states on the way, continuations are drawn, and how far their scores differ is what is still
    open. What that costs is printed before. With --calibrate the weights of TDW are measured by it. Problems
    are printed with their fixes and make the exit status 2.

    For example: cgrpo doctor toybox rollout.eta=0.6 --page doctor.html
    """
    from customized_grpo.config import load_config

    if calibrate is not None and points == 0:
        raise UserError("--calibrate needs decision curves, which --points 0 leaves out", hint="Drop one.")
    config = load_config(recipe, overrides or ())

    from customized_grpo.training.deciding import Branching
    from customized_grpo.training.doctor import diagnose

    # the file of the weights says of which recipe they are
    calibrates = None if calibrate is None else " ".join([recipe, *(overrides or ())])
    diagnosis = diagnose(config, prompts, Branching(continuations, branch_prompts, points, calibrates))
    print(fitted(render(diagnosis)))
    findings = diagnosis.to_json()
    # files before the error: a recipe with problems is the one whose findings are needed
    write_json_file(json_file, findings)
    if page is not None:
        from customized_grpo.pages.doctor_page import write_doctor_page

        write_doctor_page(findings, recipe, page)
    if calibrate is not None:
        _write_calibration(diagnosis, calibrate)
    if diagnosis.problems:
        raise UserError(f"{problem_count(len(diagnosis.problems))}; see above for what to do")


def _write_calibration(diagnosis: Diagnosis, file: Path) -> None:
    """Write the calibrated weights and say how to use them.

    Raises:
        UserError: There are none.
    """
    if diagnosis.calibration is None:
        raise UserError(
            "nothing could be calibrated: neither judges nor rewards of both prompt and identity differ "
            "among continuations",
            hint="Reward both, measure more prompts, or let the samples differ more: raise rollout.eta.",
        )
    write_json_file(file, diagnosis.calibration)
    print(f"\ncalibrated weights: {file}; use them with schedule.name=calibrated schedule.path={file}")


def render(diagnosis: Diagnosis) -> str:
    """Return a diagnosis as plain text: rewards, their conflict, decisions by step, and problems."""
    # whole groups: samples counts those of all prompts
    group_size = diagnosis.samples // diagnosis.prompts
    parts = [
        f"{diagnosis.prompts} prompts, {group_size} samples each, as in the first iteration of training with "
        f"train.algorithm={diagnosis.algorithm}",
        _rewards_table(diagnosis.rewards),
        "\n".join([*_conflict_lines(diagnosis), _ratio_line(diagnosis)]),
        *(_decision_parts(diagnosis.decisions) if diagnosis.decisions is not None else []),
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
    # quality is added to the combination of the other two, and takes no part in their conflict
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
    if diagnosis.algorithm == "nft":
        return "first-pass ratio: none, as nft has no ratios"
    if diagnosis.ratio_deviation is None:
        return "first-pass ratio: not measured, because there is no sample to train on"
    return (
        f"first-pass ratio: deviates from 1 by at most {diagnosis.ratio_deviation:.1e} "
        f"(limit {diagnosis.ratio_tolerance:.0e})"
    )


def _decision_parts(decisions: Decisions) -> list[str]:
    """Return a table for each source that measured both qualities, one of all scores, and the finding."""
    from customized_grpo.evaluation.decisions import premise

    parts = []
    for source, name in SOURCES.items():
        curves = [decisions.curves.get(f"{source}/{kind}") for kind in ("prompt", "identity")]
        measured = [curve for curve in curves if curve is not None]
        # one of them alone says nothing of which is decided first
        if len(measured) == 2:
            title = f"share of the variance that is still open before each step, by the {name}"
            parts.append(f"{title}\n{_open_table(decisions, measured)}")
    return [*parts, *_calibrated_table(decisions), _scores_table(decisions), premise(decisions)]


def _open_table(decisions: Decisions, curves: Sequence[DecisionCurve]) -> str:
    rows = [["step", "sigma", "prompt weight", "prompt open", "identity open"]]
    for step, weight in enumerate(decisions.prompt_weights):
        cells = [_open(curve, step) for curve in curves]
        rows.append([str(step), f"{decisions.sigmas[step]:.3f}", f"{weight:.3f}", *cells])
    return table(rows)


def _calibrated_table(decisions: Decisions) -> list[str]:
    """Return the weights of calibrated TDW, if there are any."""
    calibrated = decisions.calibrated
    if calibrated is None:
        return []
    rows = [["step", "calibrated prompt weight"]]
    for step, weight in enumerate(calibrated.weights):
        rows.append([str(step), f"{weight:.2f} [{calibrated.low[step]:.2f}, {calibrated.high[step]:.2f}]"])
    title = f"prompt weights that these decisions call for, by the {SOURCES[calibrated.source]}"
    return [f"{title}\n{table(rows)}"]


def _open(curve: DecisionCurve, step: int) -> str:
    return f"{curve.share[step]:.0%} [{curve.share_low[step]:.0%}, {curve.share_high[step]:.0%}]"


def _scores_table(decisions: Decisions) -> str:
    """Return how far continuations differ in each score at first, and when it is decided."""
    rows = [["decided", "std at first", "centre, 0 noise to 1 image"]]
    for name, curve in decisions.curves.items():
        # from a variance to the unit of the score
        rows.append([name, f"{curve.open[0] ** 0.5:.3f}", _centre(curve)])
    return table(rows)


def _centre(curve: DecisionCurve) -> str:
    if curve.centre is None:
        return "none: continuations never differ"
    return f"{curve.centre.mean:.3f} [{curve.centre.low:.3f}, {curve.centre.high:.3f}]"
