"""`cgrpo benchmark`: any generator on a public benchmark, and two results of one compared."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from customized_grpo import keys
from customized_grpo.cli.common import Trust, check_source, table
from customized_grpo.errors import UserError
from customized_grpo.libraries import undisturbed_imports

if TYPE_CHECKING:
    from customized_grpo.benchmarks.compare import PairedResult
    from customized_grpo.benchmarks.encoders import JudgeEndpoint
    from customized_grpo.benchmarks.results import Result

app = typer.Typer(help="Score generators on public benchmarks; compare results.", no_args_is_help=True)


class BenchmarkName(StrEnum):
    """The benchmarks whose published files can be read, and a manifest of the user's own rows."""

    dreambench = "dreambench"
    dreambenchpp = "dreambenchpp"
    omnicontext = "omnicontext"
    manifest = "manifest"


class ReferenceMode(StrEnum):
    """The photos that an image is compared with."""

    single = "single"
    all = "all"


class Segment(StrEnum):
    """What is cut out with its mask before identity is scored."""

    none = "none"
    reference = "reference"


Across = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FIELD", help="Compare although steps, guidance, height, width or seed differ; repeatable."
    ),
]


@app.command()
def run(
    source: Annotated[str, typer.Argument(help='Run, "toybox", folder in diffusers layout, or hub id.')],
    name: Annotated[BenchmarkName, typer.Argument(help="The benchmark; manifest: rows of your own.")],
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Settings of the generator: steps=N, batch_size=N, model.KEY=VALUE."
        ),
    ] = None,
    *,
    data: Annotated[Path, typer.Option(help="Folder or file of the benchmark, as it is published.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for images and results; by default runs/NAME-SOURCE.")
    ] = None,
    samples: Annotated[
        int, typer.Option("--samples-per-prompt", "--samples", min=1, help="Images for each prompt.")
    ] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the initial noise.")] = 0,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Use at most this many prompts, spread over the subjects.")
    ] = None,
    subject: Annotated[list[str] | None, typer.Option(help="Use only this subject; repeatable.")] = None,
    lora: Annotated[
        Path | None, typer.Option(help="Adapter in diffusers' format to put on a model that is not a run.")
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Use a run's model before tuning.")] = False,
    encoder: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=PATH]", help="Reward that scores the images; repeatable."),
    ] = None,
    judge_url: Annotated[
        str | None, typer.Option(help="OpenAI-compatible endpoint of a vision-language model.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="Name of the model at --judge-url.")] = None,
    judge_key_env: Annotated[
        str | None, typer.Option(help="Environment variable with its API key; by default no key is sent.")
    ] = None,
    reference_mode: Annotated[
        ReferenceMode, typer.Option(help="Compare with the given reference, or with all of the subject.")
    ] = ReferenceMode.single,
    segment: Annotated[
        Segment, typer.Option(help="Cut references out with their masks for identity scores, or nothing.")
    ] = Segment.none,
    against: Annotated[
        Path | None, typer.Option(help="results.json of an earlier benchmark run to compare with.")
    ] = None,
    across: Across = None,
    trust: Trust = None,
) -> None:
    """Score a generator on a benchmark.

    Draws one image or more for each prompt, scores them and writes results.json and report.html. Images that
    are there already are used again. The 95 % intervals are clustered by subject.

    For example: cgrpo benchmark run runs/dog dreambench --data dreambooth/dataset --limit 60
    """
    # before the imports below, which take seconds
    check_source(source)
    judge = _judge(judge_url, judge_model, judge_key_env)

    with undisturbed_imports():
        from customized_grpo.benchmarks.run import PAGE, RESULT, BenchmarkRequest, run_benchmark

    outcome = run_benchmark(
        BenchmarkRequest(
            source=source,
            benchmark=name.value,
            data=data,
            out=out,
            encoders=encoder or (),
            judge=judge,
            reference_mode=reference_mode.value,
            segment=segment.value,
            samples=samples,
            subjects=subject or (),
            limit=limit,
            seed=seed,
            settings=settings or (),
            lora=lora,
            base=base,
            against=against,
            across=across or (),
        )
    )
    if outcome is None:  # of several processes, only the main one prints
        return
    folder, result, comparison = outcome
    print(result_table(result))
    if comparison is not None:
        print(f"\n{comparison_table(comparison)}")
    print(f"\nresults: {folder / RESULT}\nreport: {folder / PAGE}")


@app.command()
def compare(
    before: Annotated[Path, typer.Argument(help="results.json of a benchmark run.")],
    after: Annotated[Path, typer.Argument(help="results.json of another one.")],
    across: Across = None,
) -> None:
    """Compare two results; no model is needed.

    Prints AFTER - BEFORE image by image, with 95 % intervals clustered by subject and with p-values corrected
    for the number of metrics.

    For example: cgrpo benchmark compare base/results.json tuned/results.json
    """
    # here and not above: help and mistakes must not wait for numpy and scipy
    from customized_grpo.benchmarks.compare import compare_results
    from customized_grpo.benchmarks.results import read_result

    print(comparison_table(compare_results(read_result(before), read_result(after), across or ())))


def _judge(url: str | None, model: str | None, key_env: str | None) -> JudgeEndpoint | None:
    """Return the endpoint of the judge, if one is given.

    Raises:
        UserError: An option of the judge is missing.
    """
    if url is None and model is None and key_env is None:
        return None
    if url is None or model is None:
        raise UserError(
            "--judge-url and --judge-model are needed together",
            hint="Give the address of an OpenAI-compatible endpoint and the name of its model.",
        )

    from customized_grpo.benchmarks.encoders import JudgeEndpoint

    if key_env is not None:
        # typed by the user; a recipe, which may be from anybody, cannot choose any variable
        keys.allow(key_env)
    return JudgeEndpoint(url, model, key_env)


def result_table(result: Result) -> str:
    """Return means and intervals of all images and of each part as aligned text, warnings first."""
    # the first part is that of all rows, see `Table.groups`, and has every metric
    metrics = list(result.summary[0]["metrics"])
    rows = [["", "images", "subjects", *metrics]]
    for part in result.summary:
        cells = [_mean_cell(part["metrics"][metric]) for metric in metrics]
        rows.append([part["name"], str(part["images"]), str(part["subjects"]), *cells])
    return _with_warnings(result.warnings, table(rows))


def _mean_cell(value: dict[str, float | None]) -> str:
    # no image could be scored
    if value["mean"] is None:
        return "-"
    if value["low"] is None:  # one subject gives no interval
        return f"{value['mean']:.3f}"
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def comparison_table(comparison: PairedResult) -> str:
    """Return the two results and their difference as aligned text, warnings first."""
    rows = [["", comparison.before, comparison.after, "difference", "p (Holm)"]]
    for metric in comparison.differences:
        interval = metric.test.interval
        difference = f"{interval.mean:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
        means = [f"{metric.before:.3f}", f"{metric.after:.3f}"]
        rows.append([metric.metric, *means, difference, f"{metric.p_holm:.4f}"])
    return _with_warnings(comparison.warnings, table(rows))


def _with_warnings(warnings: Sequence[str], text: str) -> str:
    return "\n".join([*(f"warning: {warning}" for warning in warnings), text])
