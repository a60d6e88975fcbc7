"""`cgrpo evaluate`: a run on its own held-out prompts, or any generator on a public benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from customized_grpo.cli.common import Trust, check_run, results_table, table
from customized_grpo.errors import UserError

if TYPE_CHECKING:
    from customized_grpo.benchmarks.compare import Comparison
    from customized_grpo.benchmarks.results import Result

Benchmark = Literal["dreambench", "dreambenchpp", "omnicontext", "manifest"]


def evaluate(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder of a run; with --benchmark also a diffusers folder or a hub id; with --against also "
            "the results.json of a benchmark."
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Settings of the generator: steps=N, batch_size=N, model.KEY=VALUE."
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            "--samples-per-prompt",
            "--samples",
            min=1,
            help="Images per prompt; by default the recipe's, or 1.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the initial noise; by default the recipe's, or 0.")
    ] = None,
    benchmark: Annotated[Benchmark | None, typer.Option(help="Public benchmark to evaluate on.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder or file of the benchmark, as it is published.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for pictures and results; by default runs/BENCHMARK-SOURCE.")
    ] = None,
    encoder: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=PATH]", help="Reward that scores the pictures; may be repeated."),
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint of a vision-language model.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="Name of the model there.")] = None,
    judge_key_env: Annotated[
        str | None, typer.Option(help="Environment variable that holds its API key; by default none is sent.")
    ] = None,
    reference_mode: Annotated[
        Literal["single", "all"],
        typer.Option(help="Compare with the given reference, or with all photos of the subject (mean)."),
    ] = "single",
    segment: Annotated[
        Literal["none", "reference"],
        typer.Option(help="Whether references are cut out with their masks for identity scores."),
    ] = "none",
    subject: Annotated[
        list[str] | None, typer.Option(help="Evaluate only this subject; may be repeated.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Evaluate at most so many prompts, spread over the subjects.")
    ] = None,
    lora: Annotated[Path | None, typer.Option(help="Adapter to put on a diffusers folder or hub id.")] = None,
    base: Annotated[bool, typer.Option("--base", help="Evaluate a run without what it learnt.")] = False,
    against: Annotated[
        Path | None, typer.Option(help="results.json of another benchmark run, to compare with.")
    ] = None,
    across: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD",
            help="Compare although steps, guidance, height, width or seed differ; may be repeated.",
        ),
    ] = None,
    trust: Trust = None,
) -> None:
    """Judge a run, or any generator on a benchmark.

    Without --benchmark: base and tuned model of a run, on the held-out prompts of its recipe and from the
    same noise. With it: one generator; pictures that are there already are used again. All scores come with
    95 % intervals clustered by subject.

    For example: cgrpo evaluate runs/toybox

    cgrpo evaluate black-forest-labs/FLUX.1-Kontext-dev --benchmark dreambench --data dreambooth --samples 4

    cgrpo evaluate tuned/results.json --against base/results.json
    """
    given = {
        "--data": data, "--out": out, "--encoder": encoder, "--judge-url": judge_url,
        "--judge-model": judge_model, "--judge-key-env": judge_key_env,
        "--subject": subject, "--limit": limit, "--lora": lora,
        "--base": base, "settings": settings,
    }  # fmt: skip
    if benchmark is None:
        if used := [name for name, value in given.items() if value]:
            raise UserError(
                f"{', '.join(used)}: only used with --benchmark",
                "Add --benchmark dreambench, dreambenchpp, omnicontext or manifest.",
            )
        if against is not None:
            _compare(Path(source), against, across or ())
        else:
            _evaluate_run(check_run(Path(source)), samples, seed)
        return
    if data is None:
        raise UserError(f"--benchmark {benchmark} needs --data", "Name the folder of its published files.")
    if (judge_url is None) != (judge_model is None):
        raise UserError("--judge-url and --judge-model are needed together")

    from customized_grpo.benchmarks.encoders import JudgeEndpoint
    from customized_grpo.benchmarks.run import PAGE, RESULT, Request, run_benchmark

    outcome = run_benchmark(
        Request(
            source=source,
            benchmark=benchmark,
            data=data,
            out=out,
            encoders=encoder or (),
            judge=None
            if judge_url is None or judge_model is None
            else JudgeEndpoint(judge_url, judge_model, judge_key_env),
            reference_mode=reference_mode,
            segment=segment,
            samples=samples or 1,
            subjects=subject or (),
            limit=limit,
            seed=seed or 0,
            settings=settings or (),
            lora=lora,
            base=base,
            against=against,
            across=across or (),
        )
    )
    if outcome is None:  # of several processes, the main one tells
        return
    folder, result, comparison = outcome
    print(_result_table(result))
    if comparison is not None:
        print(f"\n{_comparison_table(comparison)}")
    print(f"\nresults: {folder / RESULT}\nreport: {folder / PAGE}")


def _evaluate_run(run: Path, samples: int | None, seed: int | None) -> None:
    from customized_grpo.training.evaluate import evaluate as judge

    result = judge(run, samples_per_prompt=samples, seed=seed)
    print(results_table(result["base"], result["tuned"], result["difference"]))


def _compare(after: Path, before: Path, across: Sequence[str]) -> None:
    from customized_grpo.benchmarks.compare import compare
    from customized_grpo.benchmarks.results import read_result

    print(_comparison_table(compare(read_result(before), read_result(after), across)))


def _result_table(result: Result) -> str:
    """Return means and intervals as table text, warnings first."""
    metrics = list(result.summary[0]["metrics"])
    rows = [["", "pictures", "subjects", *metrics]]
    for part in result.summary:
        cells = [_cell(part["metrics"][metric]) for metric in metrics]
        rows.append([part["name"], str(part["pictures"]), str(part["subjects"]), *cells])
    return "\n".join([*(f"warning: {text}" for text in result.warnings), table(rows)])


def _cell(value: dict[str, float | None]) -> str:
    if value["mean"] is None:
        return "-"
    if value["low"] is None:
        return f"{value['mean']:.3f}"
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _comparison_table(comparison: Comparison) -> str:
    rows = [["", comparison.before, comparison.after, "difference", "p (Holm)"]]
    for one in comparison.differences:
        span = one.test.interval
        difference = f"{span.mean:+.3f} [{span.low:+.3f}, {span.high:+.3f}]"
        rows.append([one.metric, f"{one.before:.3f}", f"{one.after:.3f}", difference, f"{one.p_holm:.4f}"])
    return "\n".join([*(f"warning: {text}" for text in comparison.warnings), table(rows)])
