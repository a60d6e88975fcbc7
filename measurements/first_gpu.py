"""Everything that only a GPU can tell, in one short session: one JSON and one Markdown page.

    python measurements/first_gpu.py --out RESULTS           # 9 minutes at most, on the first CUDA device
    python measurements/first_gpu.py --out RESULTS           # once more: goes on with what is missing
    python measurements/first_gpu.py --out RESULTS --tiny    # the same code on small models, on the CPU
    python measurements/first_gpu.py --out RESULTS --only exact memory
    python measurements/first_gpu.py --out RESULTS --wheels DIR

Steps (first_gpu_steps.py) run in the order of what they are worth, each in a process of its own and with a
limit: one that fails or hangs leaves the others alone. Both files are written anew after each. A step that
has a result is not run again; those that failed or were not reached are.

A machine that is lent for some minutes often has torch and transformers, but no network and not all that
this package needs. Fetch the missing wheels elsewhere, for the same Python and platform, with
`pip download --no-deps -d DIR NAME ...`, bring DIR along, and name it with --wheels: they are unpacked into
RESULTS/packages, offline, and only this script's processes see them. This file needs Python alone.

Exit status 1 if a step has no result.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
STEPS_SCRIPT = HERE / "first_gpu_steps.py"
BUDGET_S = 540
PATIENCE = 1.5
"""A step is stopped after this many times its expected seconds."""
LEAST_S = 15
"""With fewer seconds left no step is started: Python and torch alone take as long."""

Result = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One process.

    Attributes:
        question: What it answers, for the page.
        expected_s: Seconds that it should take on an H100; an estimate.
        arguments: Command after the interpreter; empty: the function of this name in first_gpu_steps.py.
        environment: Variables that it gets.
    """

    question: str
    expected_s: int
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def case(question: str, name: str, expected_s: int) -> Step:
    """Return a case of gpu_case.py as a step."""
    return Step(question, expected_s, (str(HERE / "gpu_case.py"), name))


STEPS = {
    "machine": Step("Which card, versions, rates of products and copies, attention kernels?", 20),
    "exact": Step("Is the first ratio 1 in other batches? Do gradients repeat, and at what price?", 60),
    "memory": Step("Do the peaks of rollout, update and decoding agree with the plan?", 50),
    "flux1-24gb": case("Does the preset fit a 24 GB card, rewards and swaps included?", "flux1-24gb", 85),
    "swap": Step("How long do text encoders and transformer take to swap?", 45),
    "swap, fixed segments": Step(
        "The same without segments that grow.", 45, ("swap",), {"PYTORCH_ALLOC_CONF": ""}
    ),
    "speed": Step("Which kernels take the time of an update?", 45),
    "klein": case("How fast is FLUX.2-klein?", "klein", 60),
    "tests": Step(
        "Do the tests of CUDA pass?",
        110,
        ("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu", "-k", "not compiled"),
    ),
    "quantised": Step("How much slower, smaller and less exact are quantised layers?", 25),
    "rewards": Step("How long do full-size reward models take for 96 images?", 60),
    "flux1": case("How fast is FLUX.1-Kontext?", "flux1", 75),
    "klein-compiled": case("And compiled?", "klein-compiled", 100),
}
"""In the order of what they are worth."""


