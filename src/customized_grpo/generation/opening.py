"""From a run, a folder or a hub id to a generator that is ready to draw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from customized_grpo.config.generator import GeneratorSettings, generator_settings
from customized_grpo.config.loading import load_config
from customized_grpo.config.schema import ModelConfig
from customized_grpo.errors import UserError
from customized_grpo.hub import INDEX
from customized_grpo.policies.checkpoint_files import read_index
from customized_grpo.policies.checkpoints import CHECKPOINTS, TOYBOX, find_similar
from customized_grpo.policies.families import FAMILIES
from customized_grpo.policies.loading import load_policy
from customized_grpo.policies.lora import read_shape
from customized_grpo.policies.policy import Policy
from customized_grpo.policies.sampling import Sampling
from customized_grpo.runs.folder import is_run_folder
from customized_grpo.runs.reading import load_checkpoint, run_checkpoint, run_config


@dataclass(frozen=True)
class Generator:
    """A model that draws, and how it draws.

    Attributes:
        policy: The model, with its adapter, if it has one.
        model: Its settings; height and width are those of the pictures, in pixels.
        steps: Denoising steps of a picture, all without noise.
        batch_size: Pictures drawn together.
        name: What it is called in tables and file names: of the run, the folder or the hub id.
        checkpoint: Iteration of a run's checkpoint; None for what is not a run, or its base.
    """

    policy: Policy
    model: ModelConfig
    steps: int
    batch_size: int
    name: str
    checkpoint: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of a picture, in pixels."""
        return self.model.height, self.model.width

    def sigmas(self) -> Tensor:
        """Return the noise levels [steps + 1] of a picture."""
        return self.policy.sigmas(self.steps, self.policy.n_tokens(*self.size))


def open_generator(
    source: str, *, settings: Sequence[str] = (), lora: Path | None = None, base: bool = False
) -> Generator:
    """Open a generator for inference; everything cheap is checked before weights are read.

    Args:
        source: Folder of a run (its newest checkpoint, or the moving average if the run is evaluated by it),
            "toybox", a folder in diffusers' layout, or a hub id.
        settings: Each `model.KEY=VALUE`, `steps=N` or `batch_size=N`, replacing what the run's recipe or the
            checkpoint's model card says.
        lora: Adapter in diffusers' format, a file or its folder, to put on a model that is not a run.
        base: Whether a run's model is opened without what it learnt; it then needs no checkpoint.

    Raises:
        UserError: The source, a setting or the adapter is not what it should be.
    """
    if is_run_folder(Path(source)):
        return _open_run(Path(source), settings, lora, base)
    checked = source_settings(source, settings)
    adapter = checked.model.lora
    if lora is not None:
        shape = read_shape(lora)
        adapter = adapter.model_copy(
            update={"rank": shape.rank, "alpha": shape.alpha, "target": shape.target}
        )
    else:
        # the policy wants one; a fresh adapter changes nothing, and the smallest costs next to nothing
        adapter = adapter.model_copy(update={"rank": 1, "alpha": None})
    model = checked.model.model_copy(update={"lora": adapter})
    policy = load_policy(model, seed=0)
    if lora is not None:
        policy.load_lora(lora)
    name = source if lora is None else f"{source} + {lora.name}"
    return Generator(policy, model, checked.steps, checked.batch_size, name)


def source_settings(source: str, settings: Sequence[str] = ()) -> GeneratorSettings:
    """Return the checked settings that `open_generator` would use; reads small files only.

    Raises:
        UserError: The source is neither a run nor a known checkpoint, or a setting is wrong.
    """
    if is_run_folder(Path(source)):
        return generator_settings(source, _of_recipe(run_config(Path(source))), settings)
    if source == TOYBOX:
        return generator_settings(source, _of_recipe(load_config(TOYBOX)), settings)
    if Path(source).is_dir() and not (Path(source) / INDEX).is_file():
        raise UserError(f"{source} is neither the folder of a run nor a model with {INDEX}")
    return generator_settings(source, _of_checkpoint(source), settings)


def _of_checkpoint(source: str) -> dict[str, Any]:
    """Return what a published checkpoint, or one like it, is drawn with."""
    checkpoint = CHECKPOINTS.get(source)
    if checkpoint is None:
        index = read_index(source)
        pipeline = str(index.get("_class_name"))
        checkpoint = find_similar(pipeline, distilled=bool(index.get("is_distilled")))
        if checkpoint is None:
            raise UserError(
                f"{source}: {INDEX} says {pipeline}, which is no known generator",
                hint=f"Known are {', '.join(known_pipelines())}.",
            )
    return _as_settings(source, checkpoint.family, checkpoint.sampling)


def _as_settings(source: str, family: str, sampling: Sampling) -> dict[str, Any]:
    """Return settings as `generator_settings` takes them."""
    model = {
        "path": source,
        "family": family,
        "guidance": sampling.guidance,
        "mu": sampling.mu,
        "max_text_tokens": sampling.max_text_tokens,
        "height": sampling.height,
        "width": sampling.width,
        "options": dict(sampling.options),
    }
    return {"model": model, "steps": sampling.steps, "batch_size": 1}


def known_pipelines() -> list[str]:
    """Return the pipeline classes of all families."""
    return [pipeline for family in FAMILIES.values() for pipeline in family.pipelines]


def _of_recipe(config: Any) -> dict[str, Any]:
    """Return what a recipe evaluates with."""
    return {
        "model": config.model.model_dump(mode="json"),
        "steps": config.evaluation_steps,
        "batch_size": config.evaluation.batch_size,
    }


def _open_run(run_dir: Path, settings: Sequence[str], lora: Path | None, base: bool) -> Generator:
    config = run_config(run_dir)
    if lora is not None:
        raise UserError(
            f"{run_dir} is a run, which has an adapter of its own; {lora} cannot be put on it as well",
            f"Put it on the run's base model instead: {config.model.path}.",
        )
    checked = generator_settings(str(run_dir), _of_recipe(config), settings)
    checkpoint = None if base else run_checkpoint(run_dir)
    policy = load_policy(checked.model, seed=config.run.seed)
    name = run_dir.resolve().name
    if checkpoint is None:  # the fresh adapter changes nothing, bit for bit
        return Generator(policy, checked.model, checked.steps, checked.batch_size, f"{name} (base)")
    load_checkpoint(policy, checkpoint, average=config.evaluation.use_ema)
    return Generator(policy, checked.model, checked.steps, checked.batch_size, name, checkpoint.step)
