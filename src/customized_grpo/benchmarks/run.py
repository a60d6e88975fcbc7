"""`cgrpo benchmark run`: list, draw what is missing, score, and write result and page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from customized_grpo.benchmarks.compare import Comparison, compare
from customized_grpo.benchmarks.encoders import (
    DEFAULTS,
    JUDGED,
    Encoder,
    JudgeEndpoint,
    encoder_configs,
    judge_configs,
)
from customized_grpo.benchmarks.page import Shown, write_benchmark_page
from customized_grpo.benchmarks.pictures import Drawing, PictureFolder, generate
from customized_grpo.benchmarks.protocol import (
    GeneratorStamp,
    PictureProtocol,
    Protocol,
    ReferenceMode,
    Segment,
    check_across,
    data_hash,
)
from customized_grpo.benchmarks.results import Result, Table, make_result, read_result
from customized_grpo.benchmarks.rows import BenchmarkRow, choose_rows, list_rows, shard
from customized_grpo.benchmarks.scoring import PREPROCESSING, check_scorable, score_pictures
from customized_grpo.data.examples import Example
from customized_grpo.data.images import open_image, resize_cover, to_tensor
from customized_grpo.engine.engine import Engine
from customized_grpo.errors import UserError
from customized_grpo.files import write_json
from customized_grpo.generation import Generator, draw, open_generator
from customized_grpo.pages.run_page import evenly
from customized_grpo.policies.loading import pick_device
from customized_grpo.reporting.counting import counting
from customized_grpo.rewards import build_reward, check_rewards
from customized_grpo.rewards.features import weights_hash

SCORING_BATCH = 16
ROWS_IN_MEMORY = 16
SHOWN = 12  # pictures on the page
RESULT, PAGE = "results.json", "report.html"


@dataclass(frozen=True)
class Request:
    """What the user asked for.

    Attributes:
        source: Run, folder or hub id.
        benchmark: Name of the benchmark.
        data: Its folder or file.
        out: Folder for pictures and results; None chooses one by source and benchmark.
        encoders: NAME or NAME=PATH each; empty means the benchmark's own.
        judge: A vision-language model, for the benchmarks that need one.
        reference_mode: What pictures are compared with.
        segment: Whether references are cut out for identity encoders.
        samples: Pictures of each row.
        subjects: Only these; empty means all.
        limit: At most so many rows.
        seed: Of the initial noise.
        settings: Overrides for the generator, such as "steps=4".
        lora: Adapter to put on it.
        base: Whether a run is evaluated without what it learnt.
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


def run_benchmark(request: Request) -> tuple[Path, Result, Comparison | None] | None:
    """Evaluate a generator on a benchmark; what an earlier call drew is used again.

    Several processes share the drawing; the main one scores.

    Returns:
        the folder, the result, and the comparison with `against`; None in all but the main process.

    Raises:
        UserError: Something the user can mend; everything but the generator's own files is checked before it
            is loaded.
    """
    check_across(request.across)
    listed = list_rows(request.benchmark, request.data)
    rows = choose_rows(listed, subjects=request.subjects, limit=request.limit)
    check_scorable(rows, request.reference_mode, request.segment)
    earlier = None if request.against is None else read_result(request.against)
    engine = Engine(pick_device("auto"))
    encoders = build_encoders(request) if engine.is_main else []
    place = [f"model.device={engine.device}"] if engine.world_size > 1 else []
    generator = open_generator(
        request.source, settings=[*request.settings, *place], lora=request.lora, base=request.base
    )
    folder = _open_folder(engine, request, generator, data_hash(listed))
    _draw_missing(folder, shard(rows, engine.rank, engine.world_size), generator, request)
    engine.wait_for_all()
    engine.close()
    if not engine.is_main:
        return None
    result = _score(folder, rows, encoders, request)
    write_json(folder.path / RESULT, result.to_json())  # first: a refused comparison must not cost the scores
    comparison = None if earlier is None else compare(earlier, result, request.across)
    write_benchmark_page(folder.path / PAGE, result, comparison, _shown(folder, rows, result))
    return folder.path, result, comparison


def _open_folder(engine: Engine, request: Request, generator: Generator, data: str) -> PictureFolder:
    """Open the folder of the pictures in every process, after the main one has made and stamped it."""

    def open_folder() -> PictureFolder:
        return PictureFolder(
            request.out or default_folder(generator.name, request.benchmark),
            _picture_protocol(request, generator, data),
            GeneratorStamp(generator.name, weights_hash(generator.policy.transformer)),
        )

    engine.from_main(lambda: str(open_folder().path))
    return open_folder()


