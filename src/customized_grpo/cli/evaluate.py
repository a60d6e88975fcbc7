"""`cgrpo evaluate`: the base and the tuned model on held-out prompts."""

from __future__ import annotations

from typing import Annotated

import typer

from customized_grpo.cli.common import Run, check_run, results_table


def evaluate(
    run: Run,
    samples_per_prompt: Annotated[
        int | None, typer.Option(min=1, help="Images per held-out prompt; by default the recipe's.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the initial noise; by default the recipe's.")
    ] = None,
) -> None:
    """Judge the base and the tuned model.

    Both answer the same held-out prompts from the same noise; scores come with 95 % intervals.
    """
    check_run(run)

    from customized_grpo.evaluation.run import evaluate as judge

    result = judge(run, samples_per_prompt=samples_per_prompt, seed=seed)
    print(results_table(result["base"], result["tuned"], result["difference"]))
