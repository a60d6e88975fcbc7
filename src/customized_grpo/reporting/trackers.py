"""Optional experiment trackers: TensorBoard, Weights & Biases, trackio.

They are a convenience beside ``metrics.jsonl``, so nothing they do may stop or change a run: any error of a
tracker, at import or at any later call, becomes one warning and that tracker is dropped.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from customized_grpo.files import write_text

logger = logging.getLogger(__name__)

PROJECT = "customized-grpo"

WANDB_ID = "wandb_id"
"""File of the run folder with the id of its Weights & Biases run."""

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


class TensorBoard:
    """Event files under `run_dir`/tensorboard, by torch's own writer."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        module = importlib.import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(log_dir=str(run_dir / "tensorboard"))

    def log(self, metrics: Mapping[str, float], iteration: int) -> None:
        """Write one scalar per metric, at step `iteration`."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, iteration)

    def log_images(self, images: Mapping[str, Path], iteration: int) -> None:
        """Write one image per tag, at step `iteration`."""
        for name, path in images.items():
            with Image.open(path) as image:
                self._writer.add_image(name, np.asarray(image.convert("RGB")), iteration, dataformats="HWC")

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class Wandb:
    """A Weights & Biases run named after the run folder; key and mode come from its environment variables.

    Its id is kept in the run folder, so that a resumed run goes on in the same one.
    """

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        self._wandb = importlib.import_module("wandb")
        self._run = self._wandb.init(
            project=PROJECT, name=run_dir.name, dir=str(run_dir), config=dict(config),
            id=_kept_id(run_dir / WANDB_ID), resume="allow",
        )  # fmt: skip
        # Its own step may never go back, but a resumed run repeats iterations: so ours is an ordinary metric.
        self._run.define_metric("iteration")
        self._run.define_metric("*", step_metric="iteration")

    def log(self, metrics: Mapping[str, float], iteration: int) -> None:
        """Log one history row with `iteration` as its x axis."""
        self._run.log({**metrics, "iteration": iteration})

    def log_images(self, images: Mapping[str, Path], iteration: int) -> None:
        """Log one history row of images with `iteration` as its x axis."""
        media = {name: self._wandb.Image(str(path)) for name, path in images.items()}
        self._run.log({**media, "iteration": iteration})

    def close(self) -> None:
        """Finish the run."""
        self._run.finish()


class Trackio:
    """A local trackio run named after the run folder."""

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        self._trackio = importlib.import_module("trackio")
        # allow: a resumed run goes on under the name that it has there
        self._trackio.init(project=PROJECT, name=run_dir.name, config=dict(config), resume="allow")

    def log(self, metrics: Mapping[str, float], iteration: int) -> None:
        """Log one row at step `iteration`."""
        self._trackio.log(dict(metrics), step=iteration)

    def log_images(self, images: Mapping[str, Path], iteration: int) -> None:
        """Log one row of images at step `iteration`."""
        media = {name: self._trackio.Image(str(path)) for name, path in images.items()}
        self._trackio.log(media, step=iteration)

    def close(self) -> None:
        """Finish the run."""
        self._trackio.finish()


TRACKERS: dict[str, Factory] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}


START_HINTS = {"wandb": ". It needs WANDB_API_KEY or `wandb login`; WANDB_MODE=offline works without"}
"""What a tracker that cannot start may miss."""


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


def _kept_id(file: Path) -> str:
    """Return the id in a file, or a new one, which the file then keeps."""
    if file.is_file():
        return file.read_text(encoding="utf-8").strip()
    new = uuid.uuid4().hex[:12]
    write_text(file, f"{new}\n")
    return new


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
