"""A recipe's plan: its work and its memory, and the settings that would make it fit a device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from customized_grpo.planning import work
from customized_grpo.planning.dry_run import DryRun
from customized_grpo.planning.memory import GIB, Memory, predict
from customized_grpo.planning.work import Batches, Passes
from customized_grpo.policies.checkpoint_files import read_architecture
from customized_grpo.rollout.sampler import plan_steps

if TYPE_CHECKING:
    from customized_grpo.config import Config


@dataclass(frozen=True)
class Tokens:
    """Tokens of one sample."""

    image: int
    references: int
    text: int


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters."""

    base: int
    adapter: int
    text_encoders: int
    autoencoder: int


@dataclass(frozen=True)
class Plan:
    """What a recipe will cost.

    Attributes:
        source: Where the model's sizes are known from.
        processes: Number of processes, one per device.
        batches: How samples are divided.
        tokens: Of one sample.
        steps: Denoising steps of a sample.
        noisy_steps: Steps among them that draw noise.
        trained_steps: Steps among those that are trained.
        passes: Forward-equivalents per prompt.
        flops_per_pass: Floating-point operations of one forward pass of one sample.
        parameters: Numbers of parameters.
        memory: Predicted bytes on one device.
    """

    source: str
    processes: int
    batches: Batches
    tokens: Tokens
    steps: int
    noisy_steps: int
    trained_steps: int
    passes: Passes
    flops_per_pass: int
    parameters: Parameters
    memory: Memory

    def seconds_per_iteration(self, tflops: float) -> float:
        """Return the time of an iteration's passes, at 10^12 x tflops operations a second."""
        passes = self.passes.iteration * self.batches.prompts_per_process
        return work.seconds(passes, self.flops_per_pass, tflops)

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data, bytes as whole numbers."""
        memory = {
            "peak": self.memory.peak,
            "peak_phase": self.memory.peak_phase,
            "needed": self.memory.needed,
        }
        return {**asdict(self), "memory": {**asdict(self.memory), **memory}}


def make_plan(config: Config, *, processes: int = 1, references: int = 1) -> Plan:
    """Work out a recipe's plan from its settings and the configs of its model; no weights are read.

    Args:
        config: The recipe.
        processes: Number of processes, one per device.
        references: References of a sample.

    Raises:
        UserError: The model's configs are missing, or samples cannot be shared evenly.
    """
    run = DryRun(read_architecture(config.model), config.model, references)
    return _plan(config, run, processes)


def _plan(config: Config, run: DryRun, processes: int) -> Plan:
    step_plan = plan_steps(config.rollout, config.train.trained_fraction, 0, config.run.seed)
    batches = work.batches(config, len(step_plan.trained), processes)
    return Plan(
        source=run.architecture.source,
        processes=processes,
        batches=batches,
        tokens=Tokens(run.n_image, run.n_references, config.model.max_text_tokens),
        steps=config.rollout.steps,
        noisy_steps=len(step_plan.noisy),
        trained_steps=len(step_plan.trained),
        passes=work.passes(config, len(step_plan.trained), run.calls),
        flops_per_pass=run.flops,
        parameters=Parameters(
            run.base_parameters, run.adapter_parameters, run.encoder_parameters, run.vae_parameters
        ),
        memory=predict(config, run, batches, len(step_plan.trained)),
    )


@dataclass(frozen=True)
class Advice:
    """Settings that change no result but precision.

    Attributes:
        overrides: Settings to add, most harmless first; empty when nothing is needed or nothing helps.
        memory: With them.
        fits: Whether they are enough.
    """

    overrides: tuple[str, ...]
    memory: Memory
    fits: bool


def make_fit(config: Config, device_gib: float, *, processes: int = 1, references: int = 1) -> Advice:
    """Find settings with which a recipe fits a device.

    They are added one after the other, in the order of what they cost, until the prediction fits; then those
    that turn out not to be needed are taken back.

    Args:
        config: The recipe.
        device_gib: Memory of the device, in GiB.
        processes: Number of processes, one per device.
        references: References of a sample.
    """
    run = DryRun(read_architecture(config.model), config.model, references)

    def memory_with(overrides: tuple[str, ...]) -> Memory:
        return _plan(_changed(config, overrides), run, processes).memory

    def fits(memory: Memory) -> bool:
        return memory.needed <= device_gib * GIB

    chosen: tuple[str, ...] = ()
    memory = memory_with(chosen)
    for step in _steps(config):
        if fits(memory):
            break
        # a later step of one knob replaces an earlier one
        kept = tuple(
            one for one in chosen if one.partition("=")[0] not in {s.partition("=")[0] for s in step}
        )
        chosen = (*kept, *step)
        memory = memory_with(chosen)
    if not fits(memory):
        return Advice(chosen, memory, fits=False)
    for override in chosen:
        fewer = tuple(one for one in chosen if one != override)
        # batch sizes go together: a first ratio of 1 wants the same in both phases
        if "batch_size" not in override and fits(without := memory_with(fewer)):
            chosen, memory = fewer, without
    return Advice(chosen, memory, fits=True)


def _steps(config: Config) -> list[tuple[str, ...]]:
    """Return the settings to try, in the order of what they cost: time first, precision last."""
    model = config.model
    steps: list[tuple[str, ...]] = []
    if model.text_encoders == "keep":
        steps.append(("model.text_encoders=offload",))
    if not model.offload_vae:
        steps.append(("model.offload_vae=true",))
    if not model.gradient_checkpointing:
        steps.append(("model.gradient_checkpointing=true",))
    batch = min(config.train.micro_batch_size, config.rollout.batch_size)
    while batch > 1:
        batch //= 2
        sections = ("rollout.batch_size", "train.micro_batch_size", "evaluation.batch_size")
        steps.append(tuple(f"{section}={batch}" for section in sections))
    if model.quantisation is None:
        steps.append(("model.quantisation=int8",))
    if model.quantisation != "nf4":
        steps.append(("model.quantisation=nf4",))
    return steps


def _changed(config: Config, overrides: tuple[str, ...]) -> Config:
    """Return the recipe with other values of top-level sections' fields."""
    data = config.model_dump(mode="json")
    for override in overrides:
        path, _, text = override.partition("=")
        section, key = path.split(".")
        data[section][key] = {"true": True}.get(text, int(text) if text.isdecimal() else text)
    return type(config).model_validate(data)
