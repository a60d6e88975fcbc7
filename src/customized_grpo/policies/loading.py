"""From the `model` section of a recipe to a policy, with errors that name the file and the fix."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from customized_grpo.errors import UserError
from customized_grpo.hub import INDEX, download, read_json
from customized_grpo.libraries import quiet
from customized_grpo.policies.architecture import Architecture, Part
from customized_grpo.policies.families import FAMILIES
from customized_grpo.policies.fuse import fuse_lora
from customized_grpo.policies.out_of_memory import explained
from customized_grpo.policies.pipeline_policy import PipelinePolicy, Precision
from customized_grpo.policies.published import CHECKPOINTS
from customized_grpo.policies.quantisation import check_quantisation, quantise
from customized_grpo.policies.sharding import shard

if TYPE_CHECKING:
    from customized_grpo.config.schema import ModelConfig

TOYBOX = "toybox"


def load_policy(model: ModelConfig, *, seed: int, device: torch.device | str | None = None) -> PipelinePolicy:
    """Load a generator and put a fresh adapter on it.

    The weights are read on the CPU, a LoRA is fused there, then layers are quantised on the device one by one
    and the other parts follow: the device never holds more than what stays there, and one layer.

    Args:
        model: The recipe's `model` section.
        seed: Seed of the adapter's weights, the run's.
        device: Where to run, when the caller (one of several processes) knows better than `model.device`.

    Raises:
        UserError: The weights are missing, unreachable, gated, of another family or incomplete, cannot be
            held as the recipe says, or do not fit the memory.
    """
    target = pick_device(model.device) if device is None else torch.device(device)
    if model.quantisation is not None:
        check_quantisation(model.quantisation, target)
    with explained(model):
        return _load(model, seed, target)


def _load(model: ModelConfig, seed: int, device: torch.device) -> PipelinePolicy:
    pipe = load_pipeline(model.path, family=model.family, precision=model.precision)
    if model.fuse_lora is not None:
        fuse_lora(pipe, model.fuse_lora)
    if model.quantisation is not None:
        quantise(pipe.transformer, model.quantisation, device)
    if model.shard:
        shard(pipe.transformer, device)
    policy = FAMILIES[model.family].build(pipe, model, device)
    # torch says so once, under autocast, of a norm that is right but not fused: nothing the user can act on
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight", category=UserWarning)
    policy.grid(model.height, model.width)
    policy.add_adapter(rank=model.lora.rank, alpha=model.lora.alpha, target=model.lora.target, seed=seed)
    policy.set_gradient_checkpointing(model.gradient_checkpointing)
    if model.compile:
        policy.compile_blocks()
    return policy


def load_pipeline(path: str, *, family: str = "flux1", precision: Precision = "bf16") -> Any:
    """Load the frozen pipeline: "toybox", a folder in diffusers' layout, or a hub id such as "owner/name".

    With precision "bf16" the weights are held in bf16, too, all but the VAE's, whose rounding would be seen.

    Raises:
        UserError: See `load_policy`.
    """
    if path == TOYBOX:
        with quiet():
            from customized_grpo.toybox.assets import load_base_pipeline

            pipe = load_base_pipeline()
            if precision == "bf16":
                pipe.transformer.to(torch.bfloat16)
            return pipe
    pipeline_class = _pipeline_class(path, family)
    half = {"default": torch.bfloat16, "vae": torch.float32}
    with quiet():
        import diffusers

        try:
            pipe = getattr(diffusers, pipeline_class).from_pretrained(
                path,
                torch_dtype=half if precision == "bf16" else torch.float32,
                use_safetensors=True,
                **FAMILIES[family].parts(path),
            )
        except (ImportError, OSError, ValueError) as error:
            raise UserError(
                f"model.path {path!r}: the pipeline could not be loaded: {error}",
                hint="All parts must be there as safetensors, as `save_pretrained` writes them.",
            ) from error
    return pipe


def pick_device(name: str) -> torch.device:
    """Return the device that a recipe names; "auto" is the first accelerator, else the CPU.

    Raises:
        UserError: The named accelerator is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    available = {
        "cpu": True,
        "mps": torch.backends.mps.is_available(),
        "cuda": (device.index or 0) < torch.cuda.device_count(),
    }
    if not available[device.type]:
        raise UserError(f"model.device {name!r}: torch sees no such device", hint='Use "auto" or "cpu".')
    return device


