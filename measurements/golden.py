"""The golden trajectories: short trainings whose every number must survive a refactor, bit for bit.

    python measurements/golden.py before.json          # on the commit to start from
    python measurements/golden.py after.json --against before.json

Each case is a run of the preset toybox-smoke that takes another path through the method: rules, schedules,
samplers, precision, moving average, KL, windows. Digests of its metrics (without times), its held-out
evaluations and its adapter are compared. Numbers are comparable on one machine only: other processors
round differently.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CASES: dict[str, list[str]] = {
    "sars + tdw": [],
    "linear, constant": ["advantage.name=linear", "schedule.name=constant"],
    "sars_matched, inverse_tdw": [
        "advantage.name=sars_matched",
        "schedule.name=inverse_tdw",
        "train.group_size=4",
    ],
    "sars_recentred, shuffled_tdw": ["advantage.name=sars_recentred", "schedule.name=shuffled_tdw"],
    "sars_no_flip, linear schedule": ["advantage.name=sars_no_flip", "schedule.name=linear"],
    "gdpo, tdw_mean, flow": ["advantage.name=gdpo", "schedule.name=tdw_mean", "rollout.sampler=flow"],
    "gd2po_snr, cps": ["advantage.name=gd2po_snr", "rollout.sampler=cps"],
    "gd2po_hard, ddim": ["advantage.name=gd2po_hard", "rollout.sampler=ddim"],
    "identity_gate, dance_exact": ["advantage.name=identity_gate", "rollout.sampler=dance_exact"],
    "sum_then_normalise, flow_exact": ["advantage.name=sum_then_normalise", "rollout.sampler=flow_exact"],
    "min, bf16, average": [
        "advantage.name=min",
        "model.precision=bf16",
        "train.ema_decay=0.9",
        "evaluation.use_ema=true",
    ],
    "max, kl": ["advantage.name=max", "train.kl_weight=0.1"],
    "harmonic, ratio normalisation": ["advantage.name=harmonic", "train.ratio_normalisation=true"],
    "softplus_product, window": ["advantage.name=softplus_product", "rollout.sde_window.size=2"],
    "two updates, two epochs, own noise": [
        "train.updates_per_iteration=2",
        "train.inner_epochs=2",
        "rollout.shared_noise=false",
        "train.micro_batch_size=6",
        "train.clip_range=0.01",
    ],
    "three rewards, evaluation": [
        "rewards=[{name: dino, path: toybox}, {name: clip_i, path: toybox, weight: 2.0}, "
        "{name: clip_t, segment: none, path: toybox, noise: 0.1}]",
        "evaluation.every=1",
        "evaluation.samples_per_prompt=2",
    ],
}


def main() -> int:
    """Run every case; return 1 if a digest differs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--against", type=Path, help="an earlier file; differences are listed")
    arguments = parser.parse_args()
    digests = {}
    for name, overrides in CASES.items():
        digests[name] = trajectory(overrides)
        print(f"{name}: {digests[name]['metrics'][:12]}", flush=True)
    arguments.out.write_text(json.dumps(digests, indent=1) + "\n")
    if arguments.against is None:
        return 0
    return compare(json.loads(arguments.against.read_text()), digests)


def compare(before: dict[str, Any], after: dict[str, Any]) -> int:
    """Print every difference; return 1 if there is one."""
    different = 0
    for name, digests in before.items():
        for part, digest in digests.items():
            if after[name][part] != digest:
                print(f"DIFFERENT: {name}: {part}")
                different += 1
    print(f"{len(before)} trajectories, {different} differences")
    return int(different > 0)


def trajectory(overrides: list[str]) -> dict[str, str]:
    """Train one case and return the digests of its files."""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        cgrpo = [sys.executable, "-m", "customized_grpo"]
        command = [*cgrpo, "train", "toybox-smoke", f"run.dir={run}", *overrides]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, capture_output=True, env=environment)
        evaluations = sorted((run / "evaluations").iterdir())
        adapter = run / "lora" / "pytorch_lora_weights.safetensors"
        return {
            "metrics": _digest(_metrics(run / "metrics.jsonl")),
            "evaluations": _digest([json.loads(file.read_text()) for file in evaluations]),
            "adapter": hashlib.sha256(adapter.read_bytes()).hexdigest(),
        }


def _metrics(file: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return [_without_times(line) for line in lines]


def _without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in line.items() if not _is_time(key)}


def _is_time(key: str) -> bool:
    return key == "wall_s" or key.startswith("time/")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
