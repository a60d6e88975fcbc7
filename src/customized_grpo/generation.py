"""`cgrpo generate`: pictures from a run, by the same code path as its evaluation."""

from __future__ import annotations

from pathlib import Path

from customized_grpo.errors import UserError


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
    """Generate `count` pictures with the tuned model of a run.

    Args:
        run_dir: Folder of a run.
        prompt: What the pictures should show.
        references: Pictures of the subject.
        masks: Its masks, one per reference; the background of the references is then removed. May be empty.
        out: Folder for the pictures.
        count: Number of pictures.
        seed: Picture i depends on the seed and on i only.

    Returns:
        The files written.

    Raises:
        UserError: A picture cannot be opened, or the folder cannot be written.
    """
    from customized_grpo.data.images import open_image, open_mask, resize_cover, to_tensor

    opened = [open_image(path) for path in references]
    opened_masks = [open_mask(path) for path in masks]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror}", "Choose another --out.") from error

    from customized_grpo.evaluation.run import load_run
    from customized_grpo.reporting.images import save_image
    from customized_grpo.rollout import sample
    from customized_grpo.seeding import generator

    config, policy = load_run(run_dir)
    size = (config.model.height, config.model.width)
    images = [to_tensor(resize_cover(image, *size)) for image in opened]
    for i, mask in enumerate(opened_masks):
        inside = to_tensor(resize_cover(mask, *size))
        images[i] = images[i] * inside + 0.5 * (1 - inside)
    conditioning = policy.encode([prompt], [images], *size).repeat_interleave(count)
    steps = config.evaluation.steps or config.rollout.steps
    made = sample(
        policy,
        conditioning,
        [generator(seed, "generate", number) for number in range(count)],
        policy.sigmas(steps, policy.n_tokens(*size)),
        config.evaluation.batch_size,
    )
    return [save_image(out / f"{number:04d}.png", image) for number, image in enumerate(made)]
