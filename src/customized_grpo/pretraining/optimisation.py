"""The loop that every stage trains with: AdamW, a schedule, an average of the weights, a state on the disk.

A batch is a pure function of the seed, the stage and the step, so a stage that was killed goes on from its
last state with the numbers that it would have had: bit for bit on the same machine and number of threads.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from customized_grpo.engine.device import has_bf16_instructions
from customized_grpo.errors import UserError
from customized_grpo.files import replacing
from customized_grpo.pretraining.common import Log, cosine_with_warmup

SAVE_EVERY_S = 300.0

LossOf = Callable[[int], tuple[torch.Tensor, dict[str, float]]]
"""Returns the loss of a step's batch, and values for the log."""


@dataclass(frozen=True)
class Recipe:
    """How a stage is trained.

    Attributes:
        samples: Training samples in all.
        batch_size: Samples of an optimizer step.
        rate: Peak learning rate.
        seed: Seed of the first weights and of all batches.
        warmup: Steps until the peak.
        constant: Whether the rate stays at its peak; otherwise a cosine ends it.
        betas, weight_decay: Of AdamW.
        ema_decay: Decay of the average of the weights, which is what the stage saves; 0 for no average.
    """

    samples: int
    batch_size: int
    rate: float
    seed: int
    warmup: int = 100
    constant: bool = False
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    ema_decay: float = 0.0

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps, at least one."""
        return max(1, self.samples // self.batch_size)


def autocast() -> torch.autocast:
    """Return the context of the models' products: bf16 where the CPU has it, as emulating it is slow."""
    return torch.autocast("cpu", torch.bfloat16, enabled=bool(has_bf16_instructions()))


def optimise(stage: str, module: nn.Module, loss_of: LossOf, recipe: Recipe, out: Path) -> None:
    """Train a module, and leave in it the weights to be saved; its card goes to `out`/`stage`.card.json.

    Args:
        stage: Name of the stage.
        module: What is trained, with the first weights.
        loss_of: Its loss.
        recipe: How.
        out: Folder of the state, from which a killed stage goes on; it is removed at the end.

    Raises:
        UserError: The state in `out` is of another recipe.
    """
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=recipe.rate, betas=recipe.betas, weight_decay=recipe.weight_decay
    )
    average = None
    if recipe.ema_decay:
        average = torch.optim.swa_utils.AveragedModel(module, multi_avg_fn=_with_warmup(recipe.ema_decay))
    log = Log(stage, out)
    state = _State(out / f"{stage}.state.pt", recipe, module, optimizer, average)
    module.train()
    for step in range(state.load(log), recipe.steps):
        factor = min(1.0, (step + 1) / recipe.warmup)
        if not recipe.constant:
            factor = cosine_with_warmup(step, recipe.steps, recipe.warmup)
        optimizer.param_groups[0]["lr"] = recipe.rate * factor
        loss, values = loss_of(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        if average is not None:
            average.update_parameters(module)
        log.step(step, recipe.steps, loss=loss.item(), **values)
        state.save_now_and_then(step + 1, log)
    if average is not None:
        module.load_state_dict(average.module.state_dict())
    module.eval()
    parameters = sum(parameter.numel() for parameter in module.parameters())
    log.finish(samples=recipe.samples, seed=recipe.seed, parameters=parameters)
    state.file.unlink(missing_ok=True)


def _with_warmup(decay: float) -> Callable[[Any, Any, Any], None]:
    """Return an averaging function whose decay starts low: random first weights are soon forgotten."""

    @torch.no_grad()
    def update(averages: Any, current: Any, count: Any) -> None:
        now = min(decay, (1 + float(count)) / (10 + float(count)))
        torch._foreach_lerp_(averages, current, 1 - now)

    return update


class _State:
    """What a stage needs to go on: weights, optimizer, average, step, seconds and recipe."""

    def __init__(
        self,
        file: Path,
        recipe: Recipe,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        average: nn.Module | None,
    ) -> None:
        self.file = file
        self.recipe = asdict(recipe)
        self.parts: dict[str, Any] = {"module": module, "optimizer": optimizer}
        if average is not None:
            self.parts["average"] = average
        self.saved_at = time.monotonic()

    def load(self, log: Log) -> int:
        """Return the step to go on with; 0 without a state."""
        if not self.file.exists():
            return 0
        state = torch.load(self.file, weights_only=True)
        recipe = dict(state["recipe"])
        if self.recipe["constant"]:  # such a stage may be ended earlier or go on longer than was meant
            recipe["samples"] = self.recipe["samples"]
        if recipe != self.recipe:
            raise UserError(
                f"{self.file} is the state of a stage with another recipe",
                hint="Delete it to start anew, or give the samples and batch size of before.",
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        log.start -= state["seconds"]
        return int(state["step"])

    def save_now_and_then(self, step: int, log: Log) -> None:
        """Save if the last state is old."""
        if time.monotonic() - self.saved_at < SAVE_EVERY_S:
            return
        contents = {name: part.state_dict() for name, part in self.parts.items()}
        seconds = time.monotonic() - log.start
        with replacing(self.file, durable=True) as draft:
            torch.save({**contents, "recipe": self.recipe, "step": step, "seconds": seconds}, draft)
        self.saved_at = time.monotonic()
