"""`cgrpo evaluate`: base and tuned model of a finished or interrupted run, side by side."""

from __future__ import annotations

from pathlib import Path

from customized_grpo.errors import UserError


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

    from customized_grpo.evaluation.held_out import HeldOutScores, evaluate_policy, summary
    from customized_grpo.rollout.encoding import PromptEncoder
    from customized_grpo.runs.folder import RunFolder
    from customized_grpo.runs.reading import load_run
    from customized_grpo.training.parts import build_data, build_scorer

    config, policy = load_run(run_dir)
    data = build_data(config)
    if not data.held_out:
        raise UserError("this recipe holds out no rows to evaluate on", "Set data.held_out to a manifest.")
    encode = PromptEncoder.of(config, policy)
    steps = config.evaluation.steps or config.rollout.steps

    def scores() -> HeldOutScores:
        return evaluate_policy(
            policy,
            data.held_out,
            scorer,
            data.judges,
            encode=encode,
            reward_weights=[reward.weight for reward in config.rewards],
            sigmas=policy.sigmas(steps, policy.n_tokens(*encode.size)),
            samples_per_prompt=samples_per_prompt or config.evaluation.samples_per_prompt,
            seed=config.evaluation.seed if seed is None else seed,
            batch_size=config.evaluation.batch_size,
        )[0]

    with build_scorer(config) as scorer:
        with torch.no_grad(), policy.reference():
            base = scores()
        result = summary(base, scores())
    RunFolder(run_dir).write_json("evaluation.json", result)
    return result
