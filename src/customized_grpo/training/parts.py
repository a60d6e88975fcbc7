"""From a recipe to the parts of a run, with every cheap check before anything is loaded.

The trainer, the doctor and `cgrpo evaluate` all assemble their parts here.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import assert_never

import torch

from customized_grpo.config import Config
from customized_grpo.config.data_sources import ManifestData, ToyboxData, TwoScaleData
from customized_grpo.config.schema import EvaluationConfig, RewardConfig
from customized_grpo.data.examples import Example, ExampleSource, ManifestSource
from customized_grpo.data.overlap import Overlap
from customized_grpo.embedded import EMBEDDED
from customized_grpo.engine.agreement import check_processes
from customized_grpo.engine.device import announce
from customized_grpo.engine.engine import Engine
from customized_grpo.engine.interrupts import StopFlag
from customized_grpo.engine.partition import padded_block
from customized_grpo.errors import UserError
from customized_grpo.evaluation.held_out import HeldOutEvaluation, Judges
from customized_grpo.evaluation.judges import RewardJudges, build_judges
from customized_grpo.evaluation.scores import MIN_CLUSTERS
from customized_grpo.libraries import quiet
from customized_grpo.policies.loading import load_policy, pick_device
from customized_grpo.policies.policy import Policy
from customized_grpo.policies.start_adapter import shaped_like_start
from customized_grpo.rewards import check_rewards, executors, needs_subjects
from customized_grpo.rewards.executors import Scorer
from customized_grpo.rewards.segmenter import TextSegmenter
from customized_grpo.rollout.encoding import PromptEncoder
from customized_grpo.rollout.sampler import Sampler, build_sampler
from customized_grpo.training.choices import check_bare_rows, check_choices, check_words
from customized_grpo.training.equal_work import check_equal_work
from customized_grpo.training.identity import process_values
from customized_grpo.training.idle import refuse_idle_settings, refuse_lone_weights
from customized_grpo.training.optimizers import check_optimizer
from customized_grpo.training.rows import fitting_of, mixed, open_rows


@dataclass(frozen=True)
class Data:
    """The rows of a recipe.

    Attributes:
        train: Rows to train on, loaded one at a time.
        held_out: Rows to evaluate on; empty when there are none.
        judges: Held-out judges; None when there are none for this data.
        notes: What the user should know of the rows, a sentence each.
        overlap: What is in the training rows and in the held-out rows, although they should share nothing.
        fingerprints: Of the rows of manifests and their images, by part of the data.
        n_bare: Rows without references.
    """

    train: ExampleSource
    held_out: Sequence[Example]
    judges: Judges | None
    notes: Sequence[str] = ()
    overlap: Overlap = Overlap()
    fingerprints: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    n_bare: int = 0


@dataclass(frozen=True)
class Parts:
    """The parts of a run, as its recipe says.

    Attributes:
        config: The recipe.
        engine: Device and processes.
        data: Rows and held-out judges.
        scorer: The training rewards.
        policy: The generator with its adapter.
    """

    config: Config
    engine: Engine
    data: Data
    scorer: Scorer
    policy: Policy

    # The rest is built on first use: a cache of encodings may lie in a run folder that does not exist yet.

    @cached_property
    def encoder(self) -> PromptEncoder:
        """The encoder of prompts and references, with the recipe's cache."""
        return PromptEncoder.from_config(self.config.model, self.policy)

    @cached_property
    def evaluation_encoder(self) -> PromptEncoder:
        """The encoder of evaluation images; that of training, where both draw alike."""
        model = self.config.evaluation_model
        return self.encoder if model == self.config.model else PromptEncoder.from_config(model, self.policy)

    @cached_property
    def sampler(self) -> Sampler:
        """The stochastic sampler of the rollout."""
        return build_sampler(self.policy, self.config.rollout, *self.encoder.size)

    @cached_property
    def evaluation(self) -> HeldOutEvaluation:
        """The recipe's evaluation on the held-out rows."""
        return HeldOutEvaluation(
            self.config,
            self.engine,
            self.policy,
            self.evaluation_encoder,
            self.scorer,
            self.data.judges,
            self.data.held_out,
        )

    def encode_and_drop_encoders(self, stop: StopFlag) -> None:
        """Fill the cache of encodings with every row, then free the memory of the text encoders.

        Args:
            stop: Checked before every row.
        """
        self._fill_cache(self.encoder, self.data.train, stop)
        with self.policy.guided(self.config.evaluation_model.guidance):
            self._fill_cache(self.evaluation_encoder, self.data.held_out, stop)
        self.engine.wait_for_all()  # the cache is shared: the others' rows are in it now
        self.policy.drop_text_encoders()

    def _fill_cache(
        self, encoder: PromptEncoder, rows: Sequence[Example] | ExampleSource, stop: StopFlag
    ) -> None:
        own_rows = padded_block(len(rows), self.engine.rank, self.engine.world_size)
        encoder.fill_cache((rows[row] for row in own_rows), stop.batch_check(len(own_rows)))


