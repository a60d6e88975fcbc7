"""`cgrpo generate`: images of a subject, as files that say how they were made."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from customized_grpo import __version__
from customized_grpo.config.generator import GeneratorSettings
from customized_grpo.data.examples import Example
from customized_grpo.data.fitting import Fitting
from customized_grpo.data.images import open_image, open_mask, to_tensor
from customized_grpo.data.mask_reading import MASK_THRESHOLD
from customized_grpo.disk import check_writable
from customized_grpo.errors import UserError
from customized_grpo.files import creating, file_sha256, replacing, write_text
from customized_grpo.generation.drawing import draw
from customized_grpo.generation.grid import GridRow, compose_grid
from customized_grpo.generation.opening import (
    NO_HEADER,
    Generator,
    fitting_of,
    open_generator,
    source_settings,
)
from customized_grpo.pixels import to_pil
from customized_grpo.policies.families import get_family
from customized_grpo.policies.lora_file import read_header
from customized_grpo.policies.policy import Policy
from customized_grpo.runs.folder import is_run_folder
from customized_grpo.runs.reading import Step
from customized_grpo.text_limits import cut_sentence

ROW_ID = "generate"
"""One id for the rows of all prompts: they start from the same noise and can be compared."""

BACKGROUND = 0.5  # grey, where a mask says that the subject is not
METADATA_KEY = "cgrpo"


@dataclass(frozen=True)
class Request:
    """The images that are to be drawn.

    Attributes:
        prompts: What the images should show.
        references: Image files of the subject; none for text to image.
        masks: Files of masks, one for each reference, whose background then becomes grey; or none.
        count: Images of each prompt.
        seed: Image i of a prompt depends on the seed, the prompt and i alone.
    """

    prompts: Sequence[str]
    references: Sequence[Path]
    masks: Sequence[Path] = ()
    count: int = 1
    seed: int = 0


def generate(
    source: str,
    request: Request,
    *,
    out: Path,
    settings: Sequence[str] = (),
    lora: Path | None = None,
    base: bool = False,
    step: Step = None,
    grid: bool = False,
    on_note: Callable[[str], None] = lambda note: None,
) -> list[Path]:
    """Draw the images of a request and write them as numbered PNGs, each with a JSON file of its number.

    Numbers continue those in the folder; nothing is overwritten, also not by two calls at once.

    Args:
        source: Run, folder or hub id, see `open_generator`.
        request: The images that are to be drawn.
        out: Folder for the images.
        settings: See `open_generator`.
        lora: See `open_generator`.
        base: See `open_generator`.
        step: See `open_generator`.
        on_note: Gets a sentence that the user should know before images are drawn.
        grid: Whether one image of all is written as well. With an adapter it compares with the base, whose
            images are written then.

    Returns:
        The images, prompt by prompt; then those of the base; then the grid.

    Raises:
        UserError: An argument is wrong, which is found before weights are read; or a file cannot be written.
    """
    # Every file is read before a generator is: a wrong one must cost seconds.
    subject = [open_image(path) for path in request.references]
    masks = [open_mask(path) for path in request.masks]
    used = _settings(source, settings, lora)
    if not subject and not get_family(used.model.family).policy_class().TEXT_TO_IMAGE:
        raise UserError(
            f"{source}: a {used.model.family} does not draw from a prompt alone",
            hint="Name an image of the subject with --reference.",
        )
    fitting = fitting_of(used)
    # before weights are read, because a mask may turn out to be useless
    row_references = _references(request, subject, masks, fitting)
    sizes = [(str(path), image.size) for path, image in zip(request.references, subject, strict=True)]
    note = fitting.note(sizes)
    if note is not None:
        on_note(note)
    # Also before the weights: a folder that cannot be written is found now.
    _make_folder(out)
    generator = open_generator(source, settings=settings, lora=lora, base=base, step=step, with_start=grid)
    for sentence in _cut_prompts(generator.policy, request.prompts):
        on_note(sentence)
    rows = [Example(ROW_ID, prompt, row_references, None, None, ROW_ID) for prompt in request.prompts]
    facts = _facts(generator, request)
    writer = _Writer(out, request, facts)
    drawn = [to_pil(image) for image in draw(generator, rows, request.seed, request.count)]
    files = writer.write(drawn)
    if not grid:
        return files
    columns = [("base" if base else "drawn", drawn)]
    # without an adapter there is nothing to compare with
    has_adapter = not base and (lora is not None or "checkpoint" in facts)
    if has_adapter:
        # What training began with, and not the plain base where the recipe has a start LoRA.
        with torch.no_grad(), generator.policy.start():
            plain = [to_pil(image) for image in draw(generator, rows, request.seed, request.count)]
        files += writer.write(plain, is_base=True)
        columns = [("base", plain), ("tuned", drawn)]
    return [*files, writer.write_grid([to_pil(image) for image in row_references], columns)]


def _cut_prompts(policy: Policy, prompts: Sequence[str]) -> list[str]:
    """Return a sentence for each text encoder of the generator that reads the beginning of a prompt only."""
    labels = [f"prompt {number}" for number in range(1, len(prompts) + 1)]
    sentences = [cut_sentence(limit, labels, prompts) for limit in policy.text_limits() or []]
    return [sentence for sentence in sentences if sentence is not None]


def _settings(source: str, settings: Sequence[str], lora: Path | None) -> GeneratorSettings:
    """Return the settings of the generator; reads small files only."""
    is_run = is_run_folder(Path(source))  # has an adapter of its own; `open_generator` refuses another
    header = NO_HEADER if lora is None or is_run else read_header(lora)
    return source_settings(source, settings, header)


def _references(
    request: Request, subject: Sequence[Image.Image], masks: Sequence[Image.Image], fitting: Fitting
) -> tuple[Tensor, ...]:
    """Return the references as training sees them, [3, H, W] in [0, 1] each.

    Raises:
        UserError: What a mask marks is cut away when its reference gets its size.
    """
    # How many there are may decide how large each can be.
    images = [to_tensor(fitting.apply(image, len(subject))) for image in subject]
    for number, mask in enumerate(masks):
        cut = fitting.apply(mask, len(subject))
        if int(np.asarray(cut).max()) < MASK_THRESHOLD:
            raise UserError(
                f"{request.masks[number]}: nothing of the subject is left when {request.references[number]} "
                f"gets its size, {cut.height} x {cut.width} (height x width)",
                hint="Use --set model.reference_fit=whole or another --size, or cut the reference yourself.",
            )
        inside = to_tensor(cut)
        images[number] = images[number] * inside + BACKGROUND * (1 - inside)
    return tuple(images)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}", hint="Choose another --out.") from error
    check_writable(out)


def _facts(generator: Generator, request: Request) -> dict[str, Any]:
    """Return what all images have in common; files by name and hash, because folders are private."""
    model = generator.model
    facts: dict[str, Any] = {
        "generator": generator.name,
        "model": model.path,
        "family": model.family,
        "height": model.height,
        "width": model.width,
        "steps": generator.steps,
        "guidance": model.guidance,
        "seed": request.seed,
        "references": [_file_facts(path) for path in request.references],
        "masks": [_file_facts(path) for path in request.masks],
        "version": __version__,
    }
    if generator.checkpoint is not None:
        facts["checkpoint"] = generator.checkpoint
    return facts


def _file_facts(path: Path) -> dict[str, str]:
    # bytes that are not UTF-8 are surrogates in a name, which JSON in UTF-8 cannot hold
    name = path.name.encode("utf-8", "backslashreplace").decode()
    return {"name": name, "sha256": file_sha256(path)}


class _Writer:
    """The files of one request, each with the first number that is free in the folder.

    Another process may write into the folder at the same time: a number belongs to the one that creates its
    image.
    """

    def __init__(self, out: Path, request: Request, facts: dict[str, Any]) -> None:
        self.out = out
        self.request = request
        self.facts = facts
        self.numbers: list[int] = []

    def write(self, images: Sequence[Image.Image], *, is_base: bool = False) -> list[Path]:
        """Write images, in the order of `draw`, with their prompts and settings."""
        files = []
        for index, image in enumerate(images):
            # `draw` yields `count` images of the first prompt, then of the second, ...
            row, number = divmod(index, self.request.count)
            prompt = self.request.prompts[row]
            about = {"prompt": prompt, "number": number, "adapter": not is_base, **self.facts}
            text = json.dumps(about, ensure_ascii=False, indent=1)
            info = PngInfo()
            # iTXt, because the plain text of a PNG is Latin-1
            info.add_itxt("prompt", prompt)
            info.add_itxt(METADATA_KEY, text)
            if is_base:  # with the number of the image that it is compared with
                file = self._file(self.numbers[index], "-base.png")
                with replacing(file) as draft:
                    image.save(draft, format="PNG", pnginfo=info)
            else:
                file = self._create(image, info)
            write_text(file.with_suffix(".json"), text + "\n")
            files.append(file)
        return files

    def _create(self, image: Image.Image, info: PngInfo) -> Path:
        """Write an image with the next number that no file of the folder has, and keep the number."""
        number = self._next_number()
        while True:
            file = self._file(number, ".png")
            try:
                with creating(file) as draft:
                    image.save(draft, format="PNG", pnginfo=info)
            except FileExistsError:
                # Another process has taken the number since the folder was listed.
                number += 1
                continue
            self.numbers.append(number)
            return file

    def _next_number(self) -> int:
        # An empty folder begins at 0.
        numbers = [-1, *self.numbers]
        for path in self.out.iterdir():
            # a number is used up by any file that begins with it: image, JSON, base or grid
            if match := re.match(r"\d{4,}", path.name):
                numbers.append(int(match[0]))
        return max(numbers) + 1

    def _file(self, number: int, ending: str) -> Path:
        return self.out / f"{number:04d}{ending}"

    def write_grid(
        self, references: Sequence[Image.Image], columns: Sequence[tuple[str, Sequence[Image.Image]]]
    ) -> Path:
        """Write a grid with a row per prompt: the references, then `count` images of each column."""
        count = self.request.count
        labels = ["reference"] * len(references)
        for label, _ in columns:
            labels += [label] * count
        rows = []
        for row, prompt in enumerate(self.request.prompts):
            images = list(references)
            for _, of_column in columns:
                images += of_column[row * count : (row + 1) * count]  # a column has `count` images per prompt
            # The first image of this prompt; its JSON file has the prompt in full.
            elsewhere = self._file(self.numbers[row * count], ".json").name
            rows.append(GridRow(prompt, images, elsewhere))
        path = self._file(self.numbers[0], "-grid.png")
        with replacing(path) as draft:
            compose_grid(labels, rows).save(draft, format="PNG", optimize=True)
        return path