def install(wheels: Path, target: Path) -> None:
    """Unpack all wheels of a folder, offline and without what they depend on.

    Raises:
        SystemExit: There are none, or pip cannot install them.
    """
    files = sorted(str(file) for file in wheels.glob("*.whl"))
    if not files:
        raise SystemExit(f"{wheels}: no wheels there")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
    done = subprocess.run([*command, "--target", str(target), *files], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the wheels of {wheels} cannot be installed: {done.stderr.strip()}")


def environment(packages: Path, more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a step: wheels first, then this package, then what was there."""
    folders = [str(packages), str(ROOT / "src"), str(HERE), str(ROOT / "tests" / "helpers")]
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([*folders, *([inherited] if inherited else [])])
    return {**os.environ, "PYTHONPATH": path, **more}


def run_step(name: str, *, is_tiny: bool, limit_s: float, packages: Path) -> Result:
    """Run a step in a process of its own; return {"result": ...} or {"error": ...}, with its seconds."""
    step = STEPS[name]
    arguments = step.arguments or (name,)
    if not arguments[0].endswith(".py") and arguments[0] != "-m":
        arguments = (str(STEPS_SCRIPT), *arguments)
    if is_tiny and arguments[0] != "-m":
        arguments = (*arguments, "--tiny", "--device=cpu")
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(packages, step.environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that its own children end with it
    )
    try:
        out, err = process.communicate(timeout=limit_s)
        outcome = _outcome(arguments, process.returncode, out, err)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        outcome = {"error": f"took longer than {limit_s:.0f} s"}
    return {**outcome, "seconds": round(time.monotonic() - start, 1)}


def _outcome(arguments: Sequence[str], status: int, out: str, err: str) -> Result:
    lines = out.strip().splitlines()
    if arguments[0] == "-m":  # pytest: failures are results too
        return {"result": {"status": status, "end": lines[-15:]}} if lines else {"error": err[-500:]}
    if status:
        return {"error": " ".join(err.strip().splitlines()[-3:]) or f"exit status {status}"}
    return {"result": json.loads(lines[-1])}


def page(results: Mapping[str, Result]) -> str:
    """Return the results as Markdown, steps in their order."""
    sections = ["# First session on a GPU"]
    for name, step in STEPS.items():
        if name not in results:
            continue
        one = results[name]
        sections.append(f"## {name} ({one['seconds']:g} s)\n\n{step.question}")
        if "error" in one:
            sections.append(f"No result: {one['error']}")
        else:
            sections.append(f"```json\n{json.dumps(one['result'], indent=1)}\n```")
    return "\n\n".join(sections) + "\n"


def write(folder: Path, results: Mapping[str, Result]) -> None:
    """Write both files; a kill leaves the old ones or the new ones."""
    for name, text in (("first_gpu.json", json.dumps(results, indent=1)), ("first_gpu.md", page(results))):
        draft = folder / f".{name}"
        draft.write_text(text, encoding="utf-8")
        draft.replace(folder / name)


def read(folder: Path) -> dict[str, Result]:
    """Return the results of an earlier call; none if there was none."""
    file = folder / "first_gpu.json"
    results: dict[str, Result] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return results


def main(arguments: list[str] | None = None) -> int:
    """Run the steps that have no result yet, as long as there is time."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--tiny", action="store_true", help="small models on the CPU, to try the script itself"
    )
    parser.add_argument("--only", nargs="+", choices=STEPS, default=list(STEPS), help="default: all")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help=f"seconds (default {BUDGET_S})")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install from, offline")
    options = parser.parse_args(arguments)
    start = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    packages = options.out.resolve() / "packages"
    if options.wheels is not None:
        install(options.wheels, packages)
    results = read(options.out)
    missing = [name for name in STEPS if name in options.only and "result" not in results.get(name, {})]
    for name in missing:
        left = options.budget - (time.monotonic() - start)
        # what is expected of a card says nothing about a CPU
        limit_s = left if options.tiny else min(left, PATIENCE * STEPS[name].expected_s)
        if left < LEAST_S:
            results[name] = {"error": "not run: no time was left", "seconds": 0}
        else:
            results[name] = run_step(name, is_tiny=options.tiny, limit_s=limit_s, packages=packages)
        print(f"{name}: {results[name].get('error', 'done')}, {results[name]['seconds']:g} s", flush=True)
        write(options.out, results)
    print(f"results: {options.out / 'first_gpu.md'}")
    return int(any("result" not in results.get(name, {}) for name in options.only))


if __name__ == "__main__":
    sys.exit(main())
