"""`cgrpo plan`: what a recipe will cost, before anything is loaded or spent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from customized_grpo.cli.common import Trust, table
from customized_grpo.errors import UserError

if TYPE_CHECKING:
    from customized_grpo.planning.estimate import Advice, Estimate
    from customized_grpo.planning.memory import Memory


def plan(
    recipe: Annotated[str, typer.Argument(help="Preset, or path of a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="SECTION.KEY=VALUE", help="Settings that replace the recipe's."),
    ] = None,
    device_memory: Annotated[
        float | None,
        typer.Option(min=1, metavar="GIB", help="Memory of each device; says whether the recipe fits."),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes, one per device.")] = 1,
    references: Annotated[int, typer.Option(min=1, help="References of a sample.")] = 1,
    tflops: Annotated[
        float | None,
        typer.Option(min=0.001, help="10^12 operations a second that the device reaches; gives a time."),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the plan to this file.")
    ] = None,
    trust: Trust = None,
) -> None:
    """Say what a recipe will cost: batches, work and memory.

    Reads no weights: the model runs on tensors without data. With --device-memory it says whether the recipe
    fits, and if not, which settings would make it fit; the exit status then is 2.

    For example: cgrpo plan flux1-kontext --device-memory 80
    """
    from customized_grpo.config import load_config

    config = load_config(recipe, overrides or ())
    if json_file is not None and (json_file.is_dir() or not json_file.parent.is_dir()):
        raise UserError(f"--json {json_file}: not a file in an existing folder")

    from customized_grpo.planning.estimate import estimate, find_fit
    from customized_grpo.planning.memory import GIB

    found = estimate(config, processes=processes, references=references)
    print(render(found, f"{recipe}: {config.model.path}", tflops))
    if json_file is not None:
        _write(json_file, found)
    if device_memory is None:
        return
    if found.memory.needed <= device_memory * GIB:
        print(f"\nfits {device_memory:g} GiB")
        return
    advice = find_fit(config, device_memory, processes=processes, references=references)
    raise UserError(
        f"needs {_gib(found.memory.needed)} GiB, the device has {device_memory:g}", _advice(advice)
    )


def _write(file: Path, found: Estimate) -> None:
    try:
        file.write_text(json.dumps(found.to_json(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json {file}: {error.strerror}") from error


def render(found: Estimate, title: str, tflops: float | None = None) -> str:
    """Return a plan as plain text.

    Args:
        found: The plan.
        title: The recipe and its model.
        tflops: 10^12 operations a second that the device reaches; without it no time is given.
    """
    parts = [
        f"{title}\nsizes: {found.source}",
        table([*_batch_rows(found), *_work_rows(found, tflops)]),
        f"parameters\n{table(_parameter_rows(found))}",
        f"memory of one device, in GiB\n{table(_memory_rows(found.memory))}",
        _peak_lines(found.memory),
    ]
    return "\n\n".join(parts)


def _batch_rows(found: Estimate) -> list[list[str]]:
    batches, tokens = found.batches, found.tokens
    here = f"{batches.samples_per_process} samples"
    return [
        ["iteration", f"{batches.prompts} prompts, {batches.samples} samples"],
        [
            "process",
            f"{found.processes}, each {batches.prompts_per_process} prompts, {here}, "
            f"{batches.rollout_batches} rollout batches",
        ],
        [
            "update",
            f"{batches.optimizer_steps} optimizer steps an iteration, each of {batches.samples_per_step} "
            f"samples, {batches.micro_batches_per_step} backward passes a process",
        ],
        [
            "steps",
            f"{found.steps} denoising steps, {found.noisy_steps} draw noise, "
            f"{found.trained_steps} are trained",
        ],
        ["tokens", f"{tokens.image} image, {tokens.references} references, {tokens.text} text a sample"],
    ]


def _work_rows(found: Estimate, tflops: float | None) -> list[list[str]]:
    passes = found.passes
    rows = [
        [
            "work",
            f"{passes.iteration} forward-equivalents a prompt and iteration: {passes.rollout} rollout, "
            f"{passes.update} update; evaluation {passes.evaluation} a held-out prompt",
        ],
        ["operations", f"{found.flops_per_pass / 1e12:.2f} TFLOP a forward pass of one sample"],
    ]
    if tflops is not None:
        rows.append(
            [
                "time",
                f"{found.seconds_per_iteration(tflops):.0f} s an iteration for the transformer: "
                f"forward-equivalents x prompts of a process x operations / {tflops:g} TFLOP/s",
            ]
        )
    return rows


def _parameter_rows(found: Estimate) -> list[list[str]]:
    parameters = found.parameters
    return [
        ["  base", f"{parameters.base:,}"],
        ["  adapter", f"{parameters.adapter:,}"],
        ["  text encoders", f"{parameters.text_encoders:,}"],
        ["  autoencoder", f"{parameters.autoencoder:,}"],
    ]


def _memory_rows(memory: Memory) -> list[list[str]]:
    """Return parts on the left, phases on the right."""
    parts = [[f"  {name}", _gib(n_bytes)] for name, n_bytes in memory.parts.items()]
    phases = [[name, _gib(n_bytes)] for name, n_bytes in memory.phases.items()]
    blank = [["", ""]] * (len(parts) - len(phases))
    rows = [[*left, *right] for left, right in zip(parts, phases + blank, strict=True)]
    return [["  part", "", "alive in phase", ""], *rows]


def _peak_lines(memory: Memory) -> str:
    lines = [
        f"peak: {_gib(memory.peak)} GiB, in phase {memory.peak_phase}; "
        f"with fragmentation and the CUDA context about {_gib(memory.needed)} GiB"
    ]
    if memory.not_counted:
        lines.append(f"not counted: the models of the rewards {', '.join(memory.not_counted)}")
    return "\n".join(lines)


def _advice(advice: Advice) -> str:
    if advice.fits:
        return f"It would fit ({_gib(advice.memory.needed)} GiB) with: {' '.join(advice.overrides)}"
    return (
        f"Even with {' '.join(advice.overrides)} it needs {_gib(advice.memory.needed)} GiB: "
        "use smaller images, a smaller model.lora.rank or a larger device."
    )


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f}"
