"""What a recipe costs, in work and in memory, and the settings with which it would fit a device."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from customized_grpo.planning import work
from customized_grpo.planning.dry_run import DryRun
from customized_grpo.planning.duration import Card, Duration, dequantised_bytes, predict_duration
from customized_grpo.planning.host import HostMemory, predict_host
from customized_grpo.planning.memory import GIB, GRAPHS_SHARE, Memory, predict
from customized_grpo.planning.work import Batches, Passes
from customized_grpo.policies.checkpoint_files import read_architecture
from customized_grpo.policies.families import get_family
from customized_grpo.policies.reference_rule import reference_size_of
from customized_grpo.reference_sizes import Size, largest_reference
from customized_grpo.rollout.graphs import reuse_obstacle
from customized_grpo.rollout.sampler import StepPlan, plan_iteration
from customized_grpo.rollout.shared_start import MIN_ROWS, count_shared_steps

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.config.schema import ModelConfig


@dataclass(frozen=True)
class Tokens:
    """Tokens of one sample.

    Attributes:
        image: Of the image.
        references: Of all its references.
        text: Of the prompt, padding included.
    """

    image: int
    references: int
    text: int


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters.

    Attributes:
        base: Of the frozen transformer.
        adapter: Of the adapter that is trained.
        text_encoders: Of all text encoders.
        autoencoder: Of the VAE.
    """

    base: int
    adapter: int
    text_encoders: int
    autoencoder: int


@dataclass(frozen=True)
class GraphReuse:
    """What it takes to keep the graphs of the trained steps from the rollout, see `rollout/graphs.py`.

    Attributes:
        obstacle: Why the recipe does not allow it; None if it does.
        bytes: Of all graphs of an iteration, on one device; 0 with an obstacle.
        passes_saved: Forward-equivalents that the update of one prompt is spared; 0 with an obstacle.
    """

    obstacle: str | None
    bytes: int
    passes_saved: int

    def fits(self, memory: Memory, device_gib: float) -> bool:
        """Return whether a run keeps them on a device of that many GiB, once everything is loaded.

        Args:
            memory: Of the recipe.
            device_gib: Memory of the device.
        """
        free = device_gib * GIB - memory.beside - memory.phases["load"]
        return self.obstacle is None and self.bytes <= GRAPHS_SHARE * free


