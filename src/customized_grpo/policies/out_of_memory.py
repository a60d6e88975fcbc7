"""Errors about memory, with numbers and with the settings that need less, in the order of their effect."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from customized_grpo.errors import UserError, is_out_of_memory

if TYPE_CHECKING:
    from customized_grpo.config.schema import ModelConfig

GIB = 2**30


@contextmanager
def explained(
    model: ModelConfig,
    batches: Mapping[str, int] | None = None,
    *,
    training: bool = True,
    first: Callable[[], Sequence[str]] = list,
) -> Iterator[None]:
    """Turn an out-of-memory error inside the block into one for the user.

    Args:
        model: The recipe's `model` section.
        batches: Batch sizes in use by their names in recipes, the one with the largest effect first. None
            while the model is loaded, when neither they nor gradient checkpointing can help.
        training: Whether there are gradients, for which checkpointing saves memory.
        first: Returns settings to name before all others, asked when memory has run out.

    Raises:
        UserError: Says how much more was needed, how much is free, and what to set.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise _as_user_error(error, [*first(), *_settings(model, batches, training)]) from error


def _as_user_error(error: Exception, settings: Sequence[str]) -> UserError:
    hint = f"In the order of their effect: {', '.join(settings)}." if settings else None
    return UserError(f"out of memory: {_numbers(str(error))}", hint or "It needs a device with more memory.")


def _numbers(text: str) -> str:
    """Return the numbers in torch's message, or its first sentence if it has none."""
    on_cpu = re.search(r"you tried to allocate (\d+) bytes", text)
    if on_cpu is not None:
        return f"{int(on_cpu[1]) / GIB:.2f} GiB more were needed"
    needed = re.search(r"Tried to allocate ([\d.]+ \w+)", text)
    free = re.search(r"total capacity of ([\d.]+ \w+) of which ([\d.]+ \w+) is free", text)
    if needed is None or free is None:
        # A message of another form still says something in its first sentence.
        return text.partition(". ")[0] or "Python has no more memory"
    return f"{needed[1]} more were needed, {free[2]} of the device's {free[1]} are free"


def _settings(model: ModelConfig, batches: Mapping[str, int] | None, training: bool) -> list[str]:
    """Return the settings that would save memory and are not in use yet, the largest effect first."""
    settings = []
    if model.quantisation != "nf4":
        settings.append("model.quantisation=nf4")
    if training and batches is not None and not model.gradient_checkpointing:
        settings.append("model.gradient_checkpointing=true")
    settings += [f"{name}={size // 2}" for name, size in (batches or {}).items() if size > 1]
    if model.text_encoders == "keep":
        settings.append("model.text_encoders=offload")
    if not model.offload_vae:
        settings.append("model.offload_vae=true")
    return settings
