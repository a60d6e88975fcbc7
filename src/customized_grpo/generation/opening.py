"""From a run, a folder or a hub id to a generator that is ready to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from customized_grpo.config import Config
from customized_grpo.config.generator import GeneratorSettings, generator_settings
from customized_grpo.config.loading import load_config
from customized_grpo.config.schema import ModelConfig
from customized_grpo.data.fitting import Fitting
from customized_grpo.embedded import EMBEDDED
from customized_grpo.engine.device import announce
from customized_grpo.errors import UserError
from customized_grpo.hub import INDEX, index_of
from customized_grpo.policies.checkpoint_files import empty_transformer, read_index
from customized_grpo.policies.checkpoints import CHECKPOINTS, find_similar
from customized_grpo.policies.families import FAMILIES, get_family
from customized_grpo.policies.loading import load_policy, pick_device
from customized_grpo.policies.lora_file import read_header
from customized_grpo.policies.lora_reader import read_lora_file
from customized_grpo.policies.policy import Policy
from customized_grpo.policies.provenance import Provenance
from customized_grpo.policies.reference_rule import reference_size_of
from customized_grpo.policies.sampling import Sampling
from customized_grpo.runs.folder import is_run_folder
from customized_grpo.runs.reading import Step, load_checkpoint, run_checkpoint, run_config, warn_of_other_base

NO_HEADER: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Generator:
    """A model that draws images, and how it draws them.

    Attributes:
        policy: The model, with its adapter, if it has one.
        model: Its settings; height and width are those of the images, in pixels.
        steps: Denoising steps of an image, all without noise.
        batch_size: Images drawn together.
        fitting: The size and shape that references get.
        name: Name of the run or folder, or the hub id, for tables and files.
        checkpoint: Iteration of a run's checkpoint; None for a model that is not a run, and for a run's base.
    """

    policy: Policy
    model: ModelConfig
    steps: int
    batch_size: int
    fitting: Fitting
    name: str
    checkpoint: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Return the height and width of an image, in pixels."""
        return self.model.height, self.model.width

    def sigmas(self) -> Tensor:
        """Return the noise levels [steps + 1] of an image."""
        return self.policy.sigmas(self.steps, self.policy.n_tokens(*self.size))


def open_generator(
    source: str,
    *,
    settings: Sequence[str] = (),
    lora: Path | None = None,
    base: bool = False,
    step: Step = None,
    with_start: bool = False,
) -> Generator:
    """Open a generator for inference; everything cheap is checked before weights are read.

    Args:
        source: Folder of a run (a checkpoint, or its moving average if the run is evaluated by that),
            an embedded base such as "toybox", a folder in diffusers' layout, or a hub id.
        settings: Each `model.KEY=VALUE`, `steps=N`, `batch_size=N` or `reference_size=RULE`, replacing what
            the run's recipe, the adapter's file or the checkpoint's model card says.
        lora: LoRA in any layout of `policies/lora_names.py`, a file or its folder, to put on a model that is
            not a run.
        base: Whether a run's model is opened as it was before training, for which it needs no checkpoint.
        step: A run's checkpoint: its iteration, or "best"; None means the newest.
        with_start: Whether the policy's `start()` is needed: the file of `model.start_lora` is then read.

    Raises:
        UserError: The source, a setting or the adapter is wrong.
    """
    if is_run_folder(Path(source)):
        return _open_run(Path(source), settings, lora, base=base, step=step, with_start=with_start)
    if step is not None:
        raise UserError(f"--checkpoint {step}: {source} is not a run", hint="Leave it out.")
    checked = source_settings(source, settings, NO_HEADER if lora is None else read_header(lora))
    if lora is None:
        # the policy wants an adapter; a fresh one changes nothing, and the smallest costs next to nothing
        model = _with_adapter(checked.model, rank=1, alpha=None)
        policy = _load(model, seed=0)
        return Generator(policy, model, checked.steps, checked.batch_size, fitting_of(checked), source)
    # The file may name layers as other programs do; the family knows where those are.
    place = get_family(checked.model.family).other_programs.place
    file = read_lora_file(lora, empty_transformer(checked.model), place)
    model = _with_adapter(checked.model, rank=file.rank, alpha=file.alpha, target=file.target)
    policy = _load(model, seed=0)
    policy.take_lora(file)
    name = f"{source} + {lora.name}"
    return Generator(policy, model, checked.steps, checked.batch_size, fitting_of(checked), name)


def fitting_of(settings: GeneratorSettings) -> Fitting:
    """Return the size and shape that references get with the settings of a generator."""
    model = settings.model
    multiple = get_family(model.family).size_multiple
    return Fitting(model.height, model.width, model.reference_fit, settings.reference_size, multiple)


def _load(model: ModelConfig, seed: int) -> Policy:
    device = pick_device(model.device)
    is_embedded = model.path in EMBEDDED
    announce(device, requested=model.device, precision=model.precision, is_embedded=is_embedded)
    return load_policy(model, seed=seed, device=device)


def _with_adapter(model: ModelConfig, **settings: Any) -> ModelConfig:
    return model.model_copy(update={"lora": model.lora.model_copy(update=settings)})


