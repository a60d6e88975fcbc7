"""Keep the model libraries from talking over the program's own output."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence advice and progress bars of transformers and diffusers inside the block; errors still show.

    Importing a pipeline without torchvision, which this package does not want, makes transformers advise
    installing it, once per image processor. Wrap the import and the loading.
    """
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries = (transformers_logging, diffusers_logging)
    verbosities = [library.get_verbosity() for library in libraries]
    with_bars = [library.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # their own, about calling each other
            yield
    finally:
        for library, verbosity, bars in zip(libraries, verbosities, with_bars, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()
