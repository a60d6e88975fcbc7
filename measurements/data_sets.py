"""What a large data set costs: seconds and memory of a start, and memory of an evaluation of held-out rows.

    python measurements/data_sets.py start --rows 100000     # first, second, one image changed
    python measurements/data_sets.py start --rows 1000000 --images 200000
    python measurements/data_sets.py held-out --rows 1200 --size 512

Every figure is of a process of its own; seconds are CPU time of all its threads. `start` opens the rows of a
recipe and takes their fingerprint, as `cgrpo train` does before it loads a model. `held-out` evaluates a
policy that paints its noise: what is measured is what the evaluation itself keeps.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from customized_grpo.config import load_config
from customized_grpo.policies.conditioning import Conditioning

FOLDERS = 1000
"""Folders over which images are spread."""


# The data


def make_images(folder: Path, count: int, size: int) -> list[str]:
    """Write images that all differ in their bytes, but not in their pixels; return their names."""
    file = io.BytesIO()
    Image.new("RGB", (size, size), (90, 120, 30)).save(file, "PNG")
    names = [f"images/{number % FOLDERS}/{number}.png" for number in range(count)]
    for number in range(min(FOLDERS, count)):
        (folder / "images" / str(number)).mkdir(parents=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(file.getvalue() + str(number).encode())  # decoders stop at the end mark
    return names


def make_manifest(path: Path, name: str, images: Sequence[str]) -> Path:
    """Write a manifest with a row for every two images: a reference and a target."""
    with path.open("w", encoding="utf-8") as file:
        for number, (reference, target) in enumerate(zip(images[::2], images[1::2], strict=True)):
            row = {
                "id": f"{name}-{number}",
                "prompt": f"a photo of the toy number {number} on a wooden table beside a blue cup",
                "references": [reference],
                "target": target,
                "subject": f"{name} toy {number // 4}",
            }
            file.write(json.dumps(row) + "\n")
    return path


# A start


def start(manifest: Path, held_out: Path) -> dict[str, float]:
    """Open the rows of a recipe, draw an iteration's prompts, and fingerprint what the recipe names."""
    from customized_grpo.training.identity import contents
    from customized_grpo.training.parts import build_data

    data = f"data={{kind: manifest, train: {manifest}, held_out: {held_out}}}"
    config = load_config("toybox", [data, "rewards.dino.segment=none"])
    before = peak_megabytes()
    wall = time.perf_counter()
    cpu = time.process_time()
    rows = build_data(config)
    contents(config, None, rows.fingerprints)
    return {
        "rows": len(rows.train),
        "cpu_s": time.process_time() - cpu,
        "wall_s": time.perf_counter() - wall,
        "grown_mb": peak_megabytes() - before,
    }


def measure_starts(n_rows: int, size: int, n_images: int | None = None) -> list[dict[str, Any]]:
    """Return the figures of the first and the second start, and of one after an image was changed.

    Args:
        n_rows: Rows of the manifest.
        size: Side of the images in pixels.
        n_images: Images that the rows share; None: each has two of its own.
    """
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = make_images(folder, (n_images or 2 * n_rows) + 16, size)
        of_rows = list(islice(cycle(images[16:]), 2 * n_rows))
        train = make_manifest(folder / "train.jsonl", "train", of_rows)
        held_out = make_manifest(folder / "held_out.jsonl", "held-out", images[:16])
        for label in ("first start", "second start", "one image changed"):
            if label == "one image changed":
                with (folder / images[-1]).open("ab") as file:
                    file.write(b"!")
            results.append({"case": label, **alone(partial(start, train, held_out))})
            print(results[-1], flush=True)
    return results


# An evaluation


