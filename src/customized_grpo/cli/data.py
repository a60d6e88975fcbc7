"""`cgrpo data`: published data sets made into manifests, and checks before training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from customized_grpo.cli.common import Trust, check_json_file, write_json_file
from customized_grpo.cli.data_masks import masks
from customized_grpo.data.adapters.names import MaskChoice, SubjectChoice
from customized_grpo.errors import UserError

if TYPE_CHECKING:
    from customized_grpo.data.adapters.base import Options
    from customized_grpo.data.survey import Survey

app = typer.Typer(help="Make manifests and masks, and check them.", no_args_is_help=True)
app.command("masks")(masks)

MAX_SIZES = 8  # lines of the table of sizes

Images = Annotated[
    Path | None,
    typer.Option(help="uno, syncd-pairs: folder the list's paths are relative to; by default the list's."),
]
Prompts = Annotated[
    Path | None, typer.Option(help="folder: file with a prompt a line; {} stands for the subject's class.")
]
Reference = Annotated[
    str | None,
    typer.Option(
        help="folder, dreambench: first (the default), all, or a photo's name without ending; "
        "dreambench also takes a JSON list of UNO's."
    ),
]
MinScore = Annotated[
    float | None, typer.Option(help="uno-1m: lowest score_final kept; 3.5 by default, 4 is perfect.")
]
MinQuality = Annotated[
    int | None,
    typer.Option(min=0, max=5, help="subjects200k: lowest of the three ratings kept; 5 by default."),
]
Subject = Annotated[
    SubjectChoice | None,
    typer.Option(help="uno: rows of one subject share their references (the default), or their folder."),
]
Masks = Annotated[
    MaskChoice, typer.Option(help="Masks the source ships, transparency of the references, or none.")
]
JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the findings to this file.")
]


@app.command()
def convert(
    layout: Annotated[
        str, typer.Argument(help="Layout of the source, see docs/data.md; or your own, package.module:NAME.")
    ],
    source: Annotated[Path, typer.Argument(help="Folder or list of the published data set.")],
    out: Annotated[Path, typer.Argument(help="New or empty folder to write to.")],
    held_out: Annotated[
        str | None,
        typer.Option(help="Subjects to hold out for evaluation: a number, or a share such as 10%."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of held-out subjects.")] = 0,
    masks: Masks = MaskChoice.shipped,
    link: Annotated[bool, typer.Option("--link", help="Hard-link pictures instead of copying.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Leave out bad rows and count them.")] = False,
    images: Images = None,
    prompts: Prompts = None,
    reference: Reference = None,
    min_score: MinScore = None,
    min_quality: MinQuality = None,
    subject: Subject = None,
    json_file: JsonFile = None,
    trust: Trust = None,
) -> None:
    """Make a folder to train on from a published data set.

    OUT gets manifest.jsonl with images and masks, and with --held-out also train.jsonl and held_out.jsonl
    about different subjects. All bad rows are listed at once; OUT appears whole or not at all.

    For example: cgrpo data convert dreambench dreambooth/dataset data/dreambench --held-out 8
    """
    check_json_file(json_file)
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
    options = _options(images, prompts, reference, min_score, min_quality, subject)
    found = convert_source(extensions.load("adapter", layout), source, out, options, choices)
    print(render(found))
    print(f"\nwritten: {out}")
    write_json_file(json_file, found.to_json())


@app.command()
def check(
    source: Annotated[
        Path, typer.Argument(help="Manifest, folder of a converted data set, or source of a --layout.")
    ],
    held_out: Annotated[
        Path | None, typer.Option(help="Manifest that must share no subject and no picture with it.")
    ] = None,
    require_masks: Annotated[
        bool, typer.Option("--require-masks", help="A row without masks is a problem.")
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
    json_file: JsonFile = None,
    trust: Trust = None,
) -> None:
    """Show what a data set holds and what is wrong with it.

    Opens every image. Problems are bad rows, repeated rows, targets that equal a reference, and subjects or
    pictures that training and held-out rows share; they make the exit status 2.

    For example: cgrpo data check data/dreambench
    """
    check_json_file(json_file)
    options = _options(images, prompts, reference, min_score, min_quality, subject)
    if layout is None:
        found = _check_manifests(source, held_out, require_masks, options, masks)
    else:
        from customized_grpo import extensions
        from customized_grpo.data.convert import check_source

        if held_out is not None or require_masks:
            raise UserError(
                "--held-out and --require-masks are about manifests, not about a --layout",
                "Convert the data set first, then check the result.",
            )
        found = check_source(extensions.load("adapter", layout), source, options, masks)
    print(render(found))
    write_json_file(json_file, found.to_json())
    if count := len(found.problems):
        raise UserError(f"{count} problem{'s' * (count > 1)} found; see above")


def _check_manifests(
    source: Path, held_out: Path | None, require_masks: bool, options: Options, masks: MaskChoice
) -> Survey:
    from customized_grpo.data.adapters.base import Options
    from customized_grpo.data.check import check_manifests, find_manifests

    if options != Options() or masks is not MaskChoice.shipped:
        raise UserError(
            "options of a layout, but no --layout",
            "A manifest is checked as it is; name the layout of a source.",
        )
    manifests = [*find_manifests(source), *([] if held_out is None else [held_out])]
    return check_manifests(manifests, require_masks=require_masks)


def _options(
    images: Path | None,
    prompts: Path | None,
    reference: str | None,
    min_score: float | None,
    min_quality: int | None,
    subject: SubjectChoice | None,
) -> Options:
    from customized_grpo.data.adapters.base import Options

    return Options(images, prompts, reference, min_score, min_quality, subject)


def render(found: Survey) -> str:
    """Return a survey as plain text: what there is, what was left out, and the problems."""
    per_row = ", ".join(f"{count} ({rows:,} rows)" for count, rows in found.references_per_row.items())
    sizes = list(found.sizes.items())
    lines = [
        f"rows:                {_parts(found.rows)}",
        f"subjects:            {_parts(found.subjects)}",
        f"references per row:  {per_row or 'none'}",
        f"masks:               {found.masks:.1%} of the rows",
        f"targets:             {found.targets:.1%} of the rows",
        f"longest prompt:      {found.longest_prompt} words; {found.long_prompts:,} rows over 50",
        f"different pictures:  {found.pictures:,}",
        *(f"    {size}: {count:,}" for size, count in sizes[:MAX_SIZES]),
    ]
    if len(sizes) > MAX_SIZES:
        rest = sum(count for _, count in sizes[MAX_SIZES:])
        lines.append(f"    {len(sizes) - MAX_SIZES:,} other sizes: {rest:,}")
    lines += [f"left out:            {count:,} rows: {name}" for name, count in found.dropped.items()]
    lines += [f"problem: {problem}" for problem in found.problems]
    return "\n".join(lines)


def _parts(counts: Mapping[str, int]) -> str:
    total = f"{sum(counts.values()):,}"
    if len(counts) < 2:
        return total
    return f"{total} ({', '.join(f'{name} {count:,}' for name, count in counts.items())})"
