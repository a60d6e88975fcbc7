"""Synthetic results of a comparison, shaped like those of an identity reward that copying pays."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from typing import Any

BASE = {
    "judge/identity": 0.602,
    "judge/prompt": 0.710,
    "reward/identity": 0.440,
    "reward/prompt": 0.280,
    "monitor/copy_score": 0.077,
    "monitor/background_similarity": 0.312,
}
JUDGES = ("judge/identity", "judge/prompt")
ITERATIONS, PER_ITERATION = 60, 96

ARMS: list[dict[str, Any]] = [
    {"name": f"naive-{weight}", "label": f"naive {label}", "role": "front", "control": None,
     "overrides": {"advantage.name": "linear", "schedule.name": "constant", "schedule.prompt_weight": weight},
     "note": f"{weight:g} for the prompt, {1 - weight:g} for identity."}
    for weight, label in ((0.3, "3:7"), (0.5, "1:1"), (0.6, "3:2"), (0.75, "3:1"))
] + [
    {"name": "customized-grpo", "label": "Customized-GRPO", "role": "method", "control": "matched",
     "overrides": {}, "note": "SARS and TDW, as in the paper."},
    {"name": "sars", "label": "SARS only", "role": "method", "control": "matched",
     "overrides": {"schedule.name": "constant"}, "note": "Shaping with constant weights."},
    {"name": "tdw", "label": "TDW only", "role": "method", "control": "tdw-mean",
     "overrides": {"advantage.name": "linear"}, "note": "Moving weights without shaping."},
    {"name": "matched", "label": "SARS as plain weights", "role": "control", "control": None,
     "overrides": {"advantage.name": "sars_matched"},
     "note": "Constant weights and step size with the same mean gradient as SARS."},
    {"name": "tdw-mean", "label": "mean of TDW", "role": "control", "control": None,
     "overrides": {"advantage.name": "linear", "schedule.name": "tdw_mean"}, "note": "Its mean throughout."},
    {"name": "inverse", "label": "TDW reversed in time", "role": "control", "control": None,
     "overrides": {"advantage.name": "linear", "schedule.name": "inverse_tdw"}, "note": "Identity first."},
    {"name": "gdpo", "label": "GDPO", "role": "rival", "control": None,
     "overrides": {"advantage.name": "gdpo"}, "note": "Each reward normalised on its own."},
]  # fmt: skip

GAINS = {  # change of identity and of prompt at the end of training
    "naive-0.3": (0.105, -0.075), "naive-0.5": (0.098, -0.012), "naive-0.6": (0.081, 0.052),
    "naive-0.75": (0.034, 0.106), "customized-grpo": (0.092, 0.061), "sars": (0.096, 0.018),
    "tdw": (0.086, 0.044), "matched": (0.095, 0.012), "tdw-mean": (0.089, 0.036),
    "inverse": (0.094, 0.002), "gdpo": (0.088, 0.024),
}  # fmt: skip


def many_arms(count: int) -> list[dict[str, Any]]:
    """As many arms, the first eleven as in ARMS, the others rivals with long names."""
    extra = [
        {**ARMS[-1], "name": f"rival-{index}", "label": f"Rival number {index} with a rather long name"}
        for index in range(count - len(ARMS))
    ]
    return [*ARMS, *extra][:count]


def comparison(
    arms: list[dict[str, Any]] = ARMS,
    seeds: int = 5,
    *,
    finished: dict[str, int] | None = None,
    judges: bool = True,
    decisions: bool = True,
) -> dict[str, Any]:
    """Results as `cgrpo compare` writes them.

    Args:
        arms: The arms.
        seeds: Planned runs per arm.
        finished: Finished runs per arm where not all; the next one is then unfinished, the others missing.
        judges: Whether there are held-out judges.
        decisions: Whether it was measured when each quality is decided.
    """
    chance = random.Random(7)
    runs = []
    for arm in arms:
        done = (finished or {}).get(arm["name"], seeds)
        runs += [_run(arm, seed, done, judges, chance) for seed in range(seeds)]
    analysed = [_analysed(arm, [run for run in runs if run["arm"] == arm["name"]]) for arm in arms]
    metrics = [metric for metric in BASE if judges or metric not in JUDGES]
    front = [
        arm["name"]
        for arm, entry in zip(arms, analysed, strict=True)
        if arm["role"] == "front" and entry["runs"]
    ]
    return {
        "format": 1,
        "name": "toybox",
        "recipe": "toybox",
        "overrides": ["train.iterations=60"],
        "config": {
            "run": {"dir": "runs/toybox", "seed": 0},
            "rollout": {"steps": 8, "sampler": "dance"},
            "advantage": {"name": "sars", "gamma": 0.4},
            "schedule": {"name": "tdw", "prompt_weight": None},
            "train": {"iterations": ITERATIONS, "group_size": 12},
        },
        "seeds": list(range(seeds)),
        "arms_file": "runs/compare-toybox/arms.yaml",
        "threads_per_run": 1,
        "versions": {"customized_grpo": "0.1.0", "python": "3.12.4", "torch": "2.13.0",
                     "git": {"commit": "0123456789abcdef0123456789abcdef01234567", "modified": False}},
        "definitions": [
            {"term": "Competitive degradation", "text": "The identity reward ends above the base while "
             "held-out prompt accuracy ends below it, both with 95 % intervals that leave out 0."},
            {"term": "Outside the front", "text": "In at least 95 % of bootstrap draws no constant weight "
             "matches or beats the arm on both held-out qualities."},
        ],
        "arms": arms,
        "runs": runs,
        "analysis": {
            "base": {metric: _interval(BASE[metric], 0.02) for metric in metrics},
            "arms": analysed,
            "front": {"arms": front, "reference": [0, 0],
                      "hypervolume": _interval(0.551, 0.008) if front else None},
            "hypervolume_gain": [
                {"arm": arm["name"], "mean": 0.02 - 0.001 * len(arm["name"]), "low": 0.0, "high": 0.03}
                for arm, entry in zip(arms, analysed, strict=True)
                if arm["role"] == "method" and entry["runs"]
            ],
            "verdicts": [
                "Naive GRPO at 1:1 degraded in 3 of 5 runs, so competitive degradation occurs here.",
                "Customized-GRPO is not shown to lie outside the front of constant weights (87 % of draws).",
            ] if any(entry["runs"] for entry in analysed) else [],
        },
        "decisions": _decisions(judges) if decisions else None,
    }  # fmt: skip


def _run(arm: dict[str, Any], seed: int, done: int, judges: bool, chance: random.Random) -> dict[str, Any]:
    state = "finished" if seed < done else "unfinished" if seed == done else "missing"
    run: dict[str, Any] = {"arm": arm["name"], "seed": seed, "state": state, "degraded": None}
    if state == "missing":
        return run | {"rollouts": 0, "wall_s": None, "evals": [], "train": []}
    last = ITERATIONS if state == "finished" else ITERATIONS // 3
    identity, prompt = GAINS.get(arm["name"], (0.08 + chance.gauss(0, 0.012), 0.03 + chance.gauss(0, 0.025)))
    ends = {
        "judge/identity": identity + chance.gauss(0, 0.007),
        "judge/prompt": prompt + chance.gauss(0, 0.011),
        "monitor/copy_score": 0.9 * max(0.02 - prompt, -0.05) + chance.gauss(0, 0.006),
        "monitor/background_similarity": 1.2 * max(0.02 - prompt, -0.07) + chance.gauss(0, 0.01),
    }
    ends |= {"reward/identity": 1.3 * identity + 0.02, "reward/prompt": 0.8 * prompt + 0.01}
    metrics = [metric for metric in BASE if judges or metric not in JUDGES]
    evals = [
        {"iteration": i, "rollouts": i * PER_ITERATION}
        | {m: BASE[m] + ends[m] * (1 - math.exp(-3 * i / ITERATIONS)) / (1 - math.exp(-3)) for m in metrics}
        for i in range(0, last + 1, ITERATIONS // 6)
    ]
    train = [_train(i, chance) for i in range(1, last + 1)]
    finished = {"degraded": ends["judge/prompt"] < -0.02} if state == "finished" and judges else {}
    return run | {"rollouts": last * PER_ITERATION, "wall_s": 210 + chance.random() * 30, "evals": evals,
                  "train": train} | finished  # fmt: skip


def _train(iteration: int, chance: random.Random) -> dict[str, Any]:
    u = iteration / ITERATIONS
    return {
        "iteration": iteration,
        "rollouts": iteration * PER_ITERATION,
        "reward/prompt_group_std": 0.09 - 0.03 * u + chance.gauss(0, 0.006),
        "reward/identity_group_std": 0.11 - 0.05 * u + chance.gauss(0, 0.006),
        "advantage/conflict": 0.47 + chance.gauss(0, 0.03),
    }


def _analysed(arm: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
    done = [run for run in runs if run["state"] == "finished"]
    entry: dict[str, Any] = {
        "name": arm["name"],
        "runs": len(done),
        "degraded": sum(bool(r["degraded"]) for r in done),
    }
    if not done:
        return entry | dict.fromkeys(
            ("final", "change", "outside_front", "against_control", "quadrants", "group_std")
        )
    final, change = {}, {}
    for metric in (key for key in done[0]["evals"][-1] if "/" in key):
        values = [run["evals"][-1][metric] for run in done]
        half = 2.1 * statistics.stdev(values) / math.sqrt(len(values)) + 0.008 if len(values) > 1 else None
        final[metric] = _interval(statistics.mean(values), half)
        change[metric] = _interval(statistics.mean(values) - BASE[metric], half)
    against = None
    if arm["control"] and "judge/prompt" in final:
        against = {
            "control": arm["control"],
            "judge/identity": _interval(-0.004, 0.012) | {"p": 0.4, "p_holm": 0.8},
            "judge/prompt": _interval(0.047, 0.02) | {"p": 0.0002, "p_holm": 0.0006},
        }
    conflict = 0.47 + 0.01 * (len(arm["name"]) % 5)
    return entry | {
        "final": final,
        "change": change,
        "outside_front": None
        if arm["role"] == "front"
        else {
            "share": 0.87,
            "outside": False,
            "margin": _interval(0.006, 0.012),
        },
        "against_control": against,
        "quadrants": {
            "conflict": conflict,
            "both_positive": 0.28,
            "both_negative": 0.72 - conflict,
            "null": 0.49,
        },
        "group_std": {"prompt": 0.081, "identity": 0.074},
    }


def _interval(mean: float, half: float | None) -> dict[str, float | None]:
    if half is None:
        return {"mean": mean, "low": None, "high": None}
    return {"mean": mean, "low": mean - half, "high": mean + half}


def _decisions(judges: bool) -> dict[str, Any]:
    shares = {
        "prompt": [1.0, 0.8, 0.55, 0.3, 0.12, 0.05, 0.02, 0.0, 0.0],
        "identity": [1.0, 0.96, 0.9, 0.78, 0.6, 0.4, 0.2, 0.0, 0.0],
    }
    curves = {}
    for kind in ("judge", "reward") if judges else ("reward",):
        for name, share in shares.items():
            values = [0.05 * value for value in share]
            decided = [before - after for before, after in itertools.pairwise(values)]
            centre = sum((step + 0.5) / 8 * value / 0.05 for step, value in enumerate(decided))
            curves[f"{kind}/{name}"] = {
                "open": values, "low": [0.8 * v for v in values], "high": [1.2 * v for v in values],
                "share": share, "share_low": [0.9 * v for v in share],
                "share_high": [min(1, 1.1 * v) for v in share],
                "decided": decided, "decided_low": decided, "decided_high": decided,
                "centre": _interval(centre, 0.02), "prompts": 8,
            }  # fmt: skip
    return {
        "sigmas": [1 - step / 8 for step in range(9)],
        "prompts": 8,
        "continuations": 12,
        "points": [0, 1, 2, 3, 4, 5],
        "noisy_steps": [0, 1, 2, 3, 4, 5, 6],
        "prompt_weights": [0.7, 0.7, 0.67, 0.55, 0.35, 0.31, 0.3, 0.5],
        "curves": curves,
        "difference": _interval(0.25, 0.03),
        "judge_difference": _interval(0.25, 0.03) if judges else None,
        "calibrated": {
            "source": "judge" if judges else "reward",
            "weights": [0.85, 0.83, 0.7, 0.55, 0.26, 0.15, 0.1, 0.5],
            "low": [0.7] * 8,
            "high": [0.9] * 8,
        },
        "premise": "By the training rewards, the premise of TDW holds.",
    }
