"""Every knob of a run: its name, type, range, default and one sentence, written once, here.

The sentence under a field is its help: error messages, `cgrpo config schema` and the reference page are made
from it. Nothing is converted silently: a number in quotes, an unknown key or a value out of range is refused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    ValidationInfo,
    field_validator,
    model_validator,
)

from customized_grpo.config.checks import cross_field_mistakes
from customized_grpo.config.choice import Choice, complete_options, load_part
from customized_grpo.config.data_sources import DataConfig, ManifestData
from customized_grpo.config.executors import ExecutorConfig, InlineExecution
from customized_grpo.config.segmenter import SegmenterConfig
from customized_grpo.config.trackers import TrackerName, refuse_known
from customized_grpo.config.training import TrainConfig
from customized_grpo.fields import (
    Count,
    CountOrZero,
    FilePath,
    NonNegative,
    Pixels,
    Positive,
    Regex,
    Section,
    Seed,
    Text,
    WeightsPath,
)


def _known_sampler(name: str) -> str:
    load_part("sampler", name)
    return name


def _known_family(name: str) -> str:
    load_part("family", name)
    return name


# Models know 1,000 noise levels from their pretraining; a schedule has a value for each step.
Steps = Annotated[int, Field(ge=2, le=1_000)]
RewardLabel = Annotated[str, Field(pattern=r"^[\w.-]{1,64}$")]
SamplerName = Annotated[Text, AfterValidator(_known_sampler)]
FamilyName = Annotated[Text, AfterValidator(_known_family)]


class RunConfig(Section):
    """Where the run is kept and what makes it repeatable."""

    dir: FilePath = Path("runs/unnamed")
    """Folder of the run, relative to the working directory; runs/ plus the recipe's name when not given."""
    seed: Seed = 0
    """Seed from which every random number of the run is derived."""
    overwrite: bool = False
    """Whether a run that is already in the folder may be deleted; otherwise it is an error."""
    process_timeout_s: Positive = 1800.0
    """Seconds a process waits for the others, where there are several, before it gives up."""
    deterministic: bool = False
    """Whether gradients on CUDA repeat bit for bit, as they do on a CPU: its kernels are then slower ones."""


class LoraConfig(Section):
    """The low-rank adapter that is trained; the base stays frozen."""

    rank: Count = 32
    """Rank of the adapter's matrices."""
    alpha: Positive | None = None
    """Adapter scale times rank; null means the rank (scale 1), which every LoRA reader understands."""
    target: Regex | None = None
    """Regular expression for the whole name of each layer to adapt; null means the family's own."""


class FusedLora(Section):
    """A published LoRA that becomes part of the frozen base."""

    path: WeightsPath
    """The file, the folder of one, or "owner/name:file" of the hub."""
    scale: float = 1.0
    """Factor on its update; 1 adds it as strongly as it was trained."""


def _listed_loras(value: Any) -> Any:
    """Return fused LoRAs as a list of sections: null is none, and a path stands for itself at scale 1."""
    values = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(values, list | tuple):
        return value
    return [{"path": item} if isinstance(item, str) else item for item in values]


FusedLoras = Annotated[
    tuple[FusedLora, ...],
    Field(strict=False),
    BeforeValidator(_listed_loras, json_schema_input_type=str | list[str | FusedLora] | None),
]