class Painter:
    """A policy that shows its initial noise."""

    placement = SimpleNamespace(text_encoders_wait=False)
    device = torch.device("cpu")

    def encoding(self) -> AbstractContextManager[None]:
        """Prepare nothing."""
        return nullcontext()

    def encode(self, prompts: Sequence[str], references: Any, height: int, width: int) -> Conditioning:
        """Look at the references, and keep one number of them."""
        level = torch.tensor([float(images[0].mean()) for images in references])
        return Conditioning({"level": level}, {}, height, width)

    def noise(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        """Return noise within the range of pixels."""
        return torch.stack([torch.rand(3, height, width, generator=generator) for generator in generators])

    def velocity(self, x: Tensor, sigma: float, conditioning: Conditioning) -> Tensor:
        """Return a model's output that changes nothing."""
        return torch.zeros_like(x)

    def decode(self, x: Tensor, height: int, width: int) -> Tensor:
        """Return the noise as images."""
        return x


def evaluate(folder: Path, n_rows: int, size: int, samples_per_prompt: int) -> dict[str, float]:
    """Evaluate the painter; return its memory beyond that of a process that evaluated one batch."""
    from customized_grpo.data.examples import ManifestSource
    from customized_grpo.data.fitting import Fitting
    from customized_grpo.data.manifest import load_manifest
    from customized_grpo.evaluation.held_out import evaluate_policy
    from customized_grpo.rewards import FunctionReward
    from customized_grpo.rewards.executors import Scorer
    from customized_grpo.rollout.encoding import PromptEncoder

    rows = load_manifest(folder / "held_out.jsonl", require_masks=False)
    examples = ManifestSource(rows, Fitting(size, size)).on_demand(9)
    scorer = Scorer.inline([FunctionReward("level", "prompt", lambda batch: batch.images.mean((1, 2, 3)))])
    policy: Any = Painter()

    def run(some: Sequence[Any]) -> None:
        evaluate_policy(
            policy,
            some,
            scorer,
            None,
            encoder=PromptEncoder(policy, (size, size)),
            sigmas=torch.tensor([1.0, 0.0]),
            samples_per_prompt=samples_per_prompt,
            seed=0,
            batch_size=8,
            kept=range(min(8, len(some) * samples_per_prompt)),
        )

    run(examples[: 8 // samples_per_prompt])
    before = peak_megabytes()
    cpu = time.process_time()
    run(examples)
    return {
        "rows": n_rows,
        "cpu_s": time.process_time() - cpu,
        "one_batch_mb": before,
        "grown_mb": peak_megabytes() - before,
    }


def measure_held_out(n_rows: int, size: int, samples_per_prompt: int) -> list[dict[str, Any]]:
    """Return the figures of an evaluation of rows with an image and a target each."""
    with tempfile.TemporaryDirectory() as name:
        images = make_images(Path(name), 2 * n_rows, size)
        make_manifest(Path(name) / "held_out.jsonl", "held-out", images)
        figures = alone(partial(evaluate, Path(name), n_rows, size, samples_per_prompt))
    result = {"case": f"{n_rows} rows of {size} px, {samples_per_prompt} samples", **figures}
    print(result, flush=True)
    return [result]


# Measuring


def peak_megabytes() -> float:
    """Return the largest resident memory that this process had, in MB."""
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes * 1.024 / 1000


def alone(function: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Call a function in a new process and return what it returns."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        figures: dict[str, float] = pool.apply(function)
    return {name: round(value, 2) for name, value in figures.items()}


def main(arguments: list[str] | None = None) -> int:
    """Measure, and write the numbers as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("start", "held-out"))
    parser.add_argument("--rows", type=int, default=1200, help="rows of the manifest (default 1200)")
    parser.add_argument("--images", type=int, help="images that rows of `start` share (default: two each)")
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels (default 64)")
    parser.add_argument("--samples", type=int, default=1, help="samples of a held-out row (default 1)")
    parser.add_argument("--json", type=Path, help="file for the numbers")
    options = parser.parse_args(arguments)
    if options.what == "start":
        results = measure_starts(options.rows, options.size, options.images)
    else:
        results = measure_held_out(options.rows, options.size, options.samples)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    np.seterr(all="raise")
    sys.exit(main())
