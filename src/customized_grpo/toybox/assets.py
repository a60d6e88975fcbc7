"""The weights that ship with the package, and the card that states how they were made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from customized_grpo.errors import UserError

if TYPE_CHECKING:
    from diffusers import FluxKontextPipeline

    from customized_grpo.toybox.judges import AttributeClassifier, SubjectEncoder

ASSETS = Path(__file__).parent / "assets"
REWARD_MODELS = ("dino", "clip", "pickscore")

_current: ContextVar[Path] = ContextVar("folder of the ToyBox weights", default=ASSETS)


@contextmanager
def reading_from(folder: Path) -> Iterator[None]:
    """Load all weights from another folder inside the block: new ones are measured before they ship."""
    token = _current.set(folder)
    try:
        yield
    finally:
        _current.reset(token)


def _folder(name: str) -> Path:
    path = _current.get() / name
    if not path.exists():
        raise UserError(
            f"the embedded ToyBox weights are incomplete: {path} is missing",
            hint="Reinstall customized-grpo; wheels and clones contain all of them.",
        )
    return path


def card() -> dict[str, Any]:
    """Return the card: recipe, seeds, samples, losses and measured scores of every part."""
    loaded: dict[str, Any] = json.loads(_folder("card.json").read_text())
    return loaded


def base_folder() -> Path:
    """Return the folder of the base generator, in diffusers' layout."""
    return _folder("base")


def load_base_pipeline() -> FluxKontextPipeline:
    """Return the base generator in fp32 (stored as bf16)."""
    import torch
    from diffusers import FluxKontextPipeline

    from customized_grpo.weights.models import explained

    folder = base_folder()
    with explained(f"{folder}: the embedded ToyBox weights could not be loaded"):
        return FluxKontextPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)


def load_reward_model(name: str) -> tuple[Any, Path]:
    """Return a reward model in fp32, and its folder with preprocessing and tokenizer.

    Args:
        name: Of REWARD_MODELS: "dino" is a Dinov2Model, the others are CLIPModels.
    """
    from transformers import CLIPModel, Dinov2Model

    from customized_grpo.weights.models import load_model

    model_class = Dinov2Model if name == "dino" else CLIPModel
    folder = _folder(name)
    what = f"{folder}: the embedded ToyBox weights"
    return load_model(model_class, str(folder), what=what, dtype="float32", local_files_only=True), folder


def load_judges() -> tuple[SubjectEncoder, AttributeClassifier]:
    """Return the held-out judges in fp32 (stored as bf16)."""
    from safetensors.torch import load_file

    from customized_grpo.toybox.judges import AttributeClassifier, SubjectEncoder
    from customized_grpo.weights.models import explained

    folder = _folder("judges")
    encoder = SubjectEncoder()
    classifier = AttributeClassifier()
    with explained(f"{folder}: the embedded ToyBox weights could not be loaded"):
        encoder.load_state_dict(load_file(folder / "subject_encoder.safetensors"))
        classifier.load_state_dict(load_file(folder / "attribute_classifier.safetensors"))
    return encoder.float().eval(), classifier.float().eval()