class ModelConfig(Section):
    """The generator that is tuned."""

    family: FamilyName = "flux1"
    """Family of the generator: flux1, flux2, flux3, qwen_edit, qwen_image21, two_scale, or yours."""
    path: WeightsPath
    """Weights of the pipeline: "toybox" or "two-scale" (embedded), a folder of diffusers, or a hub id."""
    options: dict[str, JsonValue] = Field(default={}, validate_default=True)
    """Settings that only this family has, such as reference_ids of flux1; they may also stand beside it."""
    fuse_lora: FusedLoras = ()
    """LoRAs made part of the frozen base, such as UNO's: a path, or a list of paths and scales."""
    start_lora: WeightsPath | None = None
    """LoRA that training continues, such as your own SFT; model.lora is then taken from its file."""
    guidance: NonNegative = 2.5
    """Guidance scale, embedded or classifier-free by family; the same in rollouts, training, evaluation."""
    mu: float | None = None
    """Shift of the noise schedule (log of the sigma odds); null means by the number of target tokens."""
    height: Pixels = 512
    """Height of generated images, in pixels, a multiple of 16."""
    width: Pixels = 512
    """Width of generated images, in pixels, a multiple of 16."""
    reference_fit: Literal["whole", "crop", "pad"] = "whole"
    """whole: references keep their aspect; crop, pad: cut to the shape of the image, or bordered by grey."""
    max_text_tokens: Count = 512
    """Length to which prompts are padded or cut, in tokens."""
    lora: LoraConfig = LoraConfig()
    precision: Literal["fp32", "bf16"] = "bf16"
    """Type of the transformer's matrix products; sampling steps and log-probabilities are always fp32."""
    gradient_checkpointing: bool = False
    """Whether activations are recomputed in the backward pass: less memory, about a third more time."""
    quantisation: Literal["nf4", "int8", "fp8"] | None = None
    """How the frozen transformer is held: nf4 (4 bit), int8 or fp8 (8 bit); null: in model.precision."""
    text_encoders: Literal["keep", "offload", "drop"] = "keep"
    """Between encodings: kept on the device, moved to the CPU, or dropped once every row is in the cache."""
    offload_vae: bool = False
    """Whether the autoencoder waits on the CPU while the transformer works."""
    shard: bool = False
    """Whether the frozen transformer is split over the processes (FSDP2) instead of copied to each."""
    compile: bool = False
    """Whether the transformer's blocks are compiled by torch.compile; the first steps then take minutes."""
    cache: FilePath | None = None
    """Folder that keeps encoded prompts and references, shared by runs of one model; null keeps none."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    """Device to run on: auto (the first accelerator, else the CPU), cpu, mps, cuda or cuda:INDEX."""

    @field_validator("options")
    @classmethod
    def _check_options(cls, options: dict[str, JsonValue], info: ValidationInfo) -> dict[str, Any]:
        if "family" not in info.data:  # the family is wrong, and that is said already
            return options
        return complete_options("family", info.data["family"], options)

    @model_validator(mode="after")
    def _check_shards_are_plain(self) -> ModelConfig:
        if self.shard and (self.quantisation is not None or self.compile):
            raise ValueError("shard splits plain weights: set quantisation to null and compile to false")
        return self

    @model_validator(mode="after")
    def _check_dropped_encoders_leave_a_cache(self) -> ModelConfig:
        if self.text_encoders == "drop" and self.cache is None:
            raise ValueError(
                "text_encoders: 'drop' needs a folder for what they encoded: set model.cache, or use offload"
            )
        return self


class SdeWindowConfig(Section):
    """Noise only inside a window of steps that slides over training (MixGRPO); ODE steps elsewhere."""

    size: Count = 4
    """Number of consecutive steps that draw noise and are trained."""
    shift_every: CountOrZero = 25
    """Iterations after which the window moves on by one step; 0 keeps it where it is."""
    start: CountOrZero = 0
    """Index of the window's first step in the first iteration, counted from the noisiest, 0."""


class RolloutConfig(Section):
    """How samples are drawn from the current policy."""

    steps: Steps = 25
    """Denoising steps of a sample; the last one draws no noise and is never trained."""
    sampler: SamplerName = "dance"
    """Kind of stochastic step: one of the package's, or your own."""
    eta: NonNegative = 0.4
    """Noise scale of the stochastic steps, in the sampler's own convention (no unit)."""
    shared_noise: bool = True
    """Whether the samples of a group start from one initial noise, so that only their steps differ."""
    sde_window: SdeWindowConfig | None = None
    """Restricts noise and training to a window of steps; null means all steps but the last."""
    batch_size: Count = 12
    """Samples denoised together, per process: a matter of memory and speed, not of results."""


class RewardConfig(Section):
    """One reward; those of one kind are averaged by weight before the kinds are combined."""

    name: Text
    """Name of a registered reward, or the dotted path of your own."""
    label: RewardLabel | None = None
    """Its name in metrics, trackers and reports, where two rewards would share one; null means its own."""
    weight: Positive = 1.0
    """Share of this reward among those of its kind; it says nothing about the other kinds."""
    segment: Literal["reference", "both", "none"] = "reference"
    """Images an identity reward masks to the subject: reference, both (needs `segmenter`) or none."""
    path: WeightsPath | None = None
    """Weights of the reward model: "toybox", a folder or a hub id; null means the reward's own default."""
    noise: NonNegative = 0.0
    """Standard deviation of noise added to the scores, in their units, to study a weak judge; 0 adds none."""
    options: dict[str, JsonValue] = {}
    """Further arguments of the reward: those it declares, or the arguments of your own class."""
    executor: ExecutorConfig = InlineExecution(kind="inline")
    """Where the reward runs: in the trainer, in a thread of it, in Ray actors, or in a reward service."""
    on_failure: Literal["stop", "drop"] = "stop"
    """What a failing reward does: stop ends the run, drop leaves the samples it was asked about unscored."""


class AdvantageConfig(Choice):
    """How the prompt advantage and the identity advantage become one."""

    KIND: ClassVar[str] = "rule"

    name: Text = "sars"
    """Rule that combines the two advantages: sars is Customized-GRPO, linear is naive GRPO; or your own."""
    std: Literal["group", "global", "none"] = "group"
    """What a reward's distance from its group's mean is divided by: std of the group, of all groups, or 1."""
    quality_weight: NonNegative = 0.5
    """Weight w_q of the quality advantage, which every rule's result is increased by; 0 only watches it."""
    clip: Positive = 5.0
    """Bound on the magnitude of the combined advantage; in nft the advantage of a wholly good sample."""


