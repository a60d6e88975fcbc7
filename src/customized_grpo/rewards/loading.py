"""From a folder, a hub id or "toybox" to a reward model, refusing what would silently score nonsense."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from customized_grpo.errors import UserError
from customized_grpo.files import read_json
from customized_grpo.hub import download
from customized_grpo.libraries import quiet
from customized_grpo.rewards.preprocessing import FILE_NAME, Preprocess
from customized_grpo.weights import models as checked
from customized_grpo.weights.models import explained
from customized_grpo.weights.tokenizers import load_tokenizer as checked_tokenizer

if TYPE_CHECKING:
    from transformers import CLIPModel, CLIPTokenizer

TOYBOX = "toybox"
NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})


def load_model(
    path: str, toybox_name: str | None, model_class: Any, arguments: Mapping[str, Any] = NO_ARGUMENTS
) -> tuple[Any, str]:
    """Load a model in fp32.

    Args:
        path: A folder, a hub id such as "owner/name", or "toybox".
        toybox_name: Which of the embedded reward models "toybox" means; None where there is none.
        model_class: The transformers class.
        arguments: Further arguments of that class.

    Returns:
        The model, and the folder or hub id with its preprocessing and tokenizer.

    Raises:
        UserError: It is missing, unreachable or of another class; or see `weights.models.load_model`.
    """
    if path == TOYBOX:
        if toybox_name is None:
            raise UserError(f"ToyBox has no {model_class.__name__}", hint="Give a folder or a hub id.")
        from customized_grpo.toybox.assets import load_reward_model

        with quiet(["transformers"]):
            model, folder = load_reward_model(toybox_name)
        return model, str(folder)
    # By its own word: weights of another model would load in part, and score at random.
    needed_type = model_class.config_class.model_type
    model_type = read_json(checkpoint_file(path, "config.json")).get("model_type")
    if model_type != needed_type:
        raise UserError(f"reward model {path!r}: it is a {model_type!r} model, {needed_type!r} is needed")
    with quiet(["transformers"]):
        model = checked.load_model(
            model_class, path, what=f"reward model {path!r}", only_part=True, dtype="float32", **arguments
        )
    return model, path


def load_preprocess(path: str) -> Preprocess:
    """Read the preprocessing that belongs to a checkpoint."""
    return Preprocess.from_file(checkpoint_file(path, FILE_NAME))


def load_tokenizer(path: str, model: CLIPModel | None = None) -> CLIPTokenizer:
    """Load the tokenizer that belongs to a CLIP checkpoint, and check that it is its text encoder's.

    Args:
        path: A folder or a hub id.
        model: The model; None if it is not there yet.

    Raises:
        UserError: See `weights.tokenizers.load_tokenizer`.
    """
    from transformers import CLIPTokenizer

    what = f"reward model {path!r}: its tokenizer"
    encoder = None if model is None else model.text_model
    tokenizer: CLIPTokenizer = checked_tokenizer(CLIPTokenizer, path, what=what, encoder=encoder)
    return tokenizer


def load_part(path: str, part_class: Any, what: str) -> Any:
    """Load a configuration.

    Args:
        path: A folder or a hub id.
        part_class: The transformers class.
        what: What messages call it.

    Raises:
        UserError: It cannot be loaded.
    """
    with explained(f"reward model {path!r}: no {what} could be loaded"):
        return part_class.from_pretrained(path)


def checkpoint_file(path: str, name: str) -> Path:
    """Return a file of a folder or of a hub checkpoint."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / name).is_file():
            raise UserError(
                f"{folder / name}: no such file", hint="It comes with the checkpoint: copy it there."
            )
        return folder / name
    return download(path, name, what=f"reward model {path!r}")
