"""Peak resident memory of the processes of a run: the trainer, and a reward service that scored a request.

    python measurements/process_memory.py                          # the preset toybox-smoke
    python measurements/process_memory.py toybox train.iterations=1 --batch 96

The figures are of the kernel (VmHWM, ru_maxrss), with the pages of libraries that processes share.
Every process is real: `cgrpo train` and `cgrpo serve-rewards`, each started from nothing.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

from reward_service import JSON, request_body, service


def trainer_megabytes(recipe: str, overrides: list[str]) -> float:
    """Return the peak of a training, in MB; no other child may have ended before."""
    with tempfile.TemporaryDirectory() as folder:
        run = [recipe, *overrides, f"run.dir={folder}/run"]
        subprocess.run([sys.executable, "-m", "customized_grpo", "train", *run], check=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1.024 / 1000


def service_megabytes(batch: int, size: int) -> tuple[float, float]:
    """Return the peaks of a reward service that is ready, and that has scored a request, in MB."""
    with service() as (child, url):
        ready = peak_megabytes(child.pid)
        httpx.post(
            f"{url}/v1/score", content=request_body(url, batch, size), headers=JSON, timeout=600
        ).raise_for_status()
        return ready, peak_megabytes(child.pid)


def peak_megabytes(pid: int) -> float:
    """Return the largest resident memory that a process had, in MB (Linux)."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match, f"process {pid} is gone"
    return int(match[1]) * 1.024 / 1000


def main(arguments: list[str] | None = None) -> int:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="toybox-smoke", help="preset or YAML file")
    parser.add_argument("overrides", nargs="*", metavar="SECTION.KEY=VALUE", help="settings to replace")
    parser.add_argument("--batch", type=int, default=12, help="images of a request (default 12)")
    parser.add_argument("--size", type=int, default=512, help="side of its images in pixels (default 512)")
    options = parser.parse_args(arguments)
    trainer = trainer_megabytes(options.recipe, options.overrides)
    ready, busy = service_megabytes(options.batch, options.size)
    print("| process | peak, MB |\n|---|---|")
    print(f"| trainer, {' '.join([options.recipe, *options.overrides])} | {trainer:.0f} |")
    print(f"| reward service with `dino` of ToyBox, ready | {ready:.0f} |")
    print(f"| the same after a request of {options.batch} images of {options.size} px | {busy:.0f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