class ScheduleConfig(Choice):
    """How much the prompt advantage weighs against identity at each denoising step."""

    KIND: ClassVar[str] = "schedule"

    name: Text = "tdw"
    """Prompt weight of each step: tdw is Customized-GRPO, constant is naive GRPO; or your own."""


class EvaluationConfig(Section):
    """Held-out prompts, held-out judges and alarms."""

    every: CountOrZero = 50
    """Iterations between evaluations; 0 means only before the first and after the last."""
    samples_per_prompt: Count = 1
    """Images generated for each held-out prompt."""
    steps: Steps | None = None
    """Denoising steps of an evaluation sample, all without noise; null means as many as in rollouts."""
    seed: Seed = 1_000
    """Seed of the evaluation's initial noise: the same before, during and after training."""
    batch_size: Count = 12
    """Samples generated and judged together: a matter of memory and speed, not of results."""
    height: Pixels | None = None
    """Height of evaluation images, in pixels; null means model.height."""
    width: Pixels | None = None
    """Width of evaluation images, in pixels; null means model.width."""
    guidance: NonNegative | None = None
    """Guidance scale of evaluation images; null means model.guidance, with which training draws."""
    prompts: FilePath | None = None
    """JSONL file of your validation rows, where data.held_out is null; their subjects may be trained on."""
    use_ema: bool = False
    """Whether the moving average of the adapter is evaluated instead of the adapter itself."""
    # not strict, here and below: YAML has lists, which are no tuples to pydantic's strict mode
    judges: Annotated[tuple[RewardConfig, ...], Field(strict=False)] = ()
    """Held-out judges of a manifest's rows: rewards that training does not use."""
    on_alarm: Literal["warn", "stop"] = "warn"
    """What happens when a reward-hacking monitor raises an alarm: a warning, or a saved and stopped run."""


class CheckpointConfig(Section):
    """What is saved to be resumed from."""

    every: Count = 10
    """Iterations between checkpoints; one is also saved at the end and when the run is interrupted."""
    keep: Count = 2
    """Number of newest checkpoints that are kept; older ones are deleted after a newer one is complete."""
    best: Text | None = None
    """Held-out measure whose largest mean marks a checkpoint to keep as well; for example judge/identity."""


class Config(Section):
    """A whole run. Get one from `customized_grpo.config.load_config`."""

    run: RunConfig = RunConfig()
    model: ModelConfig
    data: DataConfig
    """The prompts and references to train on and to hold out."""
    rollout: RolloutConfig = RolloutConfig()
    rewards: Annotated[tuple[RewardConfig, ...], Field(strict=False, min_length=1)]
    """The rewards, of the kinds prompt, identity and quality; with one kind alone it is plain GRPO."""
    segmenter: SegmenterConfig | None = None
    """What finds subjects in drawn images, for rewards with segment: both; null: nothing does."""
    # Made when needed: a default looks up its rule or schedule, which imports torch.
    advantage: AdvantageConfig = Field(default_factory=AdvantageConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    trackers: Annotated[tuple[TrackerName, ...], Field(strict=False), BeforeValidator(refuse_known)] = ()
    """Experiment trackers to report to in addition to the run folder; each needs its extra installed."""

    @property
    def evaluation_steps(self) -> int:
        """Return the number of denoising steps of an evaluation image."""
        return self.evaluation.steps or self.rollout.steps

    @property
    def evaluation_model(self) -> ModelConfig:
        """Return the `model` section with which evaluation images are drawn."""
        own = self.evaluation
        given = {"height": own.height, "width": own.width, "guidance": own.guidance}
        changes = {name: value for name, value in given.items() if value is not None}
        return self.model.model_copy(update=changes)

    @property
    def evaluation_rows(self) -> Path | None:
        """Return the manifest of the rows that are evaluated; None if there is none."""
        if not isinstance(self.data, ManifestData):
            return None
        return self.data.held_out or self.evaluation.prompts

    @property
    def batch_sizes(self) -> dict[str, int]:
        """Return the settings that memory can be saved by, smaller ones needing less."""
        return {
            "train.micro_batch_size": self.train.micro_batch_size,
            "rollout.batch_size": self.rollout.batch_size,
            "evaluation.batch_size": self.evaluation.batch_size,
        }

    @property
    def part_names(self) -> list[str]:
        """Names of all parts that may come from outside the package, see `extensions`."""
        rewards = [reward.name for reward in (*self.rewards, *self.evaluation.judges)]
        return [self.advantage.name, self.schedule.name, self.rollout.sampler, self.model.family, *rewards]

    @model_validator(mode="after")
    def _check_across_fields(self) -> Config:
        mistakes = cross_field_mistakes(self.model_dump())
        if mistakes:
            raise ValueError("; ".join(f"{mistake.path}: {mistake.text}" for mistake in mistakes))
        return self
