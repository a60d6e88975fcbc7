"""`cgrpo evaluate`: base and tuned model of a finished or interrupted run, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from customized_grpo.errors import UserError


def load_run(run_dir: Path) -> tuple[Any, Any]:
    """Return the config and the policy of a run, as its newest checkpoint has it.

    With evaluation.use_ema the adapter is the average, which is what the run itself evaluates.

    Raises:
        UserError: The run has no complete checkpoint.
    """
    from customized_grpo.checkpoint.store import CheckpointStore
    from customized_grpo.components import build_policy
    from customized_grpo.config import load_config
    from customized_grpo.optimisation import load_average

    config = load_config(str(run_dir / "config.yaml"), [f"run.dir={json.dumps(str(run_dir))}"])
    store = CheckpointStore(run_dir / "checkpoints", config.checkpoint.keep)
    step = store.latest()
    if step is None:
        raise UserError(f"{run_dir} has no complete checkpoint", "Train it first: cgrpo train.")
    policy = build_policy(config)
    tensors = store.load(step).tensors
    policy.load_adapter_tensors(dict(tensors["adapter"]))
    if config.evaluation.use_ema:
        load_average(policy.trainable_parameters(), tensors["average"])
    return config, policy


def evaluate(
    run_dir: Path, *, samples_per_prompt: int | None = None, seed: int | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    """Judge base and tuned model on the held-out prompts of the run's recipe, from the same noise.

    Args:
        run_dir: Folder of a run.
        samples_per_prompt: Pictures of each prompt; None means the recipe's.
        seed: Of the initial noise; None means the recipe's.

    Returns:
        {"base", "tuned", "difference"}, each {metric: {"mean", "low", "high"}} with 95 % intervals clustered
        by subject. Also written to `evaluation.json` in the run folder.
    """
    import torch

    from customized_grpo.components import build_data, build_rewards
    from customized_grpo.encoding import PromptEncoder
    from customized_grpo.evaluation.held_out import HeldOutScores, evaluate_policy, summary
    from customized_grpo.run_folder import RunFolder

    config, policy = load_run(run_dir)
    data = build_data(config)
    if not data.held_out:
        raise UserError("this recipe holds out no rows to evaluate on", "Set data.held_out to a manifest.")
    encode = PromptEncoder.of(config, policy)
    steps = config.evaluation.steps or config.rollout.steps
    rewards = build_rewards(config)

    def scores() -> HeldOutScores:
        return evaluate_policy(
            policy,
            data.held_out,
            rewards,
            data.judges,
            encode=encode,
            reward_weights=[reward.weight for reward in config.rewards],
            sigmas=policy.sigmas(steps, policy.n_tokens(*encode.size)),
            samples_per_prompt=samples_per_prompt or config.evaluation.samples_per_prompt,
            seed=config.evaluation.seed if seed is None else seed,
            batch_size=config.evaluation.batch_size,
        )[0]

    with torch.no_grad(), policy.reference():
        base = scores()
    result = summary(base, scores())
    RunFolder(run_dir).write_json("evaluation.json", result)
    return result
