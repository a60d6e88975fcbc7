"""The mechanism in minutes: what constant weights cannot do, and what time and shaping change.

    python examples/two_scale.py [--seeds 2] [--only ARM ...] [--calibration FILE] [--out runs/two-scale]

Trains the preset `two-scale` with the arms named below, one run after the other in this process (some seconds
of a core each), prints the judged shares of right scenes and subjects, and draws them into OUT/two_scale.svg.
OUT is a folder of `cgrpo compare two-scale --arms full`: call this or that again to go on or to add seeds.

In this world the scene is decided early and the subject late, and each reward is paid for the other quality's
failure (src/customized_grpo/two_scale/README.md). So no constant weight is right for both decisions.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch

from customized_grpo.comparison.arms import calibrated, load_arms
from customized_grpo.comparison.definitions import IDENTITY, PROMPT
from customized_grpo.comparison.plan import adopt, make_plan
from customized_grpo.comparison.run import write
from customized_grpo.pages.plots.numbers import Measurement
from customized_grpo.pages.plots.scatter import Point, scatter
from customized_grpo.pages.standalone import standalone
from customized_grpo.training.trainer import train

FRONT = [f"naive-0.{tenth}" for tenth in range(2, 9)]
METHODS = ["tdw", "customized-grpo", "tdw-sharp", "tdw-sharp-sars", "sars"]
CONTROLS = ["both-matched", "tdw-inverse", "tdw-shuffled"]
RIVALS = ["min", "gd2po-hard", "gd2po-snr", "cme"]
ARMS = [*FRONT, *METHODS, *CONTROLS, *RIVALS]
CALIBRATED = ["tdw-calibrated", "tdw-calibrated-sars"]

COLOURS = {"front": "plain", "method": "arm1", "control": "arm2", "rival": "arm4"}
"""Colours of the figure by the role of an arm."""


def compare(
    folder: Path,
    arms: Sequence[str],
    seeds: int,
    overrides: Sequence[str] = (),
    calibration: Path | None = None,
) -> dict[str, Any]:
    """Train what is not there yet, and return the comparison's results as `cgrpo compare` writes them."""
    torch.set_num_threads(1)  # the tensors are too small to share
    chosen, _ = calibrated(load_arms("full", arms), calibration)
    plan = make_plan("two-scale", overrides, chosen, range(seeds), folder=folder, threads=1)
    whole = adopt(plan)
    for run in plan.runs():
        if run.summary() is None:
            print(run.name, flush=True)
            again = run.config.run.model_copy(update={"overwrite": True})
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                train(run.config.model_copy(update={"run": again}))
    return write(whole)


def table(results: dict[str, Any]) -> str:
    """Return a line for the base and for every arm: shares of right scenes and right subjects, and margin."""
    analysis = results["analysis"]
    header = f"{'arm':<24}{'prompt':>8}{'identity':>10}{'margin to the front':>28}"
    lines = [header, _line("base", analysis["base"])]
    labels = {arm["name"]: arm["label"] for arm in results["arms"]}
    for arm in analysis["arms"]:
        if arm["final"] is not None:
            lines.append(_line(labels[arm["name"]], arm["final"], arm["outside_front"]))
    return "\n".join(lines)


def _line(label: str, scores: dict[str, Any], outside: dict[str, Any] | None = None) -> str:
    line = f"{label:<24}{scores[PROMPT]['mean']:>8.2f}{scores[IDENTITY]['mean']:>10.2f}"
    if outside is None:
        return line
    margin = outside["margin"]
    return f"{line}{margin['mean']:>+12.2f} [{margin['low']:+.2f}, {margin['high']:+.2f}]"


def draw(results: dict[str, Any]) -> str:
    """Return the plane of both qualities as SVG: means over seeds; the front dominates what is shaded."""
    plans = {arm["name"]: arm for arm in results["arms"]}
    front = []
    others = []
    for arm in results["analysis"]["arms"]:
        plan = plans[arm["name"]]
        if arm["final"] is not None:
            is_front = plan["role"] == "front"
            label = f"w={plan['overrides']['schedule.prompt_weight']:g}" if is_front else plan["label"]
            point = _point(label, arm["final"], COLOURS[plan["role"]], "ring" if is_front else "disc")
            (front if is_front else others).append(point)
    return scatter(
        others,
        front=sorted(front, key=lambda point: point.name),
        beside=[_point("base", results["analysis"]["base"], "base", "cross")],
        title="Right scenes against right subjects, by arm",
        x_label="subjects that are right (identity)",
        y_label="scenes that are right (prompt)",
        size=(720, 480),
    )


def _point(label: str, scores: dict[str, Any], colour: str, shape: str) -> Point:
    x = Measurement(scores[IDENTITY]["mean"], None, None)
    y = Measurement(scores[PROMPT]["mean"], None, None)
    return Point(label, x, y, colour, label, shape)


def main() -> None:
    """Train, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="+", metavar="ARM")
    parser.add_argument(
        "--calibration", type=Path, help="weights by `cgrpo doctor two-scale --calibrate FILE`"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/two-scale"))
    arguments = parser.parse_args()
    arms = arguments.only or [*ARMS, *(CALIBRATED if arguments.calibration else [])]
    results = compare(arguments.out, arms, arguments.seeds, calibration=arguments.calibration)
    print(table(results))
    figure = arguments.out / "two_scale.svg"
    figure.write_text(standalone(draw(results)), encoding="utf-8")
    print(f"figure: {figure}\npage: {arguments.out / 'comparison.html'}")


if __name__ == "__main__":
    main()