def default_folder(name: str, benchmark: str) -> Path:
    """Return where a benchmark of a generator goes unless the user says so."""
    return Path("runs") / f"{benchmark}-{re.sub(r'[^A-Za-z0-9.]+', '-', name).strip('-')}"


def build_encoders(request: Request) -> list[Encoder]:
    """Return what scores the pictures.

    Raises:
        UserError: The benchmark needs a judge and there is none, or an encoder cannot be built.
    """
    judged = request.benchmark in JUDGED
    if request.judge is not None and not judged:
        raise UserError(f"--judge-url: {request.benchmark} is not scored by a judge", "Leave it out.")
    if judged and request.judge is None and not request.encoders:
        raise UserError(
            f"{request.benchmark} is scored by a vision-language model",
            "Give --judge-url and --judge-model of an OpenAI-compatible endpoint, or name --encoder.",
        )
    names = request.encoders or (() if judged else DEFAULTS)
    device = pick_device("auto")
    configs = [(config.name, 1.0, config) for config in encoder_configs(names, request.segment)]
    if request.judge is not None:
        configs += judge_configs(request.benchmark, request.judge)
    check_rewards([config for _, _, config in configs])
    return [Encoder(metric, build_reward(config, device), scale) for metric, scale, config in configs]


def _picture_protocol(request: Request, generator: Generator, data: str) -> PictureProtocol:
    height, width = generator.size
    return PictureProtocol(
        request.benchmark, data, generator.steps, generator.model.guidance, height, width, request.seed
    )


def _draw_missing(
    folder: PictureFolder, rows: Sequence[BenchmarkRow], generator: Generator, request: Request
) -> None:
    def pictures(part: Sequence[BenchmarkRow]) -> Iterator[Tensor]:
        return draw(
            generator, [_example(row, *generator.size) for row in part], request.seed, request.samples
        )

    total = len(rows) * request.samples
    with closing(counting("drawing", total)) as counter:
        made = generate(
            folder, rows, pictures, samples=request.samples, rows_together=ROWS_IN_MEMORY, made=counter.add
        )
        counter.note(f"{made} pictures drawn, {total - made} were there already")


def _example(row: BenchmarkRow, height: int, width: int) -> Example:
    references = tuple(to_tensor(resize_cover(open_image(file), height, width)) for file in row.references)
    return Example(row.id, row.prompt, references, None, None, row.subject)


def _score(
    folder: PictureFolder, rows: Sequence[BenchmarkRow], encoders: Sequence[Encoder], request: Request
) -> Result:
    drawings = [(row, number) for row in rows for number in range(request.samples)]
    with closing(counting("scoring", len(drawings))) as counter:
        columns = score_pictures(
            folder,
            drawings,
            encoders,
            mode=request.reference_mode,
            segment=request.segment,
            batch_size=SCORING_BATCH,
            scored=counter.add,
        )
    protocol = Protocol(
        folder.protocol,
        request.reference_mode,
        request.segment,
        PREPROCESSING,
        _fingerprints(encoders),
    )
    table = Table(
        ids=[f"{row.id}/{number}" for row, number in drawings],
        subjects=[row.subject for row, _ in drawings],
        categories=[row.category for row, _ in drawings],
        prompt_types=[row.prompt_type for row, _ in drawings],
        columns=columns,
    )
    return make_result(asdict(folder.generator), protocol.to_json(), table)


def _fingerprints(encoders: Sequence[Encoder]) -> dict[str, dict[str, object]]:
    """Return the fingerprint of every encoder; the runs of one judge are numbered."""
    counts: dict[str, int] = {}
    found: dict[str, dict[str, object]] = {}
    for encoder in encoders:
        number = counts[encoder.metric] = counts.get(encoder.metric, 0) + 1
        key = encoder.metric if number == 1 else f"{encoder.metric} (run {number})"
        found[key] = json.loads(json.dumps(encoder.reward.fingerprint()))
    return found


def _shown(folder: PictureFolder, rows: Sequence[BenchmarkRow], result: Result) -> list[Shown]:
    """Return the first picture of one row of each of some subjects, for the page."""
    by_subject: dict[str, list[BenchmarkRow]] = {}
    for row in rows:
        by_subject.setdefault(row.subject, []).append(row)
    subjects = evenly(range(len(by_subject)), SHOWN)
    groups = list(by_subject.values())
    chosen: list[Drawing] = [(groups[k][k % len(groups[k])], 0) for k in subjects]
    places = {row: number for number, row in enumerate(result.table.ids)}
    return [
        Shown(
            prompt=row.prompt,
            subject=row.subject,
            reference=open_image(row.references[0]),
            picture=open_image(folder.file((row, number))),
            scores={
                metric: float(values[places[f"{row.id}/{number}"]])
                for metric, values in result.table.columns.items()
            },
        )
        for row, number in chosen
    ]