@contextmanager
def open_parts(config: Config, engine: Engine) -> Iterator[Parts]:
    """Build the parts of a run, the cheap ones first, and close its rewards at the end of the block.

    With `model.start_lora` their recipe has that adapter's rank, alpha and layers as `model.lora`.

    Raises:
        UserError: Something is wrong with the recipe, its data, its rewards or its model.
    """
    check_optimizer(config.train, engine.device)
    config = config.model_copy(update={"model": shaped_like_start(config.model)})
    data = build_data(config, show=engine.is_main)
    if engine.is_main:
        _announce(config, engine)
    with build_scorer(config, engine.device) as scorer:
        check_held_out(data, scorer)
        check_rows(config, data, scorer)
        if data.held_out:
            check_whole_groups(config.evaluation, scorer)
        yield Parts(config, engine, data, scorer, build_policy(config, engine.device))


def _announce(config: Config, engine: Engine) -> None:
    model = config.model
    is_embedded = model.path in EMBEDDED
    announce(engine.device, requested=model.device, precision=model.precision, is_embedded=is_embedded)
    if engine.ignored:
        print(f"note: ignored, as the recipe decides: {', '.join(engine.ignored)}", file=sys.stderr)


def build_data(config: Config, *, show: bool = False) -> Data:
    """Check and open the data of a recipe.

    Args:
        config: The recipe.
        show: Whether to show progress on stderr.

    Raises:
        UserError: Lists every bad row at once.
    """
    data = config.data
    models = (config.model, config.evaluation_model)
    check_judge_configs(config)
    if isinstance(data, ToyboxData):
        return _toybox(data, [(model.height, model.width) for model in models])
    if isinstance(data, TwoScaleData):
        return _two_scale([(model.height, model.width) for model in models])
    if isinstance(data, ManifestData):
        rows = open_rows(config, data, show=show)
        if data.held_out is not None and rows.n_held_out_subjects == 1:
            raise UserError(
                f"{data.held_out}: all rows are about one subject, so no interval can be given",
                hint="Hold out at least two subjects (eight or more for reliable intervals), or name the "
                "rows as evaluation.prompts: images and means without intervals.",
            )
        held_out = rows.held_out or ()
        fitting = fitting_of(config, config.model)
        evaluation_fitting = fitting_of(config, config.evaluation_model)
        if config.model.shard:
            train_rows = [(part, fitting) for part in (rows.train, *rows.mix)]
            check_equal_work(config.model.family, train_rows, (rows.held_out, evaluation_fitting))
        # a batch is asked for its images several times, and its first row may be of the batch before
        examples = ManifestSource(held_out, evaluation_fitting).on_demand(config.evaluation.batch_size + 1)
        device = pick_device(config.model.device)
        judges = build_judges(
            config.evaluation.judges,
            examples,
            device,
            load_segmenter(config, config.evaluation.judges, device),
        )
        if judges is not None:
            refuse_lone_weights("evaluation.judges", config.evaluation.judges, judges.judges)
        train = mixed(data, rows, fitting)
        return Data(train, examples, judges, rows.notes, rows.overlap, rows.fingerprints, rows.n_bare)
    assert_never(data)


