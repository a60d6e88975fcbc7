"""A first recipe of one's own: a preset, the rows of a folder, and the settings that are changed most."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from customized_grpo import __version__
from customized_grpo.config.loading import leaves, load_config
from customized_grpo.config.reference import knobs
from customized_grpo.config.schema import Config
from customized_grpo.config.yaml_text import write_yaml
from customized_grpo.errors import UserError

TRAIN = ("train.masked.jsonl", "train.jsonl", "manifest.masked.jsonl", "manifest.jsonl")
HELD_OUT = ("held_out.masked.jsonl", "held_out.jsonl")
"""Names that `cgrpo data convert` and `cgrpo data masks` give their files; the first that is there counts."""

OFTEN_CHANGED = {
    "model": ("height", "width", "quantisation", "gradient_checkpointing"),
    "rollout": ("steps", "batch_size"),
    "advantage": ("name",),
    "schedule": ("name",),
    "train": ("iterations", "prompts_per_iteration", "group_size", "learning_rate", "micro_batch_size"),
    "evaluation": ("every", "prompts", "samples_per_prompt"),
    "checkpoint": ("every", "keep", "best"),
}
"""Settings by section, in the order of the recipe."""

WIDTH = 100  # columns of a comment


def starter(preset: str, folder: Path, recipe: Path) -> str:
    """Return the text of a recipe that trains on a folder's rows.

    The settings that are changed most are spelt out, each with the preset's value below the sentence that
    says what it means; all others are the preset's.

    Args:
        preset: Name of a preset, or another recipe.
        folder: With train.jsonl or manifest.jsonl, as `cgrpo data convert` writes it.
        recipe: The file that the text is for; the run is named after it.

    Raises:
        UserError: There is no such preset, or no rows in the folder.
    """
    config = load_config(preset)
    train = _first(folder, TRAIN)
    if train is None:
        raise UserError(
            f"{folder} has none of {', '.join(TRAIN)}",
            hint="Make a folder of rows from your photos or from a data set with `cgrpo data convert`.",
        )
    lines = [
        f"# Written by `cgrpo init` of customized-grpo {__version__}. Next:",
        f"#   cgrpo plan {recipe} --device 4090     does it fit on your card, and how long does it take?",
        f"#   cgrpo doctor {recipe}                 do its rewards work, and when is each quality decided?",
        f"#   cgrpo train {recipe}",
        "",
        *_value("", "extends", preset),
        "",
        "run:",
        *_value("  ", "dir", f"runs/{recipe.stem}"),
        "",
        *_data(train, _first(folder, HELD_OUT)),
    ]
    for section, names in OFTEN_CHANGED.items():
        lines += ["", f"{section}:"]
        for name in names:
            lines += _setting(config, f"{section}.{name}")
    return "\n".join(lines) + "\n"


def _data(train: Path, held_out: Path | None) -> list[str]:
    lines = ["data:", *_value("  ", "kind", "manifest"), *_value("  ", "train", str(train))]
    if held_out is not None:
        return [*lines, *_value("  ", "held_out", str(held_out))]
    why = "No subject is held out. Name prompts of your own below, in evaluation.prompts."
    return [*lines, *_comment("  ", why), *_value("  ", "held_out", None)]


def _setting(config: Config, path: str) -> list[str]:
    """Return what a setting means, and its value."""
    sentences = {knob.path: knob.sentence for knob in knobs()}
    return [*_comment("  ", sentences[path]), *_value("  ", path.rpartition(".")[2], leaves(config)[path])]


def _comment(indent: str, sentence: str) -> list[str]:
    """Return a sentence as lines of comment."""
    return textwrap.wrap(
        sentence, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ", break_long_words=False
    )


def _value(indent: str, name: str, value: Any) -> list[str]:
    """Return a key and its value as YAML."""
    return [f"{indent}{line}" for line in write_yaml({name: value}).splitlines()]


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_file()), None)