def source_settings(
    source: str, settings: Sequence[str] = (), header: Mapping[str, str] = NO_HEADER
) -> GeneratorSettings:
    """Return the checked settings that `open_generator` would use; reads small files only.

    The adapter's file says how the run that trained it drew images; without such a file it is the recipe for
    an embedded base, and what `policies/checkpoints.py` says for any other model.

    Args:
        source: See `open_generator`.
        settings: See `open_generator`.
        header: That of the adapter's file, which may say how its run drew images.

    Raises:
        UserError: The source is neither a run nor a known checkpoint, a setting is wrong, or the adapter
            needs a base that is not given.
    """
    folder = Path(source)
    if is_run_folder(folder):
        return generator_settings(source, _of_recipe(run_config(folder)), settings)
    # A name that is no folder here is taken for one of the hub.
    if source not in EMBEDDED and folder.is_dir() and not index_of(folder).is_file():
        raise UserError(
            f"{source} is neither the folder of a run nor a model with {INDEX}",
            hint="Give the folder that `cgrpo train` wrote, or one that diffusers wrote by save_pretrained.",
        )
    origin = Provenance.from_header(header, "the adapter")
    if origin is not None:
        checked = generator_settings(source, _of_adapter(source, origin), settings)
        _check_base(checked.model, origin)
        return checked
    if source in EMBEDDED:
        return generator_settings(source, _of_recipe(load_config(source)), settings)
    return generator_settings(source, _of_checkpoint(source, settings), settings)


def _of_adapter(source: str, origin: Provenance) -> dict[str, Any]:
    """Return what the run evaluated with that trained an adapter."""
    defaults = _as_settings(source, origin.family, origin.sampling)
    if all(":" in lora.path for lora in origin.fuse_lora):  # of the hub; a file may be elsewhere here
        defaults["model"]["fuse_lora"] = [lora.model_dump() for lora in origin.fuse_lora]
    return defaults


def _check_base(model: ModelConfig, origin: Provenance) -> None:
    if origin.fuse_lora and not model.fuse_lora:
        names = " and ".join(lora.path for lora in origin.fuse_lora)
        places = ", ".join(
            f"{{path: FOLDER/{lora.path}, scale: {lora.scale:g}}}" for lora in origin.fuse_lora
        )
        raise UserError(
            f"the adapter was trained on a base with the LoRA {names} merged into it",
            hint=f"Say where that file is: model.fuse_lora=[{places}].",
        )


def _of_checkpoint(source: str, settings: Sequence[str]) -> dict[str, Any]:
    """Return what a published checkpoint, or one like it, is drawn with."""
    checkpoint = CHECKPOINTS.get(source)
    if checkpoint is not None:
        return _as_settings(source, checkpoint.family, checkpoint.sampling)
    index = read_index(source)
    pipeline = str(index.get("_class_name"))
    checkpoint = find_similar(pipeline, distilled=bool(index.get("is_distilled")))
    if checkpoint is not None:
        return _as_settings(source, checkpoint.family, checkpoint.sampling)
    for setting in settings:
        key, _, family = setting.partition("=")
        if key == "model.family":  # a family from outside
            return _as_settings(source, family, get_family(family).sampling)
    raise UserError(
        f"{source}: {INDEX} says {pipeline}, which is no known generator",
        hint=f"Known are {', '.join(_known_pipelines())}.",
    )


def _as_settings(source: str, family: str, sampling: Sampling) -> dict[str, Any]:
    """Return settings as `generator_settings` takes them."""
    model = {"path": source, "family": family, **asdict(sampling)}
    steps = model.pop("steps")
    size = model.pop("reference_size")
    return {"model": model, "steps": steps, "batch_size": 1, "reference_size": size}


def _known_pipelines() -> list[str]:
    pipelines: list[str] = []
    for family in FAMILIES.values():
        pipelines += family.pipelines
    return pipelines


def _of_recipe(config: Config) -> dict[str, Any]:
    """Return what a recipe evaluates with."""
    return {
        "model": config.evaluation_model.model_dump(mode="json"),
        "steps": config.evaluation_steps,
        "batch_size": config.evaluation.batch_size,
        "reference_size": reference_size_of(config),
    }


def _open_run(
    run_dir: Path,
    settings: Sequence[str],
    lora: Path | None,
    *,
    base: bool,
    step: Step,
    with_start: bool,
) -> Generator:
    config = run_config(run_dir)
    if lora is not None:
        raise UserError(
            f"{run_dir} is a run, which has an adapter of its own; {lora} cannot be put on it as well",
            hint=f"Put it on the run's base model instead: {config.model.path}.",
        )
    if base and step is not None:
        raise UserError(f"--base --checkpoint {step}: before training there is none", hint="Leave one out.")
    checked = generator_settings(str(run_dir), _of_recipe(config), settings)
    checkpoint = None if base else run_checkpoint(run_dir, step)
    # a checkpoint holds the whole adapter: what it started from may be nowhere by now
    unneeded = {} if base or with_start else {"start_lora": None}
    model = checked.model.model_copy(update=unneeded)
    policy = _load(model, seed=config.run.seed)
    name = run_dir.resolve().name
    fitting = fitting_of(checked)
    if checkpoint is None:  # a fresh adapter changes nothing, bit for bit
        return Generator(policy, model, checked.steps, checked.batch_size, fitting, f"{name} (base)")
    # The weights that the evaluation judged, which may be the moving average.
    load_checkpoint(policy, checkpoint, average=config.evaluation.use_ema)
    warn_of_other_base(checkpoint, model)
    return Generator(policy, model, checked.steps, checked.batch_size, fitting, name, checkpoint.step)