def _pipeline_class(path: str, family: str) -> str:
    """Return the diffusers class that loads a checkpoint.

    Only the index is read, a small file, so that a wrong or unreachable checkpoint is refused at once.
    """
    found, expected = str(read_index(path).get("_class_name")), FAMILIES[family].classes
    if found not in expected:
        raise UserError(
            f"model.path {path!r}: {INDEX} says {found}, model.family {family} needs {' or '.join(expected)}",
            hint="Name a checkpoint of the family, or another family.",
        )
    return expected[found]


def read_index(path: str) -> dict[str, Any]:
    """Return the model_index.json of a folder or hub id: a small file that says what the checkpoint is.

    Raises:
        UserError: There is none, it cannot be fetched, or it is not JSON.
    """
    folder = Path(path).expanduser()
    return read_json(folder / INDEX if folder.is_dir() else download(path, INDEX))


def transformer_layers(model: ModelConfig) -> list[str]:
    """Return the names of all modules of a model's transformer, in their order, from its config alone.

    Raises:
        UserError: The checkpoint is unreachable or of another family.
    """
    import diffusers
    from accelerate import init_empty_weights

    path = model.path
    if path == TOYBOX:
        from customized_grpo.toybox.assets import base_folder

        path = str(base_folder())
    _pipeline_class(path, model.family)
    transformer_class = getattr(diffusers, read_index(path)["transformer"][1])
    with quiet(), init_empty_weights():
        transformer = transformer_class.from_config(
            transformer_class.load_config(path, subfolder="transformer")
        )
    return [name for name, _ in transformer.named_modules()]


def read_architecture(model: ModelConfig) -> Architecture:
    """Return what the checkpoint of a recipe consists of; reads small JSON files at most.

    Published checkpoints are known by their hub id (`published.CHECKPOINTS`), so that neither the hub nor the
    permission to download a gated one is needed.

    Raises:
        UserError: The checkpoint is missing, unreachable, or of another family.
    """
    if (known := CHECKPOINTS.get(model.path)) is not None:
        return _of_family(known, model)
    if model.path == TOYBOX:
        from customized_grpo.toybox import assets

        folder, source = assets.ASSETS / "base", "the weights that come with the package"
    else:
        folder, source = Path(model.path).expanduser(), f"the configs in {model.path}"
    if folder.is_dir():
        return _of_family(_read(lambda name: folder / name, model, source), model)
    return _of_family(
        _read(lambda name: download(model.path, name), model, f"the configs of {model.path}"), model
    )


def _read(locate: Callable[[str], Path], model: ModelConfig, source: str) -> Architecture:
    """Read model_index.json and the configs it points to."""
    index = read_json(locate(INDEX))
    pipeline = str(index.get("_class_name"))
    family = next((name for name, family in FAMILIES.items() if pipeline in family.classes), pipeline)

    def part(name: str) -> Part:
        library, class_name = index[name]
        return Part(library, class_name, read_json(locate(f"{name}/config.json")))

    if family not in FAMILIES or not {"transformer", "vae"} <= index.keys():
        raise UserError(
            f"model.path {model.path!r}: {INDEX} says {pipeline}, which is of no known family",
            hint=f"Known families: {', '.join(FAMILIES)}.",
        )
    encoders = [name for name in index if name.startswith("text_encoder") and index[name][0] is not None]
    return Architecture(
        family=family,
        transformer=part("transformer"),
        vae=part("vae"),
        text_encoders=tuple(part(name) for name in encoders),
        distilled=bool(index.get("is_distilled", False)),
        source=source,
    )


def _of_family(found: Architecture, model: ModelConfig) -> Architecture:
    if found.family != model.family:
        raise UserError(
            f"model.path {model.path!r} is of family {found.family}, model.family says {model.family}",
            hint=f"Set model.family={found.family}, or name a checkpoint of {model.family}.",
        )
    return found
