"""A trajectory: the samples of an iteration, with what is needed to train on them."""

from __future__ import annotations

from collections.abc import Hashable, MutableSequence, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from customized_grpo.policies.conditioning import Conditioning
from customized_grpo.rollout.batches import samples_of_groups
from customized_grpo.rollout.graphs import Graphs


@dataclass(frozen=True)
class Trajectory:
    """N samples in whole groups, G of each of P prompts, and S of their T denoising steps.

    A state has L tokens of C channels. States and log-probabilities are fp32.

    Attributes:
        conditionings: Conditioning of each prompt [P], a single sample each; sample n belongs to prompt
            n // G.
        buckets: Bucket of each prompt [P]; only samples of one bucket can be in one model call.
        group_size: G.
        steps: Indices, among the T denoising steps, of the S trained ones, ascending; T - 1 is never one.
        sigmas: Noise levels [T + 1].
        x: States before the trained steps [S, N, L, C].
        x_next: States after them [S, N, L, C].
        mean: Transition means at rollout time [S, N, L, C]; None unless ratio normalisation needs them.
        log_prob: Log-probabilities at rollout time [S, N], averaged over L and C.
        images: Decoded samples [N, 3, H, W] in [0, 1].
        graphs: Graphs of the trained steps; empty unless they were kept. The update takes each of them out.
    """

    conditionings: MutableSequence[Conditioning]
    buckets: MutableSequence[Hashable]
    group_size: int
    steps: list[int]
    sigmas: Tensor
    x: Tensor
    x_next: Tensor
    mean: Tensor | None
    log_prob: Tensor
    images: Tensor
    graphs: Graphs = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def n_trained(self) -> int:
        """Return S."""
        return len(self.steps)

    def replace_groups(self, places: Sequence[int], others: Trajectory) -> None:
        """Put groups of another trajectory, with the same trained steps, in the place of some of these.

        Args:
            places: Numbers of the groups that are replaced, one for each group of the others.
            others: The groups that take their places, in this order.
        """
        samples = samples_of_groups(places, self.group_size)
        for name in ("x", "x_next", "mean", "log_prob"):
            values: Tensor | None = getattr(self, name)
            if values is not None:
                values[:, samples] = getattr(others, name)
        self.images[samples] = others.images
        for number, place in enumerate(places):
            self.conditionings[place] = others.conditionings[number]
            self.buckets[place] = others.buckets[number]

    def release(self) -> None:
        """Free the graphs of samples that could not be trained on."""
        self.graphs.clear()