def check_judge_configs(config: Config) -> None:
    """Refuse judges that are training rewards by name, judges beside an embedded world's, and idle settings.

    Raises:
        UserError: Names them.
    """
    judges = config.evaluation.judges
    if judges and not isinstance(config.data, ManifestData):
        raise UserError(
            f"evaluation.judges: data.kind={config.data.kind} brings held-out judges of its own",
            hint="Leave them out.",
        )
    holds_out = not isinstance(config.data, ManifestData) or config.evaluation_rows is not None
    if config.evaluation.on_alarm == "stop" and not holds_out:
        raise UserError(
            "evaluation.on_alarm=stop: nothing is held out, so no alarm can be raised",
            hint="Set data.held_out or evaluation.prompts to a manifest, or leave this out.",
        )
    elsewhere = [judge.name for judge in judges if judge.executor.kind != "inline"]
    if elsewhere:
        raise UserError(
            f"evaluation.judges: {', '.join(elsewhere)} has an executor, but judges run in the trainer",
            hint="Leave executor out.",
        )
    trained = [(reward.name, reward.path, reward.options) for reward in config.rewards]
    same = [judge.name for judge in judges if (judge.name, judge.path, judge.options) in trained]
    if same:
        raise UserError(
            f"evaluation.judges: {', '.join(same)} is a training reward as well, so it is not held out",
            hint="Choose a judge with another model, such as another encoder's path.",
        )


def _toybox(data: ToyboxData, sizes: Iterable[tuple[int, int]]) -> Data:
    with quiet():
        from customized_grpo.toybox.judging import ToyBoxJudges
        from customized_grpo.toybox.models import IMAGE_SIZE
        from customized_grpo.toybox.source import TRAIN_PROMPTS_PER_SUBJECT, ToyBoxSource

    _check_image_size("toybox", IMAGE_SIZE, sizes)
    if data.held_out_subjects < MIN_CLUSTERS:
        raise UserError(
            "data.held_out_subjects=1: intervals resample subjects and need at least two",
            hint=f"Set data.held_out_subjects={MIN_CLUSTERS} or more.",
        )
    train = ToyBoxSource(data.subjects, TRAIN_PROMPTS_PER_SUBJECT, data.seed, "train")
    held_out = ToyBoxSource(data.held_out_subjects, data.held_out_prompts_per_subject, data.seed, "held-out")
    # Two draws from one world may hold the same toy; the report says so.
    toys = {train.toy(index) for index in range(data.subjects)}
    shared = [f"toy {index}" for index in range(data.held_out_subjects) if held_out.toy(index) in toys]
    examples = [held_out[i] for i in range(len(held_out))]
    return Data(train, examples, ToyBoxJudges(), overlap=Overlap(tuple(shared)))


def _two_scale(sizes: Iterable[tuple[int, int]]) -> Data:
    with quiet():
        from customized_grpo.two_scale.judging import TwoScaleJudges
        from customized_grpo.two_scale.source import rows
        from customized_grpo.two_scale.world import IMAGE_SIZE

    _check_image_size("two-scale", IMAGE_SIZE, sizes)
    return Data(rows(held_out=False), rows(held_out=True), TwoScaleJudges())


def _check_image_size(kind: str, side: int, sizes: Iterable[tuple[int, int]]) -> None:
    """Refuse sizes, of training or of its evaluations, that an embedded world does not draw."""
    for height, width in sizes:
        if (height, width) != (side, side):
            raise UserError(
                f"data.kind={kind} draws {side}x{side} images, the model makes {height}x{width}",
                hint=f"Set model.height={side} model.width={side}, or use data.kind=manifest.",
            )


