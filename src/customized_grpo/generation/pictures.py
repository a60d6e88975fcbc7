"""`cgrpo generate`: pictures from a run, by the same code path as its evaluation."""

from __future__ import annotations

from pathlib import Path

from customized_grpo.data.examples import Example
from customized_grpo.data.images import open_image, open_mask, resize_cover, to_tensor
from customized_grpo.errors import UserError
from customized_grpo.generation.drawing import draw
from customized_grpo.generation.opening import open_generator
from customized_grpo.reporting.images import save_image


def generate(
    run_dir: Path,
    *,
    prompt: str,
    references: list[Path],
    masks: list[Path],
    out: Path,
    count: int = 1,
    seed: int = 0,
) -> list[Path]:
    """Generate `count` pictures with the tuned model of a run."""
    opened = [open_image(path) for path in references]
    opened_masks = [open_mask(path) for path in masks]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}", "Choose another --out.") from error
    generator = open_generator(str(run_dir))
    images = [to_tensor(resize_cover(image, *generator.size)) for image in opened]
    for i, mask in enumerate(opened_masks):
        inside = to_tensor(resize_cover(mask, *generator.size))
        images[i] = images[i] * inside + 0.5 * (1 - inside)
    row = Example("generate", prompt, tuple(images), None, None, "subject")
    made = draw(generator, [row], seed, count)
    return [save_image(out / f"{number:04d}.png", image) for number, image in enumerate(made)]
