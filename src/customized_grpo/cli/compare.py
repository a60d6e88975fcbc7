"""`cgrpo compare`: several runs of every arm of a recipe, or existing runs, and a page that compares them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from customized_grpo.cli.common import Trust, check_run, complete_presets
from customized_grpo.errors import UserError
from customized_grpo.reporting.lines import fitted

Compared = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE|RUN",
        help="Preset, or path of a YAML file, whose arms are trained; or folder of a run.",
        autocompletion=complete_presets,
    ),
]

Further = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SECTION.KEY=VALUE|RUN",
        help="Settings that replace the recipe's; or folders of the other runs.",
    ),
]

OF_RUNS = {"recipe", "overrides", "out"}
"""Parameters that a comparison of existing runs has."""


def compare(
    context: typer.Context,
    recipe: Compared,
    overrides: Further = None,
    arms: Annotated[
        str,
        typer.Option(help="What to compare: core, full, algorithms, or path of a YAML file of arms."),
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
    """Compare arms of a recipe, which it trains, or runs.

    An arm is a method, such as constant weights or SARS with TDW. All arms see the same prompts and the same
    noise. Call it again to continue after an interruption, or to add arms and seeds.

    For example: cgrpo compare toybox --arms core --seeds 5

    With folders of runs nothing is trained: each is paired with the first by held-out image, and the page
    has intervals, images, curves and the settings that differ.

    For example: cgrpo compare runs/naive runs/ours
    """
    if names_run(recipe, overrides or ()):
        _check_options(context)
        _compare_runs([recipe, *(overrides or ())], out)
        return

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


def names_run(first: str, others: Sequence[str]) -> bool:
    """Return whether a comparison is of runs that are there: a folder is no recipe.

    Raises:
        UserError: Recipes and runs are mixed.
    """
    from customized_grpo.config import preset_names

    # a preset wins over a folder of its name here, as it does for every other verb
    if first not in preset_names() and Path(first).is_dir():
        return True
    folders = [other for other in others if "=" not in other and Path(other).is_dir()]
    if folders:
        raise UserError(
            f"{folders[0]} is a folder, and {first} is not",
            hint="Give only folders of runs, or a recipe and its settings.",
        )
    return False


def _check_options(context: typer.Context) -> None:
    """Refuse options that mean nothing where nothing is trained.

    Raises:
        UserError: Names them.
    """
    given = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        # only what was typed: a default is no wish of the user's
        if source is not None and source.name == "COMMANDLINE" and parameter.name not in OF_RUNS:
            given.append(parameter.opts[0])
    if given:
        raise UserError(
            f"{', '.join(given)}: of no use in a comparison of existing runs, which trains nothing",
            hint="Leave it out; --out is the folder of the page.",
        )


def _compare_runs(runs: Sequence[str], out: Path | None) -> None:
    """Compare runs that are there, and print what is found."""
    # the name of a folder may hold an equals sign
    settings = [run for run in runs if "=" in run and not Path(run).exists()]
    if settings:
        raise UserError(
            f"{settings[0]}: a comparison of existing runs takes no settings",
            hint="Give folders of runs alone.",
        )
    folders = [check_run(Path(run)) for run in runs]

    from customized_grpo.comparison.existing_run import compare_runs

    results, page = compare_runs(folders, out)
    print(fitted("\n".join([*results["verdicts"], *(f"note: {note}" for note in results["notes"])])))
    print(f"page: {page}")
