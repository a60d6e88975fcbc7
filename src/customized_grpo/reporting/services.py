"""Experiment trackers, each through accelerate's class for it, with what that class lacks.

What accelerate lacks: images of W&B beside the iteration, images of trackio and MLflow, and the same run
after a resume, for which the run folder keeps the service's id.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from customized_grpo.files import write_text
from customized_grpo.flat import flat

logger = logging.getLogger(__name__)

PROJECT = "customized-grpo"
"""Name of the project or experiment in every service."""

SAMPLES = "samples"

_NOT_IN_MLFLOW = re.compile(r"[^\w\-. :/]")


class Service:
    """A tracker of accelerate: numbers and images in, nothing out. It may raise; `Trackers` absorbs it.

    Attributes:
        package: The package that it needs, as it is imported.
        extra: What installs it: an extra of this package.
        tracker: Accelerate's tracker.
    """

    package: ClassVar[str]
    extra: ClassVar[str]
    tracker: Any

    def log(self, metrics: Mapping[str, float], iteration: int) -> None:
        """Send the numbers of one record, at step `iteration`."""
        self.tracker.log(dict(metrics), step=iteration)

    def log_images(self, images: Mapping[str, Path], iteration: int) -> None:
        """Send PNG files by tag, at step `iteration`."""
        self.tracker.log_images({tag: _read(path) for tag, path in images.items()}, step=iteration)

    def close(self) -> None:
        """Flush and finish."""
        self.tracker.finish()


class TensorBoard(Service):
    """Event files under `run_dir`/tensorboard."""

    package = "tensorboard"
    extra = "tensorboard"

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        self.tracker = _start("TensorBoardTracker", "tensorboard", logging_dir=str(run_dir))

    def log_images(self, images: Mapping[str, Path], iteration: int) -> None:
        """Write one image per tag, at step `iteration`."""
        arrays = {tag: np.asarray(_read(path))[None] for tag, path in images.items()}
        self.tracker.log_images(arrays, step=iteration, dataformats="NHWC")


class Wandb(Service):
    """A Weights & Biases run named after the run folder; key and mode come from its environment variables.

    Without a key it is kept offline. Its id is in the run folder: a resumed run goes on in the same one.
    """

    package = "wandb"
    extra = "wandb"

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        self._wandb = importlib.import_module("wandb")
        options = {
            "name": run_dir.name,
            "dir": str(run_dir),
            "config": dict(config),
            "id": kept_id(run_dir / "wandb_id", _new_id),
            "resume": "allow",
        }
        self.tracker = self._begin(options)
        # Its own step may never go back, but a resumed run repeats iterations: so ours is an ordinary metric.
        self.tracker.tracker.define_metric("iteration")
        self.tracker.tracker.define_metric("*", step_metric="iteration")

    def _begin(self, options: Mapping[str, Any]) -> Any:
        if os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY"):
            return _start("WandBTracker", PROJECT, **options)
        try:
            return _start("WandBTracker", PROJECT, **options)
        except Exception as error:
            # wandb's name for a missing key; imported by name, as its place has moved between versions
            if type(error).__name__ not in ("UsageError", "AuthenticationError"):
                raise
        logger.warning(
            "tracker wandb: no key was found (WANDB_API_KEY or `wandb login`), so the run is kept offline in "
            "%s/wandb; `wandb sync` sends it later",
            options["dir"],
        )
        return _start("WandBTracker", PROJECT, **options, mode="offline")

    def log(self, metrics: Mapping[str, float], iteration: int) -> None:
        """Log one history row with `iteration` as its x axis."""
        self.tracker.log({**metrics, "iteration": iteration})

    def log_images(self, images: Mapping[str, Path], iteration: int) -> None:
        """Log one history row of images with `iteration` as its x axis."""
        media = {tag: self._wandb.Image(str(path)) for tag, path in images.items()}
        self.tracker.log({**media, "iteration": iteration})


class Trackio(Service):
    """A local trackio run named after the run folder; a resumed run goes on under the name it has there."""

    package = "trackio"
    extra = "trackio"

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        self._trackio = importlib.import_module("trackio")
        self.tracker = _start(
            "TrackioTracker", PROJECT, name=run_dir.name, config=dict(config), resume="allow"
        )

    def log_images(self, images: Mapping[str, Path], iteration: int) -> None:
        """Log one row of images at step `iteration`."""
        media = {tag: self._trackio.Image(str(path)) for tag, path in images.items()}
        self.tracker.log(media, step=iteration)


class MLflow(Service):
    """A run of MLflow, at MLFLOW_TRACKING_URI or under `run_dir`/mlruns; images are artifacts."""

    package = "mlflow"
    extra = "mlflow"

    def __init__(self, run_dir: Path, config: Mapping[str, Any]) -> None:
        mlflow = importlib.import_module("mlflow")
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            # of MLflow's newer versions a file store has to be asked for
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            mlflow.set_tracking_uri((run_dir / "mlruns").resolve().as_uri())
        file = run_dir / "mlflow_id"
        known = file.read_text(encoding="utf-8").strip() if file.is_file() else None
        self.tracker = _start("MLflowTracker", PROJECT, run_id=known, run_name=run_dir.name)
        kept_id(file, lambda: str(self.tracker.tracker.info.run_id))
        if known is None:  # they may not change, and a resumed run may have other ones
            self.tracker.store_init_configuration(flat(dict(config)))

    def log(self, metrics: Mapping[str, float], iteration: int) -> None:
        """Send the numbers of one record; letters that MLflow refuses in a name become "_"."""
        super().log({_NOT_IN_MLFLOW.sub("_", tag): value for tag, value in metrics.items()}, iteration)

    def log_images(self, images: Mapping[str, Path], iteration: int) -> None:
        """Keep PNG files as artifacts, in a folder for each iteration."""
        for path in images.values():
            self.tracker.log_artifact(str(path), artifact_path=f"{SAMPLES}/iteration_{iteration:06d}")


def kept_id(file: Path, new: Callable[[], str]) -> str:
    """Return the id in a file, or a new one, which the file then keeps."""
    if file.is_file():
        return file.read_text(encoding="utf-8").strip()
    made = new()
    write_text(file, f"{made}\n")
    return made


def _new_id() -> str:
    return uuid.uuid4().hex[:12]


def _start(kind: str, /, *arguments: Any, **options: Any) -> Any:
    """Return a started tracker of accelerate, which need not ask whether this is the main process.

    The engine is there already: accelerate's classes log by the state that it has made.
    """
    tracker = getattr(importlib.import_module("accelerate.tracking"), kind)(*arguments, **options)
    tracker.main_process_only = False
    tracker.start()
    return tracker


def _read(path: Path) -> Image.Image:
    """Return an image as RGB."""
    with Image.open(path) as image:
        return image.convert("RGB")
