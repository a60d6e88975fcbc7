"""Experiment trackers beside metrics.jsonl, kept away from the run.

They are a convenience, so nothing they do may stop or change a run: any error of a tracker at any call is one
warning, and that tracker is dropped. A package that is not installed is said before anything is loaded.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from customized_grpo.errors import UserError
from customized_grpo.reporting.services import MLflow, TensorBoard, Trackio, Wandb

logger = logging.getLogger(__name__)

PREFIXES = {"train": "train", "eval": "held_out"}
"""{kind of a metrics record: first part of its tags}."""


class Tracker(Protocol):
    """An adapter: numbers in, nothing out. It may raise; `Trackers` absorbs it."""

    def log(self, metrics: Mapping[str, float], iteration: int) -> None:
        """Send the numbers of one record."""

    def log_images(self, images: Mapping[str, Path], iteration: int) -> None:
        """Send PNG files by tag."""

    def close(self) -> None:
        """Flush and finish."""


Factory = Callable[[Path, Mapping[str, Any]], Tracker]

TRACKERS: dict[str, Factory] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "trackio": Trackio,
    "mlflow": MLflow,
}


START_HINTS = {"wandb": ". It needs WANDB_API_KEY or `wandb login`; WANDB_MODE=offline works without"}
"""What a tracker that cannot start may miss."""


def check_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose package is not installed; nothing is imported.

    Args:
        names: Keys of `TRACKERS`.

    Raises:
        UserError: Names the packages, and what installs them.
    """
    missing = []
    for name in dict.fromkeys(names):
        # a tracker from elsewhere says no package
        package = getattr(TRACKERS[name], "package", None)
        if package is not None and find_spec(package) is None:
            missing.append(name)
    if missing:
        extras = ",".join(str(getattr(TRACKERS[name], "extra", name)) for name in missing)
        raise UserError(
            f"trackers: {', '.join(missing)}: not installed",
            hint=f"Install it with `pip install 'customized-grpo[{extras}]'`, or leave it out of trackers.",
        )


class Trackers:
    """Several trackers, isolated from the run: each failing one is dropped with one warning.

    Args:
        names: Keys of `TRACKERS`.
        run_dir: The run folder; its name names the run.
        config: What to show as the run's settings. Secrets must be redacted already: it leaves this machine.

    Raises:
        ValueError: An unknown name (a mistake in the code or config, not a tracker's failure).
    """

    def __init__(self, names: Sequence[str], run_dir: Path, config: Mapping[str, Any]) -> None:
        # Before any tracker is started, because one that runs would have to be ended.
        unknown = [name for name in names if name not in TRACKERS]
        if unknown:
            raise ValueError(f"unknown trackers {unknown}; there are {', '.join(TRACKERS)}")
        self._active: dict[str, Tracker] = {}
        # each once, although a recipe may name one twice
        for name in dict.fromkeys(names):
            try:
                with _no_keyboard():
                    self._active[name] = TRACKERS[name](run_dir, config)
            except Exception as error:
                _warn(name, error, START_HINTS.get(name, ""))

    @property
    def active(self) -> tuple[str, ...]:
        """Return the names of the trackers that still work."""
        return tuple(self._active)

    def log(self, record: Mapping[str, Any]) -> None:
        """Send the finite numbers of one metrics record; events hold no numbers and are skipped.

        Training and held-out values are other quantities under the same name, so a tag begins with PREFIXES.
        """
        if record["kind"] == "event":
            return
        prefix = PREFIXES[record["kind"]]
        metrics = {
            f"{prefix}/{key}": float(value)
            for key, value in record.items()
            # float)|null is "not measured", which a tracker has no number for.
            if isinstance(value, int | float) and key != "iteration"
        }
        self._each(lambda tracker: tracker.log(metrics, int(record["iteration"])))

    def log_images(self, paths: Sequence[Path], iteration: int) -> None:
        """Send the images of the sample prompts, one for each prompt, that an evaluation has drawn.

        Args:
            paths: PNG files, in the order of the prompts.
            iteration: Finished iterations; 0 is the base model.
        """
        images = {f"samples/{number:02d}": path for number, path in enumerate(paths)}
        self._each(lambda tracker: tracker.log_images(images, iteration))

    def close(self) -> None:
        """Close all; safe to call twice."""
        self._each(lambda tracker: tracker.close())
        self._active.clear()

    def _each(self, call: Callable[[Tracker], None]) -> None:
        # A copy, as one that fails is taken out.
        for name, tracker in list(self._active.items()):
            try:
                call(tracker)
            except Exception as error:
                del self._active[name]
                _warn(name, error)


@contextmanager
def _no_keyboard() -> Iterator[None]:
    """Take the keyboard away inside the block: a run must not wait for somebody to type a key."""
    keyboard = sys.stdin
    with open(os.devnull) as nobody:
        sys.stdin = nobody
        try:
            yield
        finally:
            sys.stdin = keyboard


def _warn(name: str, error: Exception, hint: str = "") -> None:
    # Without the message: a service's error text can repeat a key or a URL with one.
    reason = f"{type(error).__name__}: {error}" if isinstance(error, ImportError) else type(error).__name__
    logger.warning(
        "tracker %s is off for this run (%s); metrics.jsonl is complete without it%s", name, reason, hint
    )
    logger.debug("tracker %s failed", name, exc_info=error)
