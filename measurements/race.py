"""Race the training loops of other programs, in checkouts that you have, on the same work.

    python measurements/race.py --flow-factory PATH --flow-grpo PATH --released PATH --turns 5

Every contestant is a process of its own that runs its own loop on the same small FLUX.1-Kontext (ToyBox's
base, 5.3 M parameters): sampling, a reward that costs nothing, one optimizer step of a LoRA. They take turns,
one iteration each, so that what else the machine does hits all alike; the first turn of each warms up and is
not counted. Two races:

* `equal`: the same numbers of samples, steps, trained steps and samples in a batch, at every `--batch`;
* `released`: the released loop's own schedule (25 steps, 14 trained, one sample in a batch, and activations
  computed twice, as its recipe has it) against ours on the same samples and steps, in one batch.

Figures are medians of seconds of the processor (`cpu`) and of the clock. How many samples went through the
model is counted in each: `sampled` without a graph, `trained` with one. Fewer are an achievement only where
the result is the same: ours keeps the graph of a rollout's trained steps. What is replaced in a contestant's
process, so that it runs without CUDA, is said in its module in `racing/`. They need, beside our own packages:
einops, ml_collections, datasets, imageio and what these import.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from customized_grpo.engine.device import has_bf16_instructions
from racing.work import Work, write_files

NAMES = {
    "ours": "Customized-GRPO",
    "flow_factory": "Flow-Factory",
    "flow_grpo": "flow_grpo",
    "released": "released loop",
}
SUBJECTS = 8  # two prompts each: as many rows as the largest race has prompts
LOG_END = 3000  # characters of a contestant's log that a message quotes

Turn = dict[str, Any]


class Contestant:
    """A process that takes turns.

    Args:
        name: Key of `NAMES`.
        work: One iteration.
        files: The folder of `write_files`.
        out: A new folder for what it writes.
        checkout: The user's checkout of its program; None: ours.
    """

    def __init__(self, name: str, work: Work, files: Path, out: Path, checkout: Path | None) -> None:
        self.name = name
        self.turns: list[Turn] = []
        out.mkdir()
        self.log = out / "log.txt"
        arguments = [name, work.to_json(), str(files), str(out), *([str(checkout)] if checkout else [])]
        paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "racing", *arguments],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=out,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
            )  # fmt: skip

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def read(self) -> Turn:
        """Return its next report.

        Raises:
            SystemExit: It has ended, with the end of what it printed.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{NAMES[self.name]} ended:\n{self.log.read_text()[-LOG_END:]}")
        return json.loads(line)

    def take_turn(self) -> Turn:
        """Let it do one iteration, and return what it cost."""
        assert self.process.stdin is not None
        print("go", file=self.process.stdin, flush=True)
        return self.read()


def race(works: Mapping[str, Work], checkouts: Mapping[str, Path], turns: int) -> dict[str, list[Turn]]:
    """Let contestants take turns; return the turns of each.

    Args:
        works: One iteration of each contestant, by name.
        checkouts: The user's checkouts, by name.
        turns: Iterations of each that are counted.
    """
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        files = Path(temporary) / "files"
        files.mkdir()
        write_files(files, SUBJECTS)
        contestants = []
        for name, work in works.items():  # one after the other: loading is not part of the race
            out = Path(temporary) / name
            contestant = stack.enter_context(Contestant(name, work, files, out, checkouts.get(name)))
            assert contestant.read() == {"ready": True}
            contestant.take_turn()  # warms up
            contestants.append(contestant)
        for _ in range(turns):
            for contestant in contestants:
                contestant.turns.append(contestant.take_turn())
        return {contestant.name: contestant.turns for contestant in contestants}


def table(title: str, turns: Mapping[str, Sequence[Turn]]) -> list[str]:
    """Return the rows of a race as Markdown; ratios are to ours."""
    rows = []
    seconds_of = {name: sorted(map(_cpu_seconds, taken)) for name, taken in turns.items()}
    medians = {name: statistics.median(seconds) for name, seconds in seconds_of.items()}
    for name, taken in turns.items():
        seconds = seconds_of[name]
        wall = statistics.median(turn["wall_s"] for turn in taken)
        last = taken[-1]
        cells = [
            title,
            NAMES[name],
            f"{medians[name]:.2f} ({seconds[0]:.2f} to {seconds[-1]:.2f})",
            f"{wall:.2f}",
            f"{medians[name] / medians['ours']:.2f}",
            f"{last['sampled']:,} + {last['trained']:,}",
            last["shape"],
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _cpu_seconds(turn: Turn) -> float:
    return turn["cpu_s"]


HEADER = [
    "| race | who | cpu s (range) | wall s | times ours | sampled + trained | a call |",
    "|---|---|---|---|---|---|---|",
]


def main() -> int:
    """Race what the command line names, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("flow_factory", "flow_grpo", "released"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, help=f"checkout of {NAMES[name]}")
    parser.add_argument("--batch", type=int, nargs="+", default=[96, 12], help="of the equal races")
    parser.add_argument("--samples", type=int, default=96, help="of an iteration of the equal races")
    precision = "fp32" if has_bf16_instructions() is False else "bf16"
    parser.add_argument(
        "--precision", choices=("bf16", "fp32"), default=precision, help="default: %(default)s"
    )
    parser.add_argument("--turns", type=int, default=5, help="of each contestant")
    parser.add_argument(
        "--ours", nargs="+", default=[], metavar="SECTION.KEY=VALUE", help="further settings of ours"
    )
    parser.add_argument("--json", type=Path, help="file for all numbers")
    options = parser.parse_args()
    checkouts = {name: getattr(options, name) for name in NAMES if getattr(options, name, None)}
    group = Work().group_size
    for batch in options.batch:
        if batch % group or options.samples % batch:
            parser.error(f"--batch {batch}: must be whole groups of {group}, and a part of --samples")

    races: dict[str, dict[str, Work]] = {}
    equal = ["ours", *(name for name in ("flow_factory", "flow_grpo") if name in checkouts)]
    if len(equal) > 1:
        for batch in options.batch:
            work = Work(samples=options.samples, batch_size=batch, precision=options.precision)
            work = dataclasses.replace(work, settings=options.ours)
            races[f"equal, batch {batch}"] = dict.fromkeys(equal, work)
    if "released" in checkouts:
        ours = Work(samples=12, batch_size=12, steps=25, trained=14, precision=options.precision)
        # the layers of `set_lora` of the released loop
        ours = dataclasses.replace(ours, lora_on_proj_out=True, settings=options.ours)
        theirs = dataclasses.replace(ours, batch_size=1, checkpointing=True)
        races["released's schedule"] = {"ours": ours, "released": theirs}
    if not races:
        parser.error("name at least one checkout")

    print(f"{datetime.date.today()}, {torch.get_num_threads()} threads, {options.precision}")
    print("\n".join(HEADER), flush=True)
    results = {}
    for title, works in races.items():
        results[title] = race(works, checkouts, options.turns)
        print("\n".join(table(title, results[title])), flush=True)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
