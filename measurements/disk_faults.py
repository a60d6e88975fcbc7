"""Measure what every verb does when the disk is full, fails or turns read-only at any call, and at SIGKILL.

usage: python measurements/disk_faults.py [--verb NAME ...] [--calls N] [--json FILE]

Each trial is one fault at one call of one verb, in this process, on a fresh copy of small inputs. Afterwards
the same verb is called on the sound disk. It must hold that

* the verb ends with one message (exit status 2), or with the right result (0); never with a traceback;
* no file that it left is half of one and taken as whole: the next call leaves the result of an
  undisturbed one, or refuses in one message to overwrite a result that is whole.

Prints per verb: calls to the disk, trials, and how they ended. Exit status 1 if something did not hold.
Models are loaded once and shared by all trials: it is the writing that is tried.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from PIL import Image

import customized_grpo.cli.main as cli
from faulty_disk import FAULTS, FaultyDisk, Killed, sample

TRAIN = [
    "train", "toybox-smoke", "train.iterations=1", "train.prompts_per_iteration=1", "train.group_size=2",
    "rollout.steps=3", "rollout.batch_size=2", "train.micro_batch_size=2", "evaluation.samples_per_prompt=1",
    "data.held_out_subjects=2", "data.held_out_prompts_per_subject=1",
]  # fmt: skip
COMPARE = [
    "compare", *TRAIN[1:], "--only", "naive-0.5", "--seeds", "1", "--no-doctor", "--jobs", "1",
    "--out", "compared",
]  # fmt: skip
PATIENCE_S = 300
"""Seconds after which a call hangs; a busy machine is ten times slower than a quiet one."""

VOLATILE = re.compile(
    rb'"(wall_s|seconds|started|created|time[^"]*)": [^,\n}]+|\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(\+00:00)?'
)
"""Times in files, which differ between two right results."""


@dataclass(frozen=True)
class Verb:
    """A command and what it leaves.

    Attributes:
        arguments: The command, run in the folder of the trial.
        leaves: Paths of files or folders that hold its result, relative to that folder.
        inputs: Names of the inputs that it needs, see `make_data` and `make_runs`.
        by_name: Whether the names of its files are part of the result; `generate` numbers them anew.
    """

    arguments: Sequence[str]
    leaves: Sequence[str]
    inputs: Sequence[str]
    by_name: bool = True


VERBS: dict[str, Verb] = {
    "toybox export": Verb(["toybox", "export", "world", "--subjects", "1"], ["world"], []),
    "data convert": Verb(
        ["data", "convert", "folder", "photos", "data", "--prompts", "prompts.txt", "--held-out", "2"],
        ["data"],
        ["photos", "prompts.txt"],
    ),
    "data masks": Verb(
        ["data", "masks", "rows/plain.jsonl", "--segmenter", "model.onnx"],
        ["rows/masks", "rows/plain.masked.jsonl"],
        ["rows", "model.onnx"],
    ),
    "report": Verb(["report", "run"], ["run/report.html"], ["run"]),
    "export": Verb(["export", "run"], ["run/export"], ["run"]),
    "generate": Verb(
        ["generate", "run", "--prompt", "a toy", "--reference", "reference.png", "--out", "out", "--grid"],
        ["out"],
        ["run", "reference.png"],
        by_name=False,
    ),
    "evaluate": Verb(["evaluate", "run"], ["run/evaluation.json"], ["run"]),
    "benchmark": Verb(
        [
            "benchmark",
            "run",
            "toybox",
            "manifest",
            "steps=2",
            "--data",
            "rows/manifest.jsonl",
            "--limit",
            "2",
            "--encoder",
            "dino=toybox",
            "--out",
            "scored",
        ],
        ["scored/images", "scored/results.json", "scored/report.html"],
        ["rows"],
    ),  # fmt: skip
    "compare": Verb(COMPARE, ["compared/results.json", "compared/comparison.html"], ["finished"]),
}


def make_data(folder: Path) -> None:
    """Make the inputs of verbs that need no run: rows, photos, prompts."""
    with contextlib.chdir(folder):
        _call(["toybox", "export", "rows", "--subjects", "1"])
        _plain_manifest(folder / "rows")
        shutil.copyfile(next((folder / "rows" / "images").glob("*-reference.png")), "reference.png")
        for number, subject in enumerate(("dog", "cat", "cup")):
            (folder / "photos" / subject).mkdir(parents=True)
            Image.new("RGB", (48, 40), (80 * number, 90, 200)).save(f"photos/{subject}/00.png")
        Path("prompts.txt").write_text("a {} at night\n")
        Path("model.onnx").touch()


def make_runs(folder: Path) -> None:
    """Make the inputs of the other verbs: a finished run, and the finished run of a comparison."""
    with contextlib.chdir(folder):
        _call([*TRAIN, "run.dir=run"])
        _call([*TRAIN, "run.dir=finished", "advantage.name=linear"])


def _plain_manifest(rows: Path) -> None:
    """Write a manifest without masks beside the one that has them."""
    lines = []
    for line in (rows / "manifest.jsonl").read_text().splitlines():
        row = json.loads(line)
        del row["masks"]
        lines.append(json.dumps(row))
    (rows / "plain.jsonl").write_text("\n".join(lines) + "\n")


def _call(arguments: Sequence[str]) -> tuple[int, str]:
    """Return the exit status of a command and what it printed on stderr."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors), _limit():
        try:
            status = cli.main(list(arguments))
        except SystemExit as leave:
            status = int(leave.code or 0)
    return status, errors.getvalue()


