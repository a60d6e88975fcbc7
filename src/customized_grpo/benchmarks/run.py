"""`cgrpo benchmark run`: list, draw what is missing, score, and write result and page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from customized_grpo.benchmarks.compare import PairedResult, compare_results
from customized_grpo.benchmarks.encoders import (
    DEFAULTS,
    JUDGED,
    JudgeEndpoint,
    MetricConfig,
    MetricReward,
    encoder_configs,
    judge_configs,
)
from customized_grpo.benchmarks.images import ImageFolder, generate
from customized_grpo.benchmarks.page import SampleImage, write_benchmark_page
from customized_grpo.benchmarks.protocol import (
    GeneratorStamp,
    ImageProtocol,
    Protocol,
    ReferenceMode,
    Segment,
    check_across,
    data_hash,
)
from customized_grpo.benchmarks.results import Result, Table, make_result, read_result
from customized_grpo.benchmarks.rows import BenchmarkRow, choose_rows, list_rows, shard
from customized_grpo.benchmarks.scoring import PREPROCESSING, check_scorable, score_images
from customized_grpo.data.examples import Example
from customized_grpo.data.fitting import Fitting
from customized_grpo.data.images import image_size, open_image, to_tensor
from customized_grpo.engine.agreement import check_processes
from customized_grpo.engine.engine import Engine
from customized_grpo.engine.environment import numeric_variables
from customized_grpo.errors import UserError
from customized_grpo.files import write_json
from customized_grpo.generation import Generator, draw, open_generator
from customized_grpo.pages.page import evenly
from customized_grpo.policies.loading import pick_device
from customized_grpo.reporting.counting import counting
from customized_grpo.rewards import build_reward, check_rewards
from customized_grpo.rewards.base import fingerprint_of, is_groupwise
from customized_grpo.rewards.features import weights_hash
from customized_grpo.runs.folder import installation

SCORING_BATCH = 16
"""Images scored together."""

ROWS_IN_MEMORY = 16
"""Rows whose references are in memory together."""

# Each is in the page itself, so that more would make it heavy.
IMAGES_ON_PAGE = 12
# Files that a note names; a folder of thousands would fill the terminal.
FOREIGN_NAMED = 5

PATHS = ("source", "data", "out", "lora", "against")
"""Fields of a request that only say where something is."""

SAME_IMAGES = {
    # what the protocol and the hash of the weights say
    "path", "fuse_lora", "start_lora", "lora", "guidance", "height", "width", "reference_fit",
    # where and how the work is done
    "gradient_checkpointing", "text_encoders", "offload_vae", "shard", "compile", "cache", "device",
}  # fmt: skip
"""Settings of a model that say nothing more of the images that it draws."""

RESULT = "results.json"
PAGE = "report.html"


@dataclass(frozen=True)
class BenchmarkRequest:
    """A benchmark to run on a generator.

    Attributes:
        source: Run, folder or hub id of the generator.
        benchmark: Name of the benchmark.
        data: Its folder or file.
        out: Folder for images and results; None chooses one by source and benchmark.
        encoders: NAME or NAME=PATH each; empty means the benchmark's own.
        judge: A vision-language model, for the benchmarks that need one.
        reference_mode: Whether an image is compared with its reference or with all photos of the subject.
        segment: Whether references are cut out for identity encoders.
        samples: Images of each row.
        subjects: Names of the subjects to draw; empty means all.
        limit: Largest number of rows.
        seed: Seed of the initial noise.
        settings: Overrides for the generator, such as "steps=4".
        lora: Adapter to put on it.
        base: Whether a run is evaluated without its adapter.
        against: results.json of another evaluation, to compare with.
        across: Protocol fields in which the two may differ.
    """

    source: str
    benchmark: str
    data: Path
    out: Path | None = None
    encoders: Sequence[str] = ()
    judge: JudgeEndpoint | None = None
    reference_mode: ReferenceMode = "single"
    segment: Segment = "none"
    samples: int = 1
    subjects: Sequence[str] = ()
    limit: int | None = None
    seed: int = 0
    settings: Sequence[str] = ()
    lora: Path | None = None
    base: bool = False
    against: Path | None = None
    across: Sequence[str] = ()


def run_benchmark(request: BenchmarkRequest) -> tuple[Path, Result, PairedResult | None] | None:
    """Evaluate a generator on a benchmark; images of an earlier call are used again.

    Several processes share the drawing; the main one scores.

    Returns:
        The folder, the result, and the comparison with `against`; None in all but the main process.

    Raises:
        UserError: A mistake of the user; everything but the generator's own files is checked before it is
            loaded.
    """
    check_across(request.across)
    all_rows = list_rows(request.benchmark, request.data)
    rows = choose_rows(all_rows, subjects=request.subjects, limit=request.limit)
    check_scorable(rows, request.reference_mode, request.segment)
    # read now, because a wrong file must not be found after hours of drawing
    earlier = None if request.against is None else read_result(request.against)
    # of all rows: results of some of them are compared with results of all
    data = data_hash(all_rows)
    engine = Engine(pick_device("auto"))
    check_processes(engine, process_values(request, data))
    rewards: list[MetricReward] = []
    # before the generator: a mistake in a reward must end all processes before anything large is loaded
    engine.from_main(lambda: rewards.extend(build_metric_rewards(request)))
    settings = list(request.settings)
    if engine.world_size > 1:  # each process draws on its own device
        settings.append(f"model.device={engine.device}")
    generator = open_generator(request.source, settings=settings, lora=request.lora, base=request.base)
    folder = _open_folder(engine, request, generator, data)
    _draw_missing(folder, shard(rows, engine.rank, engine.world_size), generator, request)
    # the main process scores the images of all, which must be there
    engine.wait_for_all()
    # the other processes have nothing left to do, and must not wait for the scores
    engine.close()
    if not engine.is_main:
        return None
    result = _score(folder, rows, rewards, request)
    # First of all, because a refused comparison must not cost the scores.
    write_json(folder.path / RESULT, result.to_json())
    paired = None if earlier is None else compare_results(earlier, result, request.across)
    write_benchmark_page(folder.path / PAGE, result, paired, _samples(folder, rows, result))
    return folder.path, result, paired


def process_values(request: BenchmarkRequest, data: str) -> dict[str, Any]:
    """Return what all processes of a benchmark must have in common before anything is loaded.

    Args:
        request: Its paths may differ: what they lead to is compared.
        data: Hash of the benchmark's rows and images.
    """
    values = {f"benchmark.{name}": value for name, value in asdict(request).items() if name not in PATHS}
    values |= {f"versions.{name}": version for name, version in installation().items()}
    values |= {f"environment.{name}": value for name, value in numeric_variables().items()}
    return {**values, "benchmark.data": data}


def _open_folder(engine: Engine, request: BenchmarkRequest, generator: Generator, data: str) -> ImageFolder:
    """Open the folder of the images in every process, after the main one has made and stamped it."""
    protocol = _image_protocol(request, generator, data)
    weights = weights_hash(generator.policy.transformer)
    check_processes(engine, {**asdict(protocol), "weights": weights})
    path = request.out or default_folder(generator.name, request.benchmark)
    # By exclusion: a setting that is new here counts until someone has thought about it.
    settings = generator.model.model_dump(mode="json", exclude=SAME_IMAGES)
    folder = ImageFolder(path, protocol, GeneratorStamp(generator.name, weights), settings)
    engine.from_main(folder.claim)
    return folder


def default_folder(name: str, benchmark: str) -> Path:
    """Return the folder of a benchmark of a generator when the user names none."""
    # a hub id has a slash, and a path several: none may make folders of its own
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")
    return Path("runs") / f"{benchmark}-{slug}"


def build_metric_rewards(request: BenchmarkRequest) -> list[MetricReward]:
    """Build the rewards that score the images.

    Raises:
        UserError: The benchmark needs a judge and there is none, or an encoder cannot be built or compares
            the images of a group.
    """
    judged = request.benchmark in JUDGED
    if request.judge is not None and not judged:
        raise UserError(f"--judge-url: {request.benchmark} is not scored by a judge", hint="Leave it out.")
    if judged and request.judge is None and not request.encoders:
        raise UserError(
            f"{request.benchmark} is scored by a vision-language model",
            hint="Give --judge-url and --judge-model of an OpenAI-compatible endpoint, or name --encoder.",
        )
    names = request.encoders or (() if judged else DEFAULTS)
    device = pick_device("auto")
    configs = [MetricConfig(config.name, config) for config in encoder_configs(names, request.segment)]
    if request.judge is not None:
        configs += judge_configs(request.benchmark, request.judge)
    # all of them before the first loads weights
    check_rewards([config.reward for config in configs])
    rewards = []
    for config in configs:
        rewards.append(MetricReward(config.metric, build_reward(config.reward, device), config.scale))
    groupwise = [reward.reward.name for reward in rewards if is_groupwise(reward.reward)]
    if groupwise:
        raise UserError(
            f"--encoder {', '.join(groupwise)} compares the images of a group, and a benchmark scores images "
            "one by one",
            hint="Choose an encoder that scores single images.",
        )
    return rewards


def _image_protocol(request: BenchmarkRequest, generator: Generator, data: str) -> ImageProtocol:
    height, width = generator.size
    return ImageProtocol(
        request.benchmark,
        data,
        generator.steps,
        generator.model.guidance,
        height,
        width,
        request.seed,
        generator.fitting.fit,
        generator.fitting.size,
    )


def _draw_missing(
    folder: ImageFolder, rows: Sequence[BenchmarkRow], generator: Generator, request: BenchmarkRequest
) -> None:
    fitting = generator.fitting

    def draw_rows(part: Sequence[BenchmarkRow]) -> Iterator[Tensor]:
        examples = [_example(row, fitting) for row in part]
        return draw(generator, examples, request.seed, request.samples)

    total = len(rows) * request.samples
    with closing(counting("drawing", total)) as counter:
        files: dict[Path, None] = {}  # an ordered set
        for row in rows:
            files |= dict.fromkeys(row.references)
        note = fitting.note([(str(file), image_size(file)) for file in files])
        if note is not None:
            counter.note(f"note: {note}")

        def say_foreign(foreign: list[Path]) -> None:
            counter.note(
                f"{len(foreign)} images were changed since they were drawn, or not drawn here, and are drawn "
                f"again: {', '.join(file.name for file in foreign[:FOREIGN_NAMED])}"
                + (", ..." if len(foreign) > FOREIGN_NAMED else "")
            )

        count = generate(
            folder,
            rows,
            draw_rows,
            samples=request.samples,
            rows_together=ROWS_IN_MEMORY,
            on_batch=counter.add,
            on_foreign=say_foreign,
        )
        counter.note(f"{count} images drawn, {total - count} were there already")


def _example(row: BenchmarkRow, fitting: Fitting) -> Example:
    images = [open_image(file) for file in row.references]
    references = tuple(to_tensor(fitting.apply(image, len(images))) for image in images)
    return Example(row.id, row.prompt, references, None, None, row.subject)


def _score(
    folder: ImageFolder,
    rows: Sequence[BenchmarkRow],
    rewards: Sequence[MetricReward],
    request: BenchmarkRequest,
) -> Result:
    drawings = list(product(rows, range(request.samples)))
    with closing(counting("scoring", len(drawings))) as counter:
        columns = score_images(
            folder,
            drawings,
            rewards,
            mode=request.reference_mode,
            segment=request.segment,
            batch_size=SCORING_BATCH,
            on_batch=counter.add,
        )
    protocol = Protocol(
        folder.protocol,
        request.reference_mode,
        request.segment,
        PREPROCESSING,
        _fingerprints(rewards),
    )
    table = Table(
        ids=[f"{row.id}/{number}" for row, number in drawings],
        subjects=[row.subject for row, _ in drawings],
        categories=[row.category for row, _ in drawings],
        prompt_types=[row.prompt_type for row, _ in drawings],
        columns=columns,
    )
    return make_result(asdict(folder.generator), protocol.to_json(), table)


def _fingerprints(rewards: Sequence[MetricReward]) -> dict[str, dict[str, object]]:
    """Return the fingerprint of every reward by its metric; the runs of one judge are numbered."""
    # several rewards may share a metric: the runs of a judge, whose mean is the column
    counts: Counter[str] = Counter()
    fingerprints: dict[str, dict[str, object]] = {}
    for reward in rewards:
        counts[reward.metric] += 1
        number = counts[reward.metric]
        key = reward.metric if number == 1 else f"{reward.metric} (run {number})"
        fingerprints[key] = fingerprint_of(reward.reward)
    return fingerprints


def _samples(folder: ImageFolder, rows: Sequence[BenchmarkRow], result: Result) -> list[SampleImage]:
    """Return the first image of one row of each of some subjects, for the page."""
    by_subject: dict[str, list[BenchmarkRow]] = {}
    for row in rows:
        by_subject.setdefault(row.subject, []).append(row)
    rows_of = list(by_subject.values())
    number_of = {row: number for number, row in enumerate(result.table.ids)}
    samples = []
    for k in evenly(range(len(rows_of)), IMAGES_ON_PAGE):
        row = rows_of[k][k % len(rows_of[k])]  # another prompt for each subject
        # the table has a row for each image: the first one of this prompt
        place = number_of[f"{row.id}/0"]
        scores = {metric: float(values[place]) for metric, values in result.table.columns.items()}
        samples.append(
            SampleImage(
                prompt=row.prompt,
                subject=row.subject,
                reference=open_image(row.references[0]),
                image=open_image(folder.file((row, 0))),
                scores=scores,
            )
        )
    return samples
