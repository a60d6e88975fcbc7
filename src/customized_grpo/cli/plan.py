"""`cgrpo plan`: what a recipe will cost, computed before any weight is loaded."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from customized_grpo.cli.common import JsonFile, Overrides, Recipe, Trust, table, write_json_file
from customized_grpo.errors import UserError
from customized_grpo.reporting.lines import fitted

if TYPE_CHECKING:
    from customized_grpo.planning.duration import Card, Duration
    from customized_grpo.planning.estimate import Advice, Estimate, GraphReuse
    from customized_grpo.planning.memory import Memory
    from customized_grpo.planning.work import Batches


def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    device_memory: Annotated[
        float | None,
        typer.Option(min=1, metavar="GIB", help="Memory of each device, to see whether the recipe fits."),
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="Processes, one per device.")] = 1,
    references: Annotated[int, typer.Option(min=0, help="Reference images of each sample.")] = 1,
    tflops: Annotated[
        float | None,
        typer.Option(min=0.001, help="10^12 operations per second that the device reaches, to see the time."),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="CARD",
            help="A card, to see hours and whether it fits: 4090, h100, ..., or TFLOP/s,GB/s of another.",
        ),
    ] = None,
    json_file: JsonFile = None,
    trust: Trust = None,
) -> None:
    """Estimate what a recipe will cost: batches, work and memory.

    Reads no weights: the model runs on tensors without data. With --device-memory it says whether the recipe
    fits, and if not, which settings would make it fit; the exit status is then 2. --device does so for a card
    whose memory is known, and says how long 100 iterations take on it.

    For example: cgrpo plan flux1-kontext-24gb --device 4090
    """
    from customized_grpo.config import load_config

    config = load_config(recipe, overrides or ())

    # after the recipe, whose mistakes must not wait for torch
    from customized_grpo.planning.duration import find_card
    from customized_grpo.planning.estimate import Planner
    from customized_grpo.planning.memory import GIB
    from customized_grpo.policies.start_adapter import shaped_like_start

    here = device_here(config.model.device)
    # an adapter that training continues has a rank and layers of its own, whatever the recipe says
    model = shaped_like_start(config.model)
    card = None if device is None else find_card(device)
    if card is not None and model.device == "cpu":
        # who names a card asks about the card
        model = model.model_copy(update={"device": "cuda"})
    config = config.model_copy(update={"model": model})
    planner = Planner(config, processes=processes, references=references)
    estimate = planner.estimate()
    print(fitted(render(estimate, f"{recipe}: {model.path}", here, tflops)))
    durations = {}
    if card is not None:
        duration = estimate.duration(card)
        print(fitted(f"\n{duration_text(duration, card)}"))
        durations = {
            "duration": {**asdict(card), **asdict(duration), "hours_per_100": duration.hours_per_100}
        }
    write_json_file(json_file, estimate.to_json() | durations)
    if device_memory is None and card is not None:
        # of a card whose memory is known, so that --device alone says whether it fits
        device_memory = card.gib
    if device_memory is None:
        return
    # from GiB to bytes, in which memory is estimated
    if estimate.memory.needed <= device_memory * GIB:
        keeps = estimate.graph_reuse.fits(estimate.memory, device_memory)
        print(f"\nfits {device_memory:g} GiB; graphs {'are' if keeps else 'are not'} kept from the rollout")
        return
    advice = planner.find_fit(device_memory)
    raise UserError(
        f"the recipe needs {_gib(estimate.memory.needed)} GiB, the device has {device_memory:g}",
        hint=_advice(advice),
    )


def device_here(requested: str) -> str:
    """Return where this machine, which need not be the one that is planned for, would run the recipe."""
    from customized_grpo.engine.device import describe_with_reason
    from customized_grpo.policies.loading import pick_device

    try:
        device = pick_device(requested)
    except UserError as error:
        return f"none; {error.message}"
    return describe_with_reason(device, requested=requested)


def render(estimate: Estimate, title: str, device: str, tflops: float | None = None) -> str:
    """Return a plan as plain text.

    Args:
        estimate: The plan.
        title: The recipe and its model.
        device: Where this machine would run it, in words.
        tflops: 10^12 operations per second that the device reaches; None: no time is printed.
    """
    parts = [
        f"{title}\nsizes: {estimate.source}\ndevice of this machine: {device}",
        table([*_batch_rows(estimate), *_work_rows(estimate, tflops)]),
        f"parameters\n{table(_parameter_rows(estimate))}",
        f"memory of one {_holder(estimate.memory)}, in GiB\n{table(_memory_rows(estimate.memory))}",
        _peak_lines(estimate.memory),
        _host_lines(estimate),
    ]
    return "\n\n".join(parts)


def _batch_rows(estimate: Estimate) -> list[list[str]]:
    batches = estimate.batches
    tokens = estimate.tokens
    return [
        ["algorithm", estimate.algorithm],
        ["iteration", f"{batches.prompts} prompts, {batches.samples} samples{_further(batches)}"],
        [
            "process",
            f"{estimate.processes}, each {batches.prompts_per_process} prompts, "
            f"{batches.samples_per_process} samples, {batches.rollout_batches} rollout batches",
        ],
        [
            "update",
            f"{batches.optimizer_steps} optimizer steps an iteration, each of {batches.samples_per_step} "
            f"samples, {batches.micro_batches_per_step} backward passes a process",
        ],
        [
            "steps",
            f"{estimate.steps} denoising steps{_calls(estimate)}, {estimate.noisy_steps} draw noise, "
            + _trained(estimate),
        ],
        [
            "tokens",
            f"{tokens.image} image, {tokens.references} references (each a large square photo), "
            f"{tokens.text} text a sample",
        ],
    ]


def _further(batches: Batches) -> str:
    if not batches.further_prompts:
        return ""
    return (
        f"; at worst {batches.further_prompts} further prompts of dynamic sampling in one process, which "
        "time and memory below include"
    )


def _calls(estimate: Estimate) -> str:
    calls = estimate.rollout_calls
    return "" if calls == estimate.steps else f" of {calls} velocities"


def _trained(estimate: Estimate) -> str:
    if estimate.algorithm == "grpo":
        return f"{estimate.trained_steps} are trained"
    return f"none is trained; {estimate.trained_steps} noise levels are"


def _work_rows(estimate: Estimate, tflops: float | None) -> list[list[str]]:
    passes = estimate.passes
    rows = [
        [
            "work",
            f"{passes.iteration} forward-equivalents a prompt and iteration: {passes.rollout} rollout, "
            f"{passes.update} update; evaluation {passes.evaluation} a held-out prompt",
        ],
        ["graphs", _graphs_line(estimate.graph_reuse)],
        ["operations", _operations_line(estimate)],
    ]
    if tflops is not None:
        rows.append(
            [
                "time",
                f"{estimate.seconds_per_iteration(tflops):.0f} s an iteration for the transformer: "
                f"forward-equivalents x prompts of a process x operations / {tflops:g} TFLOP/s",
            ]
        )
    return rows


def _operations_line(estimate: Estimate) -> str:
    line = f"{estimate.flops_per_pass / 1e12:.3g} TFLOP a forward pass of one sample"
    return f"{line}; model.last_block=image saves a little, not counted" if estimate.cuts_last_block else line


def _graphs_line(reuse: GraphReuse) -> str:
    if reuse.obstacle is not None:
        return f"none is kept from the rollout: {reuse.obstacle}"
    return (
        f"those of the trained steps, {_gib(reuse.bytes)} GiB, are kept from the rollout if they take at "
        "most half of the memory that is free then; "
        f"the update is then spared {reuse.passes_saved} forward-equivalents a prompt"
    )


def _parameter_rows(estimate: Estimate) -> list[list[str]]:
    parameters = estimate.parameters
    return [
        ["  base", f"{parameters.base:,}"],
        ["  adapter", f"{parameters.adapter:,}"],
        ["  text encoders", f"{parameters.text_encoders:,}"],
        ["  autoencoder", f"{parameters.autoencoder:,}"],
    ]


def _memory_rows(memory: Memory) -> list[list[str]]:
    """Return rows with the parts on the left and the fewer phases on the right."""
    parts = [[f"  {name}", _gib(n_bytes)] for name, n_bytes in memory.parts.items()]
    # a phase is the sum of the parts that are alive in it, not one more part
    phases = [[name, _gib(n_bytes)] for name, n_bytes in memory.phases.items()]
    blank = [["", ""]] * (len(parts) - len(phases))
    rows = [[*left, *right] for left, right in zip(parts, phases + blank, strict=True)]
    return [["  part", "", "alive in phase", ""], *rows]


def _holder(memory: Memory) -> str:
    return "process" if memory.on_cpu else "device"


def _peak_lines(memory: Memory) -> str:
    beside = "Python, torch and the other libraries" if memory.on_cpu else "the GPU's context"
    lines = [
        f"peak: {_gib(memory.peak)} GiB, in phase {memory.peak_phase}; "
        f"with fragmentation and {beside} about {_gib(memory.needed)} GiB"
    ]
    if memory.not_counted:
        lines.append(f"not counted: the models of the rewards {', '.join(memory.not_counted)}")
    return "\n".join(lines)


def _host_lines(estimate: Estimate) -> str:
    host = estimate.host
    above = " (as above)" if estimate.memory.on_cpu else ""
    line = (
        f"memory of the machine: a process takes about {_gib(host.loading)} GiB while it reads the "
        f"generator, {_gib(host.training)} while it trains{above}, without the data"
    )
    if estimate.processes > 1:
        line += f"; {estimate.processes} processes on one machine: {_gib(estimate.processes * host.peak)}"
    return line


def duration_text(duration: Duration, card: Card) -> str:
    """Return in words how long a recipe takes on a card, and what that rests on."""
    from customized_grpo.planning.duration import BANDWIDTH_REACHED, PRODUCTS_REACHED

    parts = [f"{duration.products:.3g} s of products", f"{duration.between:.3g} s between them"]
    if duration.dequantisation:
        parts.append(f"{duration.dequantisation:.3g} s of unpacking weights")
    return (
        f"time on {card.name}: {duration.hours_per_100:.3g} hours for 100 iterations\n"
        f"an iteration is {', '.join(parts)}; assumed, not measured: {PRODUCTS_REACHED:.0%} of "
        f"{card.tflops:g} TFLOP/s, {BANDWIDTH_REACHED:.0%} of {card.bandwidth:g} GB/s\n"
        "not counted: encoding, decoding, rewards, transfers, evaluations"
    )


def _advice(advice: Advice) -> str:
    needed = _gib(advice.memory.needed)
    overrides = " ".join(advice.overrides)
    if advice.fits:
        return f"It would fit ({needed} GiB) with: {overrides}"
    return (
        f"Even with {overrides} it needs {needed} GiB: "
        "use smaller images, a smaller model.lora.rank or a larger device."
    )


def _gib(n_bytes: int) -> str:
    return f"{n_bytes / 2**30:.2f}"