@contextlib.contextmanager
def _limit() -> Iterator[None]:
    """End a block that hangs."""

    def give_up(*_: object) -> None:
        raise AssertionError(f"it hangs: more than {PATIENCE_S} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


class _Segmenter:
    """Stands for an ONNX model: the left half of a photo is its subject."""

    def __init__(self, *_: object) -> None:
        self.model = None

    def __call__(self, photo: Image.Image) -> Image.Image:
        mask = Image.new("L", photo.size)
        mask.paste(255, (0, 0, photo.width // 2, photo.height))
        return mask

    def stamp(self) -> dict[str, str]:
        return {"sha256": "stands for a model"}


class _Training:
    """Stands for the process of a training that `compare` starts: another process, whose disk is sound."""

    def __init__(self, command: Sequence[str], **_: object) -> None:
        subprocess.run(["mkdir", "-p", "compared/runs/naive-0.5"], check=True)
        subprocess.run(["cp", "-r", "finished", "compared/runs/naive-0.5/seed_0"], check=True)

    def poll(self) -> int:
        return 0

    def terminate(self) -> None:
        """It has ended already."""

    def wait(self) -> int:
        return 0


@contextlib.contextmanager
def stand_ins() -> Iterator[None]:
    """Replace what takes long and is not tried here: loading models, a segmenter, trainings of `compare`."""
    import customized_grpo.benchmarks.run as benchmark
    import customized_grpo.comparison.runner as runner
    import customized_grpo.data.masks as masks
    import customized_grpo.generation.generate as drawing

    def once(load: Callable[..., Any]) -> Callable[..., Any]:
        loaded: list[Any] = []

        def load_once(*args: Any, **kwargs: Any) -> Any:
            if not loaded:
                loaded.append(load(*args, **kwargs))
            return loaded[0]

        return load_once

    with contextlib.ExitStack() as stack:
        for module, name in (
            (drawing, "open_generator"),
            (benchmark, "open_generator"),
            (benchmark, "build_metric_rewards"),
        ):
            stack.enter_context(mock.patch.object(module, name, once(getattr(module, name))))
        stack.enter_context(mock.patch.object(masks, "Segmenter", _Segmenter))
        process = SimpleNamespace(Popen=_Training, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
        stack.enter_context(mock.patch.object(runner, "subprocess", process))
        stack.enter_context(mock.patch.object(runner, "POLL_S", 0.0))
        yield


class Trials:
    """Trials of one verb.

    Args:
        verb: The verb.
        inputs: The folder of `make_data` and `make_runs`.
        work: A folder for the trials.
    """

    def __init__(self, verb: Verb, inputs: Path, work: Path) -> None:
        self.verb = verb
        self.inputs = inputs
        self.work = work
        for _ in range(2):  # the first call also reads the models, which the others share
            disk = FaultyDisk(self._fresh())
            with disk.installed():
                status, message = _call(verb.arguments)
            assert status == 0, message
        self.calls = disk.calls
        self.expected = self._result()

    def run(self, fault: str, at: int) -> str:
        """Let a call fail, call the verb again on the sound disk, and return how the first call ended.

        Raises:
            AssertionError: Something did not hold.
        """
        disk = FaultyDisk(self._fresh(), fault, at)
        try:
            with disk.installed():
                status, message = _call(self.verb.arguments)
        except Killed:
            ended = "killed"
        else:
            assert status in (0, 2), f"exit status {status}: {message}"
            ended = "went on" if status == 0 else "one message"
            if status == 0:
                assert self._result() == self.expected, "it ended well, and its result is wrong"
            else:
                _check_message(message)
        self._check_next_call()
        return ended

    def _check_next_call(self) -> None:
        status, message = _call(self.verb.arguments)
        if status:
            _check_message(message)  # it refuses to overwrite a result, which then is whole
        assert self._result() == self.expected, f"the next call leaves another result: {message}"

    def _fresh(self) -> Path:
        """Make the folder of a trial and go there."""
        os.chdir(self.work)
        folder = self.work / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in self.verb.inputs:
            source = self.inputs / name
            (shutil.copytree if source.is_dir() else shutil.copyfile)(source, folder / name)
        os.chdir(folder)
        return folder

    def _result(self) -> Any:
        """Return the digests of what the verb leaves; hidden files are drafts, which nobody reads."""
        digests = {}
        for leaf in self.verb.leaves:
            path = Path(leaf)
            files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
            for file in files:
                if not any(part.startswith(".") for part in file.parts):
                    digests[str(file)] = hashlib.sha256(_lasting(file)).hexdigest()
        return digests if self.verb.by_name else set(digests.values())


def _lasting(file: Path) -> bytes:
    """Return the content of a file that two right results have in common: without times and orders."""
    content = file.read_bytes()
    if file.suffix == ".safetensors":
        end = 8 + int.from_bytes(content[:8], "little")
        content = json.dumps(json.loads(content[8:end]), sort_keys=True).encode() + content[end:]
    return VOLATILE.sub(b"", content)


def _check_message(message: str) -> None:
    lines = [line for line in message.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in message, f"not one message: {message}"


@dataclass
class Finding:
    """What did not hold in a trial."""

    verb: str
    fault: str
    call: str
    problem: str


def measure(
    name: str, inputs: Path, work: Path, *, at_most: int | None, seed: int = 0
) -> tuple[dict[str, Any], list[Finding]]:
    """Try a verb and return its figures and what did not hold.

    Args:
        name: Key of `VERBS`.
        inputs: The folder of `make_data` and `make_runs`.
        work: A folder for the trials.
        at_most: Calls that are tried with each fault, drawn from the seed; None: all.
        seed: Of that choice.
    """
    trials = Trials(VERBS[name], inputs, work)
    ended: Counter[str] = Counter()
    findings = []
    draw = random.Random(f"{name} {seed}")
    for fault in FAULTS:
        for at in sample(len(trials.calls), at_most, draw):
            try:
                ended[trials.run(fault, at)] += 1
            except Exception as error:
                problem = "".join(traceback.format_exception(error)[-3:]) or repr(error)
                findings.append(Finding(name, fault, trials.calls[at], problem))
    figures = {
        "calls": len(trials.calls),
        "trials": ended.total() + len(findings),
        **ended,
        "failed": len(findings),
    }
    return figures, findings


def run() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--verb", action="append", choices=VERBS, help="only this verb; repeatable")
    parser.add_argument("--calls", type=int, help="calls tried with each fault, instead of all")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    results = {}
    failed = False
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder, stand_ins():
        inputs, work = Path(folder, "inputs"), Path(folder, "work")
        inputs.mkdir()
        work.mkdir()
        make_data(inputs)
        make_runs(inputs)
        for name in options.verb or VERBS:
            results[name], findings = measure(name, inputs, work, at_most=options.calls)
            print(
                f"{name}: {', '.join(f'{value} {key}' for key, value in results[name].items())}", flush=True
            )
            for finding in findings:
                failed = True
                print(f"  {finding.fault} at {finding.call}:\n    {finding.problem}", flush=True)
        os.chdir(here)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(run())
