"""A synthetic run folder with everything a real one holds, shaped like one that learns and hacks a little."""

from __future__ import annotations

import copy
import json
import math
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from customized_grpo.reporting.images import SampleRow, save_samples, start_samples
from customized_grpo.reporting.metrics import MetricsWriter

CONFIG = """\
run:
  dir: runs/toybox-demo
  seed: 0
model:
  family: flux1
  path: toybox
  device: cpu
rollout:
  steps: 8
  sampler: dance
  eta: 0.8
  sde_window:
advantage:
  name: sars
  options:
    gamma: 0.4
  clip: 5.0
schedule:
  name: tdw
  options: {}
train:
  iterations: 200
  prompts_per_iteration: 24
  group_size: 12
  learning_rate: 1.5e-4
"""

WEIGHTS = [0.7, 0.7, 0.68, 0.55, 0.37, 0.31, 0.3, 0.5]

PROMPTS = [
    "a toy with a blue ball on the left on a green floor at night",
    "a toy with a yellow cone on the right on an orange floor in the morning",
    "a toy with a red box on the right on a purple floor at sunset",
    "a toy with a white box on the left on a brown floor in a studio",
]


class RunFolder:
    """Writes a run folder piece by piece, so that tests can leave pieces out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.random = random.Random(7)
        path.mkdir(parents=True)
        (path / "config.yaml").write_text(CONFIG)
        (path / "schedule.json").write_text(json.dumps({"prompt_weights": WEIGHTS}))
        (path / "versions.json").write_text(
            json.dumps({"customized_grpo": "0.1.0", "python": "3.12.4", "torch": "2.13.0", "git": None})
        )

    def noise(self, scale: float) -> float:
        return self.random.gauss(0, scale)

    def train_record(self, iteration: int) -> dict[str, Any]:
        u = iteration / 200
        learned = 1 - math.exp(-3 * u)
        rho = 0.25 - 0.3 * u
        null = math.acos(rho) / math.pi
        conflict = null + self.noise(0.02) - 0.03 * u
        good = (1 - conflict) * 0.54
        return {
            "kind": "train",
            "iteration": iteration,
            "rollouts": iteration * 288,
            "wall_s": 2.6 * iteration,
            "reward/prompt": 0.58 + 0.16 * learned + self.noise(0.025),
            "reward/identity": 0.41 + 0.12 * learned + self.noise(0.018),
            "score/clip_t": 0.58 + 0.16 * learned,
            "score/clip_t/std": 0.2,
            "score/clip_t/group_std": 0.16,
            "score/clip_t/nan_share": 0.0,
            "score/dino": 0.41 + 0.12 * learned,
            "score/dino/std": 0.25,
            "score/dino/group_std": 0.12,
            "score/dino/nan_share": 0.125,
            "reward/prompt_group_std": 0.16 - 0.03 * u + self.noise(0.006),
            "reward/identity_group_std": 0.12 - 0.05 * u + self.noise(0.005),
            "advantage/conflict": conflict,
            "advantage/conflict_null": null,
            "advantage/both_positive": good,
            "advantage/both_negative": 1 - conflict - good,
            "advantage/rho": rho,
            "policy/loss": self.noise(1e-5),
            "policy/ratio_mean": 1.0,
            "policy/ratio_max_deviation": abs(self.noise(2e-5)),
            "policy/clip_fraction": 0.02 + abs(self.noise(0.01)),
            "policy/grad_norm": 0.4 + 0.2 * u + abs(self.noise(0.08)),
            "policy/kl": 2e-5 * u + abs(self.noise(5e-7)),
            "policy/learning_rate": 1.5e-4,
            "health/zero_std_groups": 0,
            "health/nan_samples": 0,
            "health/skipped_updates": 0,
            "diversity/in_group": 0.35 - 0.08 * u + self.noise(0.01),
            "time/rollout_s": 1.45,
            "time/reward_s": 0.22,
            "time/update_s": 0.83,
            "time/iteration_s": 2.6,
        }

    def eval_record(self, iteration: int, *, modes: bool = True) -> dict[str, Any]:
        u = iteration / 200
        learned = 1 - math.exp(-3 * u)
        identity = 0.462 + 0.055 * learned + self.noise(0.003)
        prompt = 0.604 + 0.11 * learned + self.noise(0.004)
        record = {
            "kind": "eval",
            "iteration": iteration,
            "rollouts": iteration * 288,
            "wall_s": 2.6 * iteration,
            "judge/identity": identity,
            "judge/identity_low": identity - 0.03,
            "judge/identity_high": identity + 0.03,
            "judge/prompt": prompt,
            "judge/prompt_low": prompt - 0.028,
            "judge/prompt_high": prompt + 0.028,
            "judge/emblem": 0.52 + 0.14 * learned,
            "judge/prop": 0.47 + 0.1 * learned,
            "judge/floor": 0.69 + 0.13 * learned,
            "judge/sky": 0.83 + 0.06 * learned,
            "reward/prompt": 0.58 + 0.16 * learned,
            "reward/identity": 0.41 + 0.12 * learned,
            "score/clip_t": 0.58 + 0.16 * learned,
            "score/dino": 0.41 + 0.12 * learned,
            "monitor/copy_score": 0.19 + 0.03 * u + self.noise(0.006),
            "monitor/background_similarity": 0.44 + self.noise(0.008),
            "monitor/diversity": 0.31 - 0.06 * u,
            "monitor/saturation": 0.52 + 0.02 * u,
        }
        if modes:
            shares = {
                "good": 0.5 + 0.2 * learned,
                "copied": 0.16 - 0.04 * learned,
                "drift": 0.19 - 0.1 * learned,
            }
            record |= {f"mode/{name}": share for name, share in shares.items()}
            record["mode/other"] = 1 - sum(shares.values())
        return record

    def metrics(self, iterations: int = 200, *, evals: bool = True, modes: bool = True) -> None:
        with MetricsWriter(self.path / "metrics.jsonl") as writer:
            for iteration in range(iterations + 1):
                if iteration > 0:
                    writer.write(self.train_record(iteration))
                if evals and iteration % 20 == 0:
                    writer.write(self.eval_record(iteration, modes=modes))
                if iteration == 140:
                    message = "identity reward rose by 0.02 while held-out identity fell by 0.01"
                    writer.write(
                        {"kind": "event", "iteration": 140, "rollouts": 140 * 288, "wall_s": 364.0,
                         "event": "alarm", "message": message}
                    )  # fmt: skip

    def samples(self, iterations: tuple[int, ...] = (0, 20, 60, 120, 200), side: int = 64) -> None:
        folder = self.path / "samples"
        rows = [
            SampleRow(prompt, [_scene(side, i)], f"subject {i:02d}", _scene(side, i + 40))
            for i, prompt in enumerate(PROMPTS)
        ]
        start_samples(folder, rows)
        for iteration in iterations:
            drawn = [_scene(side, i + 40, blur=0.5 - iteration / 500) for i in range(len(rows))]
            save_samples(folder, iteration, torch.stack(drawn))

    def summary(self, **difference: tuple[float, float, float]) -> None:
        base = {
            "judge/identity": (0.462, 0.432, 0.492),
            "judge/prompt": (0.604, 0.576, 0.632),
            "monitor/copy_score": (0.19, 0.15, 0.23),
            "monitor/background_similarity": (0.44, 0.41, 0.47),
            "reward/identity": (0.41, 0.39, 0.43),
            "judge/emblem": (0.52, 0.47, 0.57),
        }
        change = {
            "judge/identity": (0.052, 0.031, 0.073),
            "judge/prompt": (0.105, 0.082, 0.128),
            "monitor/copy_score": (0.028, 0.004, 0.052),
            "monitor/background_similarity": (-0.003, -0.021, 0.015),
            "reward/identity": (0.114, 0.1, 0.128),
            "judge/emblem": (0.133, 0.09, 0.176),
        }
        change |= {key.replace("__", "/"): value for key, value in difference.items()}
        tuned = {key: tuple(b + change[key][0] for b in values) for key, values in base.items()}
        parts = {"base": base, "tuned": tuned, "difference": change}
        document: dict[str, Any] = {
            part: {metric: dict(zip(("mean", "low", "high"), v, strict=True)) for metric, v in values.items()}
            for part, values in parts.items()
        }
        document |= {
            "iterations": 200, "rollouts": 57600, "wall_s": 541.0, "seed": 0, "device": "cpu (2 cores)",
            "finished": True,
        }  # fmt: skip
        (self.path / "summary.json").write_text(json.dumps(document))


def _scene(side: int, seed: int, blur: float = 0.0) -> torch.Tensor:
    """A ball on a floor under a sky, coloured by the seed; enough to see that the right image is shown."""
    palette = torch.rand(4, 3, generator=torch.Generator().manual_seed(seed))
    y, x = torch.meshgrid(torch.linspace(0, 1, side), torch.linspace(0, 1, side), indexing="ij")
    image = torch.where((y > 0.62)[None], palette[0][:, None, None], 0.5 + 0.5 * palette[1][:, None, None])
    ball = ((x - 0.5) ** 2 + (y - 0.6) ** 2 < 0.06)[None]
    image = torch.where(ball, palette[2][:, None, None] * (1.2 - y), image)
    grain = torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed + 1))
    return (image + blur * (grain - 0.5)).clamp(0, 1)


@pytest.fixture
def run_folder(tmp_path: Path) -> Callable[[str], RunFolder]:
    """Makes empty run folders by name."""
    return lambda name="toybox-demo": RunFolder(tmp_path / "runs" / name)


@pytest.fixture(scope="session")
def written_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run with everything in it, to be copied and not changed."""
    run = RunFolder(tmp_path_factory.mktemp("written") / "toybox-demo")
    run.metrics()
    run.samples()
    run.summary()
    return run


@pytest.fixture
def full_run(written_run: RunFolder, tmp_path: Path) -> RunFolder:
    """A finished run with everything in it, of the test's own."""
    run = copy.deepcopy(written_run)
    run.path = tmp_path / "runs" / "toybox-demo"
    shutil.copytree(written_run.path, run.path)
    return run
