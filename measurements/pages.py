"""Seconds of the report of a long run, and of the page of a comparison of long runs.

    python measurements/pages.py                       # 10,000 iterations, an evaluation every 20
    python measurements/pages.py --every 1             # an evaluation after every iteration
    python measurements/pages.py --arms 11 --seeds 5 --profile

The runs are drawn, not trained: random walks under the names that a run of ToyBox writes. Seconds are of CPU.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from customized_grpo.comparison.results import EVAL_COLUMNS, TRAIN_COLUMNS
from customized_grpo.pages.comparison_page import write_comparison_page
from customized_grpo.pages.run_page import write_report

SAMPLES = 96
"""Samples of an iteration."""

TRAIN = (
    *TRAIN_COLUMNS[2:], "reward/prompt", "reward/identity", "score/clip_t", "score/clip_t/std",
    "score/clip_t/group_std", "score/clip_t/nan_share", "score/dino", "score/dino/std",
    "score/dino/group_std",
    "score/dino/nan_share", "policy/loss", "policy/ratio_mean", "policy/ratio_max_deviation",
    "policy/clip_fraction", "policy/grad_norm", "policy/kl", "policy/learning_rate", "health/zero_std_groups",
    "health/nan_samples", "health/skipped_updates", "diversity/in_group", "time/rollout_s", "time/reward_s",
    "time/update_s", "time/iteration_s",
)  # fmt: skip
JUDGED = (
    "judge/identity", "judge/prompt", "judge/hat", "judge/prop", "judge/floor", "judge/sky",
    "monitor/copy_score", "monitor/background_similarity", "monitor/diversity", "monitor/saturation",
    "monitor/dark_share", "monitor/bright_share", "monitor/edge_density", "monitor/colour_entropy",
    "monitor/high_frequency",
)  # fmt: skip
EVAL = (
    *EVAL_COLUMNS[2:], *JUDGED, *(f"{name}_low" for name in JUDGED), *(f"{name}_high" for name in JUDGED),
    "mode/good", "mode/copied", "mode/drift", "mode/other", "gap/prompt", "gap/identity",
)  # fmt: skip
CONFIG = (
    "train: {iterations: ITERATIONS, prompts_per_iteration: 8, group_size: 12}\nadvantage: {name: sars}\n"
)


def records(kind: str, names: tuple[str, ...], iterations: range, seed: int) -> list[dict[str, Any]]:
    """Return a record for each iteration, whose values walk at random."""
    chance = random.Random(seed)
    values = dict.fromkeys(names, 0.5)
    found = []
    for iteration in iterations:
        for name in values:
            values[name] = min(1.0, max(0.0, values[name] + chance.gauss(0, 0.01)))
        counts = {"iteration": iteration, "rollouts": iteration * SAMPLES, "wall_s": 2.6 * iteration}
        found.append({"kind": kind, **counts, **values})
    return found


def make_run(folder: Path, iterations: int, every: int) -> None:
    """Write the folder of a run."""
    (folder / "config.yaml").write_text(CONFIG.replace("ITERATIONS", str(iterations)))
    lines = records("eval", EVAL, range(0, iterations + 1, every), 0)
    lines += records("train", TRAIN, range(1, iterations + 1), 1)
    lines.sort(key=lambda record: record["iteration"])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def make_results(iterations: int, every: int, n_arms: int, n_seeds: int) -> dict[str, Any]:
    """Return the results of a comparison, without its analysis but for what the curves need."""
    final = {"mean": 0.6, "low": 0.5, "high": 0.7}
    metrics = {"judge/identity": final, "judge/prompt": final}
    arms = [
        {"name": f"arm-{k}", "label": f"arm {k}", "role": "rival", "control": None} for k in range(n_arms)
    ]
    runs = []
    for arm in arms:
        for seed in range(n_seeds):
            train = records("train", TRAIN_COLUMNS[2:], range(1, iterations + 1), seed)
            evals = records("eval", EVAL_COLUMNS[2:], range(0, iterations + 1, every), seed)
            run = {"arm": arm["name"], "seed": seed, "state": "finished", "rollouts": iterations * SAMPLES}
            runs.append(
                {**run, "wall_s": 1.0, "train": train, "evals": evals, "alarms": [], "degraded": None}
            )
    analysed = [{"name": arm["name"], "final": metrics, "change": metrics} for arm in arms]
    return {
        "format": 1,
        "name": "long",
        "recipe": "toybox",
        "config": {"train": {"iterations": iterations}},
        "seeds": list(range(n_seeds)),
        "arms": arms,
        "runs": runs,
        "analysis": {"arms": analysed, "base": metrics},
    }


def measure(write: Callable[[], Path], *, profile: bool) -> dict[str, float]:
    """Return CPU seconds and megabytes of a page that a function writes."""
    profiler = cProfile.Profile()
    if profile:
        profiler.enable()
    start = time.process_time()
    page = write()
    seconds = time.process_time() - start
    if profile:
        profiler.disable()
        pstats.Stats(profiler).sort_stats("cumulative").print_stats(35)
    return {"cpu_s": round(seconds, 2), "mb": round(page.stat().st_size / 1e6, 2)}


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--iterations", type=int, default=10_000, help="iterations of a run (default 10,000)")
    parser.add_argument("--every", type=int, default=20, help="iterations between evaluations (default 20)")
    parser.add_argument("--arms", type=int, default=4, help="arms of the comparison (default 4)")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of each arm (default 2)")
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    parser.add_argument("--limit", type=float, help="most CPU seconds of a page; exit status 1 above it")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_run(folder, options.iterations, options.every)
        results = make_results(options.iterations, options.every, options.arms, options.seeds)
        pages: dict[str, Callable[[], Path]] = {
            "report": lambda: write_report(folder),
            "comparison": lambda: write_comparison_page(results, folder / "comparison.html"),
        }
        figures = {page: measure(write, profile=options.profile) for page, write in pages.items()}
    for page, figure in figures.items():
        print(f"{page}: {figure['cpu_s']} s of CPU, {figure['mb']} MB")
    within = options.limit is None or all(figure["cpu_s"] <= options.limit for figure in figures.values())
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
