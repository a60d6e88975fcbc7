"""Autograd graphs of the trained steps, kept from the rollout until the update goes back through them.

On-policy, the update would compute the rollout's own transitions again, only to have their graphs. Kept
graphs save that second forward pass. The gradients are the same bit for bit, because graph by graph the same
backward passes run in the same order.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from customized_grpo.config import Config

CUDA_GRAPHS = "TORCHINDUCTOR_CUDAGRAPHS"
"""Variable of torch by which compiled blocks replay one recording, on the same memory each time."""

Graphs = dict[tuple[int, int, int], tuple[Tensor, Tensor]]
"""Mean [B, L, C], with its graph, and std of a transition by (step, first sample, end of the samples)."""


def reuse_obstacle(config: Config, samples: int) -> str | None:
    """Return why a recipe's updates cannot go back through the graphs of the rollout; None if they can.

    Memory is not asked here.

    Args:
        config: The recipe.
        samples: Samples of one process in an iteration.
    """
    train = config.train
    if train.algorithm != "grpo":
        return (
            f"train.algorithm={train.algorithm}: noise levels are trained, which the rollout does not visit"
        )
    if train.reuse_rollout_graph == "never":
        return "train.reuse_rollout_graph=never"
    if train.dynamic_sampling is not None:
        return "train.dynamic_sampling: groups of the rollout are replaced"
    if train.updates_per_iteration > 1:
        return (
            f"train.updates_per_iteration={train.updates_per_iteration}: only one has the rollout's weights"
        )
    if train.inner_epochs > 1:
        # it holds the rollout against a computation of its own, which the later passes rely on
        return f"train.inner_epochs={train.inner_epochs}: the first pass must show that later ones will agree"
    # Sizes above the number of samples are the same batch: all of them.
    if min(config.rollout.batch_size, samples) != min(train.micro_batch_size, samples):
        return "rollout.batch_size and train.micro_batch_size batch the samples differently"
    if config.model.shard:
        return "model.shard=true: a block's weights are gathered for one pass only"
    if config.model.compile and os.environ.get(CUDA_GRAPHS) == "1":
        return f"{CUDA_GRAPHS}=1 in the environment: compiled blocks reuse the memory of a pass"
    return None
