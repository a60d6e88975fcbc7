"""examples/photos as its README says, on the real photos: everything real but the generator's weights."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

import forked
from processes import CGRPO, child_environment

PHOTOS = os.environ.get("CGRPO_DREAMBENCH")
EXAMPLE = Path(__file__).parents[2] / "examples" / "photos"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PHOTOS is None or not Path(PHOTOS).is_dir(),
        reason="CGRPO_DREAMBENCH does not name the folder of DreamBooth's photos",
    ),
]


def run(folder: Path, *command: str) -> str:
    done = forked.run([sys.executable, *command], cwd=folder, env=child_environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_recipe_trains_and_its_run_is_evaluated_on_dreambench(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="the extra lite is not installed")
    run(tmp_path, *CGRPO, "data", "convert", "dreambench", str(PHOTOS), "photos/data", "--held-out", "8")
    held_out = tmp_path / "photos/data/held_out.jsonl"
    rows = held_out.read_text().splitlines()
    held_out.write_text("\n".join(rows[::50]) + "\n")  # four subjects, for time
    run(tmp_path, str(EXAMPLE / "random_generator.py"), "photos/generator")
    shorter = ("train.iterations=1", "train.prompts_per_iteration=2", "rollout.steps=3")
    printed = run(tmp_path, *CGRPO, "train", str(EXAMPLE / "recipe.yaml"), *shorter)
    assert printed == "report: photos/run/report.html\n"
    lines = [json.loads(line) for line in (tmp_path / "photos/run/metrics.jsonl").read_text().splitlines()]
    (line,) = [line for line in lines if line["kind"] == "train"]
    assert line["policy/ratio_max_deviation"] < 1e-5 and line["policy/grad_norm"] > 0
    assert line["reward/identity_group_std"] > 0 and line["reward/prompt_group_std"] > 0
    options = ("--data", str(PHOTOS), "--encoder", "lite", "--limit", "4")
    run(tmp_path, *CGRPO, "benchmark", "run", "photos/run", "dreambench", *options, "--out", "result")
    assert json.loads((tmp_path / "result/results.json").read_text())["protocol"]
    shutil.rmtree(tmp_path / "photos")