def build_engine(config: Config) -> Engine:
    """Join the launched processes, one or more, and check that the work can be partitioned over them.

    Raises:
        UserError: The processes have different recipes or versions, the groups cannot be partitioned evenly,
            or one accelerator is named for several processes.
    """
    device = pick_device(config.model.device)
    engine = Engine(device, config.run.process_timeout_s, is_sharded=config.model.shard)
    check_processes(engine, process_values(config))
    if engine.world_size > 1 and ":" in config.model.device:
        raise UserError(
            f"model.device {config.model.device!r} names one accelerator for {engine.world_size} processes",
            hint="Use model.device=auto: every process takes its own.",
        )
    # Before data and model are loaded: it needs only numbers of the recipe.
    engine.partition(config.train.updates_per_iteration).check(config.train.prompts_per_iteration)
    return engine


def build_scorer(config: Config, device: torch.device | None = None) -> Scorer:
    """Build the rewards of a recipe in their executors.

    Args:
        config: The recipe.
        device: Where models that run in this process go; None: the recipe's device.

    Returns:
        The scorer, to be closed by the caller.

    Raises:
        UserError: A reward cannot be built, two have one name, or a weight changes nothing.
    """
    check_rewards(config.rewards)
    device = device or pick_device(config.model.device)
    scorer = executors.build_scorer(config.rewards, device, load_segmenter(config, config.rewards, device))
    try:
        refuse_idle_settings(config, scorer.rewards)
    except UserError:
        scorer.close()
        raise
    return scorer


def load_segmenter(
    config: Config, rewards: Sequence[RewardConfig], device: torch.device
) -> TextSegmenter | None:
    """Load what finds subjects in drawn images; None if none of these rewards needs it."""
    if config.segmenter is None or not any(needs_subjects(reward) for reward in rewards):
        return None
    return TextSegmenter.load(config.segmenter, device)


def check_held_out(data: Data, scorer: Scorer) -> None:
    """Refuse judges that share a model with a training reward.

    Raises:
        UserError: Names them.
    """
    if isinstance(data.judges, RewardJudges):
        data.judges.check_apart(scorer.fingerprints())


def check_rows(config: Config, data: Data, scorer: Scorer) -> None:
    """Refuse rows that lack what the rewards and judges that score them need.

    Raises:
        UserError: Names them.
    """
    check_choices(data.train, data.held_out, [reward.name for reward in scorer.rewards])
    if data.n_bare:
        check_bare_rows(data.train, data.held_out, scorer, data.judges)
    if config.segmenter is not None:
        pairs = zip(config.rewards, scorer.rewards, strict=True)
        looking = [reward.name for entry, reward in pairs if needs_subjects(entry)]
        judged = any(needs_subjects(judge) for judge in config.evaluation.judges)
        check_words(data.train, data.held_out, looking, judged=judged)


def check_whole_groups(evaluation: EvaluationConfig, scorer: Scorer) -> None:
    """Refuse an evaluation whose batches do not show a groupwise reward the images of a prompt together.

    Raises:
        UserError: A prompt has one image alone, or its images may be in two batches.
    """
    groupwise = [reward.name for reward in scorer.rewards if reward.groupwise]
    if not groupwise:
        return
    count = evaluation.samples_per_prompt
    reason = f"{', '.join(groupwise)} compares the images of one prompt"
    if count < 2:
        raise UserError(
            f"{reason}, and evaluation.samples_per_prompt={count} draws one",
            hint="Set evaluation.samples_per_prompt=2 or more.",
        )
    if evaluation.batch_size % count:
        raise UserError(
            f"{reason}, and evaluation.batch_size={evaluation.batch_size} does not hold whole prompts of "
            f"evaluation.samples_per_prompt={count}",
            hint=f"Make evaluation.batch_size a multiple of {count}.",
        )


def build_policy(config: Config, device: torch.device | None = None) -> Policy:
    """Load the generator with a fresh adapter; on the recipe's device unless another is given."""
    return load_policy(config.model, seed=config.run.seed, device=device)