@dataclass(frozen=True)
class Estimate:
    """What a recipe will cost.

    Attributes:
        algorithm: Of the recipe: grpo, nft or awm.
        source: Where the model's sizes are known from.
        processes: Number of processes, one per device.
        batches: How samples are divided.
        tokens: Of one sample.
        steps: Denoising steps of a sample.
        rollout_calls: Velocities that they take.
        noisy_steps: Steps among them that draw noise.
        trained_steps: Steps among those that are trained; for nft and awm, noise levels that are.
        passes: Forward-equivalents per prompt.
        flops_per_pass: Floating-point operations of one forward pass of one sample.
        cuts_last_block: Whether the run drops tokens of the last block, which are counted all the same.
        bytes_per_pass: Bytes that such a pass reads and writes between its products.
        dequantised_bytes: Bytes that a process moves in an iteration to unpack weights.
        parameters: Numbers of parameters of the models.
        memory: Predicted bytes on one device, without graphs kept from the rollout.
        graph_reuse: What those would take.
        host: Predicted bytes of one process on its machine.
    """

    algorithm: str
    source: str
    processes: int
    batches: Batches
    tokens: Tokens
    steps: int
    rollout_calls: int
    noisy_steps: int
    trained_steps: int
    passes: Passes
    flops_per_pass: int
    cuts_last_block: bool
    bytes_per_pass: int
    dequantised_bytes: int
    parameters: Parameters
    memory: Memory
    graph_reuse: GraphReuse
    host: HostMemory

    @property
    def passes_per_process(self) -> int:
        """Return the passes of one process in an iteration, at worst if dynamic sampling may draw more."""
        # `passes` are those of one prompt with its whole group.
        further = self.passes.rollout * self.batches.further_prompts
        return self.passes.iteration * self.batches.prompts_per_process + further

    def seconds_per_iteration(self, tflops: float) -> float:
        """Return the time of an iteration's passes, at 10^12 x tflops operations a second."""
        return work.seconds(self.passes_per_process, self.flops_per_pass, tflops)

    def duration(self, card: Card) -> Duration:
        """Return the time of an iteration's passes through the transformer on a card."""
        passes = self.passes_per_process
        return predict_duration(
            card,
            operations=passes * self.flops_per_pass,
            moved=passes * self.bytes_per_pass,
            unpacked=self.dequantised_bytes,
        )

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain data, bytes as whole numbers."""
        memory = {
            "peak": self.memory.peak,
            "peak_phase": self.memory.peak_phase,
            "needed": self.memory.needed,
        }
        host = {**asdict(self.host), "peak": self.host.peak}
        return {**asdict(self), "memory": {**asdict(self.memory), **memory}, "host": host}


@dataclass(frozen=True)
class Advice:
    """Settings that save memory and change nothing else, except that quantisation changes precision.

    Attributes:
        overrides: Settings to add, most harmless first; empty when nothing is needed or nothing helps.
        memory: Prediction with these settings.
        fits: Whether they are enough.
    """

    overrides: tuple[str, ...]
    memory: Memory
    fits: bool


class Planner:
    """The costs of a recipe and of changes to it, which share one dry run of its models.

    Args:
        config: The recipe.
        processes: Number of processes, one per device.
        references: References of a sample, large square photos.
        dry_run: Of a recipe whose model, adapter, image size and precision are the same; None makes one.

    Raises:
        UserError: The model's configs are missing.
    """

    def __init__(
        self, config: Config, *, processes: int = 1, references: int = 1, dry_run: DryRun | None = None
    ) -> None:
        self.config = config
        self.processes = processes
        sizes = seen_sizes(config, config.model, references)
        self.dry_run = dry_run or DryRun(read_architecture(config.model), config.model, sizes)
        self.evaluation_run = self.dry_run
        # The evaluation may draw at another size or guidance.
        if config.evaluation_model != config.model:
            sizes = seen_sizes(config, config.evaluation_model, references)
            self.evaluation_run = DryRun(self.dry_run.architecture, config.evaluation_model, sizes)

    def estimate(self, overrides: tuple[str, ...] = ()) -> Estimate:
        """Return what the recipe costs, from its settings and the configs of its model; no weights are read.

        Args:
            overrides: Settings that replace the recipe's, as `section.key=value`.

        Raises:
            UserError: The prompts cannot be shared evenly.
        """
        config = _changed(self.config, overrides)
        run = self.dry_run
        step_plan = plan_iteration(config, 0)
        is_grpo = config.train.algorithm == "grpo"
        # NFT and AWM train at noise levels, which are no steps of the rollout.
        n_trained = len(step_plan.trained) if is_grpo else config.train.forward.levels
        batches = work.batches(config, n_trained, self.processes)
        memory = predict(config, run, self.evaluation_run, batches, n_trained)
        quantised = sum(rows * columns for rows, columns in run.block_linears)
        return Estimate(
            algorithm=config.train.algorithm,
            source=run.architecture.source,
            processes=self.processes,
            batches=batches,
            tokens=Tokens(run.n_image, run.n_references, config.model.max_text_tokens),
            steps=config.rollout.steps,
            rollout_calls=work.rollout_calls(config),
            noisy_steps=len(step_plan.noisy),
            trained_steps=n_trained,
            passes=work.passes(
                config, n_trained, run.calls, _n_shared(config, step_plan), self._evaluation_calls
            ),
            flops_per_pass=run.flops,
            cuts_last_block=config.model.options.get("last_block") == "image",
            bytes_per_pass=run.moved_bytes,
            dequantised_bytes=dequantised_bytes(config, batches, run.calls, quantised),
            parameters=Parameters(
                run.base_parameters, run.adapter_parameters, run.encoder_parameters, run.vae_parameters
            ),
            memory=memory,
            graph_reuse=self._graph_reuse(config, batches, n_trained),
            host=predict_host(config, run, memory),
        )

    @property
    def _evaluation_calls(self) -> float:
        """Return what one velocity of an evaluation image costs, in passes of a training sample."""
        evaluation = self.evaluation_run
        if evaluation is self.dry_run:
            return evaluation.calls
        return evaluation.calls * evaluation.flops / self.dry_run.flops

    def _graph_reuse(self, config: Config, batches: Batches, n_trained: int) -> GraphReuse:
        obstacle = reuse_obstacle(config, batches.samples_per_process)
        if obstacle is not None:
            return GraphReuse(obstacle, 0, 0)
        whole, rest = divmod(batches.samples_per_process, config.rollout.batch_size)
        checkpointing = config.model.gradient_checkpointing
        n_bytes = 0
        # Whole batches, and the smaller last one.
        for size, count in ((config.rollout.batch_size, whole), (rest, 1)):
            if size and count:
                n_bytes += count * self.dry_run.graph_bytes(size, checkpointing=checkpointing)
        saved = self.dry_run.calls * config.train.group_size * n_trained
        # A graph for each trained step of each batch.
        return GraphReuse(None, n_trained * n_bytes, saved)

    def find_fit(self, device_gib: float) -> Advice:
        """Return settings with which the recipe fits a device.

        They are added one after the other, in the order of what they cost, until the prediction fits; then
        those that turn out not to be needed are removed again.

        Args:
            device_gib: Memory of the device, in GiB.
        """

        def fits(memory: Memory) -> bool:
            return memory.needed <= device_gib * GIB

        overrides: tuple[str, ...] = ()
        memory = self.estimate().memory
        for step in _steps(self.config):
            if fits(memory):
                break
            overrides = _added(overrides, step)
            memory = self.estimate(overrides).memory
        if not fits(memory):
            return Advice(overrides, memory, fits=False)
        # A later, stronger setting may have made an earlier one needless.
        for override in overrides:
            # these two go together: a first ratio of 1 wants the same in both phases
            if override.startswith(("rollout.batch_size", "train.micro_batch_size")):
                continue
            fewer = tuple(other for other in overrides if other != override)
            memory_with_fewer = self.estimate(fewer).memory
            if fits(memory_with_fewer):
                overrides = fewer
                memory = memory_with_fewer
        return Advice(overrides, memory, fits=True)


def seen_sizes(config: Config, model: ModelConfig, references: int) -> list[Size]:
    """Return width and height, in pixels, at which the model sees each of a row's large square photos.

    Args:
        config: The recipe.
        model: Its section `model`, or that of its evaluation.
        references: References of the row.
    """
    drawn = (model.width, model.height)
    if model.reference_fit != "whole":
        return [drawn] * references
    multiple = get_family(model.family).size_multiple
    return [largest_reference(reference_size_of(config), references, drawn, multiple)] * references


def _n_shared(config: Config, step_plan: StepPlan) -> int:
    """Return how many steps are drawn once for a group in every iteration of the window's first place.

    Without a window it depends on which steps an iteration trains: at most the first one, not counted here.
    """
    shares = config.rollout.shared_noise and config.rollout.batch_size >= MIN_ROWS
    return count_shared_steps(step_plan) if shares and config.rollout.sde_window is not None else 0


def _added(overrides: tuple[str, ...], step: tuple[str, ...]) -> tuple[str, ...]:
    """Return the overrides with those of a step; a later step of a knob replaces an earlier one."""
    changed = {_knob(override) for override in step}
    return (*[override for override in overrides if _knob(override) not in changed], *step)


def _knob(override: str) -> str:
    return override.partition("=")[0]


def _steps(config: Config) -> list[tuple[str, ...]]:
    """Return the settings to try, cheapest first: those that cost time, then those that cost precision."""
    model = config.model
    steps: list[tuple[str, ...]] = []
    if model.text_encoders == "keep":
        steps.append(("model.text_encoders=offload",))
    if not model.offload_vae:
        steps.append(("model.offload_vae=true",))
    if not model.gradient_checkpointing:
        steps.append(("model.gradient_checkpointing=true",))
    batch = min(config.train.micro_batch_size, config.rollout.batch_size)
    if config.evaluation.batch_size > batch:
        steps.append((f"evaluation.batch_size={batch}",))
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
        value: bool | int | str = text
        if text == "true":
            value = True
        elif text.isdecimal():
            value = int(text)
        data[section][key] = value
    return type(config).model_validate(data)
