"""`cgrpo evaluate`: base and tuned model of a finished or interrupted run, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from customized_grpo.disk import check_writable
from customized_grpo.errors import UserError
from customized_grpo.files import write_json


def evaluate(
    run_dir: Path, *, samples_per_prompt: int | None = None, seed: int | None = None
) -> dict[str, dict[str, dict[str, float]]]:
    """Judge base and tuned model on the held-out prompts of the run's recipe, from the same noise.

    Args:
        run_dir: Folder of a run.
        samples_per_prompt: Images of each prompt; None means the recipe's number.
        seed: Seed of the initial noise; None means the recipe's.

    Returns:
        {"base", "tuned", "difference"}, each {metric: {"mean", "low", "high"}} with 95 % intervals clustered
        by subject; see `write_evaluation`.

    Raises:
        UserError: The folder is not that of a run with a checkpoint or cannot be written, or its recipe holds
            out no rows.
    """
    import torch

    from customized_grpo.evaluation.scores import summary
    from customized_grpo.policies.out_of_memory import explained
    from customized_grpo.runs.reading import load_checkpoint, run_checkpoint, run_config, warn_of_other_base
    from customized_grpo.training.parts import build_engine, open_parts

    config = run_config(run_dir)
    # before anything is drawn: the result of an hour would be lost
    check_writable(run_dir)
    changes = {"samples_per_prompt": samples_per_prompt, "seed": seed}
    given = {name: value for name, value in changes.items() if value is not None}
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update=given)})
    # before the model is loaded, as it may be missing or damaged
    checkpoint = run_checkpoint(run_dir)
    with open_parts(config, build_engine(config)) as parts:
        if not parts.data.held_out:
            raise UserError(
                "this recipe holds out no rows to evaluate on",
                hint="Set data.held_out or evaluation.prompts to a manifest.",
            )
        load_checkpoint(parts.policy, checkpoint, average=config.evaluation.use_ema)
        warn_of_other_base(checkpoint, config.model)
        batches = {"evaluation.batch_size": config.evaluation.batch_size}
        with explained(config.model, batches, training=False):
            # The checkpoint is loaded by now; `start` puts its adapter aside for the base.
            with torch.no_grad(), parts.policy.start():
                base, _ = parts.evaluation.evaluate()
            tuned, _ = parts.evaluation.evaluate()
    return summary(base, tuned)


def write_evaluation(run_dir: Path, result: Mapping[str, Any]) -> None:
    """Write `evaluation.json` into the run folder."""
    write_json(run_dir / "evaluation.json", result)
