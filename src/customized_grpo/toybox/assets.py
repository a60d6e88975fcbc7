"""The weights that ship with the package, and the card that says how they were made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from customized_grpo.errors import UserError

if TYPE_CHECKING:
    from diffusers import FluxKontextPipeline

    from customized_grpo.toybox.judges import AttributeClassifier, SubjectEncoder

ASSETS = Path(__file__).parent / "assets"
REWARD_MODELS = ("dino", "clip")


@contextmanager
def reading_from(folder: Path) -> Iterator[None]:
    """Read all of the weights in another folder inside the block: new ones are measured before they ship."""
    global ASSETS
    before, ASSETS = ASSETS, folder
    card.cache_clear()
    try:
        yield
    finally:
        ASSETS = before
        card.cache_clear()


def _folder(name: str) -> Path:
    path = ASSETS / name
    if not path.exists():
        raise UserError(
            f"the embedded ToyBox weights are incomplete: {path} is missing",
            "Reinstall customized-grpo; wheels and clones carry all of them.",
        )
    return path


@cache
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

    return FluxKontextPipeline.from_pretrained(
        base_folder(), torch_dtype=torch.float32, local_files_only=True
    )


def load_reward_model(name: str) -> tuple[Any, Path]:
    """Return a reward model in fp32, and its folder with preprocessing and tokenizer.

    Args:
        name: "dino" (Dinov2Model) or "clip" (CLIPModel).
    """
    from transformers import CLIPModel, Dinov2Model

    model_class = {"dino": Dinov2Model, "clip": CLIPModel}[name]
    folder = _folder(name)
    return model_class.from_pretrained(folder, dtype="float32", local_files_only=True).eval(), folder


def load_judges() -> tuple[SubjectEncoder, AttributeClassifier]:
    """Return the held-out judges."""
    from safetensors.torch import load_file

    from customized_grpo.toybox.judges import AttributeClassifier, SubjectEncoder

    encoder, classifier = SubjectEncoder(), AttributeClassifier()
    for module, name in ((encoder, "subject_encoder"), (classifier, "attribute_classifier")):
        module.load_state_dict(load_file(_folder("judges") / f"{name}.safetensors"))
        module.float().eval()
    return encoder, classifier
