"""`cgrpo data`: manifests from published data sets, masks, and checks before training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from customized_grpo.cli.common import JsonFile, Trust, parse_size, problem_count, write_json_file
from customized_grpo.cli.data_masks import masks
from customized_grpo.data.adapters.names import MaskChoice, SubjectChoice
from customized_grpo.errors import UserError
from customized_grpo.text_limits import CLIP_TOKENS

if TYPE_CHECKING:
    from customized_grpo.data.adapters.base import Options
    from customized_grpo.data.survey import Survey

app = typer.Typer(help="Make manifests and masks, and check them.", no_args_is_help=True)
app.command("masks")(masks)

MAX_SIZES = 8  # lines of the table of sizes

Images = Annotated[
    Path | None,
    typer.Option(help="uno, syncd-pairs: folder of the list's relative paths; by default the list's own."),
]
Prompts = Annotated[
    Path | None,
    typer.Option(help="folder: file of one prompt per line; {} is replaced by the subject's class."),
]
Reference = Annotated[
    str | None,
    typer.Option(
        help="folder, dreambench: turns (every photo; the default of folder), first (that of dreambench), "
        "all, or a photo's name without ending; dreambench also reads a JSON list of UNO's."
    ),
]
MinScore = Annotated[
    float | None,
    typer.Option(help="uno-1m: lowest score_final to keep; 3.5 by default, 4 is perfect."),
]
MinQuality = Annotated[
    int | None,
    typer.Option(min=0, max=5, help="subjects200k: lowest of the three ratings to keep; 5 by default."),
]
Subject = Annotated[
    SubjectChoice | None,
    typer.Option(help="uno: rows of a subject are those with the same references (default) or folder."),
]
Columns = Annotated[
    str | None,
    typer.Option(help="hub: which column is what, such as prompt=caption,references=image,target=edited."),
]
Split = Annotated[str | None, typer.Option(help="hub: split to read; train by default.")]
Subset = Annotated[str | None, typer.Option(help="hub: subset to read, where there are several.")]
Masks = Annotated[
    MaskChoice, typer.Option(help="The source's own masks, the transparency of the references, or none.")
]


@app.command()
def convert(
    layout: Annotated[
        str, typer.Argument(help="Layout of the source, see docs/data.md; or your own, package.module:NAME.")
    ],
    source: Annotated[Path, typer.Argument(help="Folder or list of the published data set, or a hub id.")],
    out: Annotated[Path, typer.Argument(help="New or empty folder to write to.")],
    held_out: Annotated[
        str | None,
        typer.Option(help="Subjects to hold out for evaluation: a number, or a share such as 10%."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of held-out subjects.")] = 0,
    masks: Masks = MaskChoice.shipped,
    link: Annotated[bool, typer.Option("--link", help="Hard-link images instead of copying them.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out bad rows and count them.")] = False,
    images: Images = None,
    prompts: Prompts = None,
    reference: Reference = None,
    min_score: MinScore = None,
    min_quality: MinQuality = None,
    subject: Subject = None,
    columns: Columns = None,
    split: Split = None,
    subset: Subset = None,
    json_file: JsonFile = None,
    trust: Trust = None,
) -> None:
    """Make a folder to train on from a published data set.

    OUT gets manifest.jsonl with images and masks, and with --held-out also train.jsonl and held_out.jsonl,
    which have no subject in common. All bad rows are listed at once; OUT appears whole or not at all.

    For example: cgrpo data convert dreambench dreambooth/dataset data/dreambench --held-out 8
    """
    from customized_grpo import extensions
    from customized_grpo.data.convert import Choices
    from customized_grpo.data.convert import convert as convert_source
    from customized_grpo.data.split import HeldOut

    choices = Choices(
        masks=masks,
        link=link,
        skip_bad=skip_bad,
        held_out=None if held_out is None else HeldOut.parse(held_out),
        seed=seed,
    )
    options = _options(images, prompts, reference, min_score, min_quality, subject, columns, split, subset)
    survey = convert_source(extensions.load("adapter", layout), source, out, options, choices)
    print(render(survey))
    print(f"\nwritten: {out}")
    write_json_file(json_file, survey.to_json())


@app.command()
def check(
    source: Annotated[
        Path, typer.Argument(help="Manifest, folder of a converted data set, or source of a --layout.")
    ],
    held_out: Annotated[
        Path | None, typer.Option(help="Manifest that must share no subject and no image with it.")
    ] = None,
    require_masks: Annotated[
        bool, typer.Option("--require-masks", help="Count a row without masks as a problem.")
    ] = False,
    layout: Annotated[
        str | None, typer.Option(help="Check a published data set as convert would read it.")
    ] = None,
    masks: Masks = MaskChoice.shipped,
    images: Images = None,
    prompts: Prompts = None,
    reference: Reference = None,
    min_score: MinScore = None,
    min_quality: MinQuality = None,
    subject: Subject = None,
    columns: Columns = None,
    split: Split = None,
    subset: Subset = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW", help="Say what model.reference_fit=crop cuts of references at this size."
        ),
    ] = None,
    json_file: JsonFile = None,
    trust: Trust = None,
) -> None:
    """Show the content of a data set and its problems.

    Opens every image. Problems are bad rows, repeated rows, targets that equal a reference, and subjects or
    images that training and held-out rows share; they make the exit status 2.

    For example: cgrpo data check data/dreambench
    """
    options = _options(images, prompts, reference, min_score, min_quality, subject, columns, split, subset)
    shape = None if size is None else parse_size(size)
    if layout is None:
        survey = _check_manifests(source, held_out, require_masks, options, masks, shape)
    else:
        from customized_grpo import extensions
        from customized_grpo.data.convert import check_source

        if held_out is not None or require_masks:
            raise UserError(
                "--held-out and --require-masks are about manifests, not about a --layout",
                hint="Convert the data set first, then check the result.",
            )
        survey = check_source(extensions.load("adapter", layout), source, options, masks, shape)
    print(render(survey))
    # before the error: a data set with problems is the one whose survey is needed
    write_json_file(json_file, survey.to_json())
    if survey.problems:
        raise UserError(f"{problem_count(len(survey.problems))}; see above")


def _check_manifests(
    source: Path,
    held_out: Path | None,
    require_masks: bool,
    options: Options,
    masks: MaskChoice,
    size: tuple[int, int] | None,
) -> Survey:
    from customized_grpo.data.adapters.base import Options
    from customized_grpo.data.check import check_manifests, find_manifests

    # against the defaults: whatever was chosen has no meaning for a manifest
    if options != Options() or masks is not MaskChoice.shipped:
        raise UserError(
            "options of a layout, but no --layout",
            hint="A manifest is checked as it is; name the --layout of a published data set.",
        )
    manifests = [*find_manifests(source)]
    if held_out is not None:
        manifests.append(held_out)
    return check_manifests(manifests, require_masks=require_masks, size=size)


def _options(
    images: Path | None,
    prompts: Path | None,
    reference: str | None,
    min_score: float | None,
    min_quality: int | None,
    subject: SubjectChoice | None,
    columns: str | None,
    split: str | None,
    subset: str | None,
) -> Options:
    from customized_grpo.data.adapters.base import Options

    return Options(images, prompts, reference, min_score, min_quality, subject, columns, split, subset)


def render(survey: Survey) -> str:
    """Return a survey as plain text: content, what was left out, and problems (a few of each kind)."""
    from customized_grpo.data.listing import a_few

    per_row = ", ".join(f"{count} ({rows:,} rows)" for count, rows in survey.references_per_row.items())
    sizes = list(survey.sizes.items())
    lines = [
        f"rows:                {_parts(survey.rows, sum(survey.rows.values()))}",
        f"subjects:            {_parts(survey.subjects, survey.all_subjects)}",
        f"references per row:  {per_row or 'none'}",
        f"masks:               {survey.masks:.1%} of the rows",
        f"targets:             {survey.targets:.1%} of the rows",
        f"longest prompt:      about {survey.longest_prompt:,} tokens; {survey.long_prompts:,} rows over the "
        f"{CLIP_TOKENS} that CLIP reads",
        "                     (estimated; `cgrpo doctor` counts with the tokenizers of a recipe)",
        f"different images:    {survey.images:,}",
        *(f"    {size}: {count:,}" for size, count in sizes[:MAX_SIZES]),
    ]
    if len(sizes) > MAX_SIZES:
        rest = sum(count for _, count in sizes[MAX_SIZES:])
        lines.append(f"    {len(sizes) - MAX_SIZES:,} other sizes: {rest:,}")
    lines += [f"left out:            {count:,} rows: {name}" for name, count in survey.dropped.items()]
    lines += [f"not used:            {count:,} {kind}" for kind, count in survey.ignored.items()]
    lines += [f"note: {note}" for note in survey.notes]
    problems = a_few(_where(problem) for problem in survey.problems)
    lines += [f"problem: {problem}" for problem in problems]
    return "\n".join(lines)


def _where(problem: str) -> tuple[str, str]:
    """Return the row that a problem names first, and the rest."""
    # the row is taken off, or problems of one kind in many rows would each be a kind of its own
    where, colon, rest = problem.partition(": ")
    return (where, rest) if colon else ("", problem)


def _parts(counts: Mapping[str, int], total: int) -> str:
    if len(counts) < 2:
        return f"{total:,}"
    parts = [f"{name} {count:,}" for name, count in counts.items()]
    return f"{total:,} ({', '.join(parts)})"
