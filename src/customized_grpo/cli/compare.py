"""`cgrpo compare`: several runs of every arm of a recipe, and a page that compares the arms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from customized_grpo.cli.common import Overrides, Recipe, Trust


def compare(
    recipe: Recipe,
    overrides: Overrides = None,
    arms: Annotated[
        str, typer.Option(help="What to compare: core, full, or path of a YAML file of arms.")
    ] = "core",
    only: Annotated[list[str] | None, typer.Option(help="Run only this arm; repeatable.")] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="Weights by `cgrpo doctor RECIPE --calibrate`, for arms of calibrated TDW; without it these "
            "are left out."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of runs of each arm.")] = 5,
    first_seed: Annotated[int, typer.Option(min=0, help="run.seed of the first run of each arm.")] = 0,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side; by default one per core or GPU.")
    ] = None,
    threads: Annotated[
        int, typer.Option(min=1, help="Threads of each run on a CPU; part of what makes a run repeatable.")
    ] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder; by default runs/compare-RECIPE.")] = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(
            help="results.json or results.json.gz of another comparison of this recipe: its runs join the "
            "page and are not trained again; repeatable."
        ),
    ] = None,
    doctor: Annotated[
        bool, typer.Option(help="Let `cgrpo doctor` examine the recipe before the first run.")
    ] = True,
    report_only: Annotated[
        bool, typer.Option("--report-only", help="Train nothing, only write the page again.")
    ] = False,
    trust: Trust = None,
) -> None:
    """Train arms x seeds of a recipe and compare them.

    An arm is a method, such as constant weights or SARS with TDW. All arms see the same prompts and the same
    noise. Call it again to continue after an interruption, or to add arms and seeds.

    For example: cgrpo compare toybox --arms core --seeds 5
    """
    from customized_grpo.comparison.arms import calibrated, load_arms
    from customized_grpo.comparison.plan import make_plan

    chosen, left_out = calibrated(load_arms(arms, only or ()), calibration)
    if left_out:
        print(f"left out without --calibration FILE: {', '.join(left_out)}")
    plan = make_plan(
        recipe,
        overrides or (),
        chosen,
        range(first_seed, first_seed + seeds),
        folder=out,
        threads=threads,
    )

    # after the plan, whose mistakes should not wait for the import of torch
    from customized_grpo.comparison.run import run_comparison

    # by Exit, because click ignores what a verb returns
    status = run_comparison(plan, jobs=jobs, examine=doctor, train=not report_only, also=also or ())
    raise typer.Exit(status)
