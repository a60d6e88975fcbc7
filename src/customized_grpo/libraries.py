"""Keep the model libraries from talking over the program's own output."""

from __future__ import annotations

import gc
import importlib
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

TALKERS = ("bitsandbytes", "torchao", "torch.utils._pytree", "diffusers.quantizers")
"""Loggers that report, as warnings, what could not be loaded on import and is not used here."""


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Silence what bitsandbytes, torchao and diffusers warn of when something imports them in the block.

    Wrap a whole command: accelerate, peft and diffusers import them wherever they like.
    """
    talkers = [logging.getLogger(name) for name in TALKERS]
    levels = [talker.level for talker in talkers]
    for talker in talkers:
        talker.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for talker, level in zip(talkers, levels, strict=True):
            talker.setLevel(level)


@contextmanager
def undisturbed_imports() -> Iterator[None]:
    """Keep the search for garbage away from the imports of torch and the model libraries in the block.

    It would walk over all their modules again and again, a fifth of the time they take, and find nothing.
    After the block it leaves them out. Where diffusers is there already, nothing changes.
    """
    if "diffusers" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def quiet(names: Sequence[str] = ("transformers", "diffusers")) -> Iterator[None]:
    """Silence advice and progress bars of the model libraries inside the block; errors still show.

    Importing a pipeline without torchvision, which this package does not want, makes transformers advise
    installing it, once per image processor. bitsandbytes and torchao, which peft imports where they are
    installed, miss kernels. Wrap the import and the loading.

    Args:
        names: Which libraries the block uses; they are imported, diffusers takes seconds.
    """
    libraries = [importlib.import_module(f"{name}.utils.logging") for name in names]
    verbosities = [library.get_verbosity() for library in libraries]
    with_bars = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with quiet_imports(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # their own, about calling each other
            yield
    finally:
        for library, verbosity, bars in zip(libraries, verbosities, with_bars, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()
