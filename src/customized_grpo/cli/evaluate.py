"""`cgrpo evaluate`: a run on the held-out prompts of its own recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import typer

from customized_grpo.cli.common import Run, Trust, check_run, fits, table
from customized_grpo.libraries import undisturbed_imports

Intervals = Mapping[str, Mapping[str, float]]
"""{metric: {"mean", "low", "high"}}, low and high bounding the 95 % interval."""


def evaluate(
    run: Run,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples-per-prompt",
            "--samples",
            min=1,
            help="Images for each prompt; by default as many as in the recipe.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the initial noise; by default the recipe's.")
    ] = None,
    trust: Trust = None,
) -> None:
    """Evaluate a run on its held-out prompts.

    Draws the prompts with the base model and with the tuned one, from the same noise, and prints the scores
    of both and their difference. The 95 % intervals are clustered by subject. The run folder gets
    evaluation.json.

    For example: cgrpo evaluate runs/toybox

    A public benchmark is another command: cgrpo benchmark run
    """
    # before the imports below, which take seconds
    check_run(run)

    with undisturbed_imports():
        from customized_grpo.training.evaluate import evaluate as evaluate_run
        from customized_grpo.training.evaluate import write_evaluation

    result = evaluate_run(run, samples_per_prompt=samples, seed=seed)
    print(results_table(result["base"], result["tuned"], result["difference"]))  # also if the disk is full
    write_evaluation(run, result)


def results_table(base: Intervals, tuned: Intervals, difference: Intervals) -> str:
    """Return the metrics as aligned text: base, tuned and their difference, each with its 95 % interval.

    A terminal that is too narrow for that gets the interval of the difference alone.
    """
    rows = [["", "base", "tuned", "difference"]]
    short = [["", "base", "tuned", "difference with its 95 % interval"]]
    # all three have the same metrics: the tuned model is judged on the same rows
    for metric in base:
        change = _interval(difference[metric])
        rows.append([metric, _interval(base[metric]), _interval(tuned[metric]), change])
        short.append([metric, f"{base[metric]['mean']:.3f}", f"{tuned[metric]['mean']:.3f}", change])
    return table(rows) if fits(rows) else table(short)


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
