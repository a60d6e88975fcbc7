"""Whether the graphs of an iteration's trained steps fit the memory; then updates need no forward pass."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from customized_grpo.engine.device import free_bytes
from customized_grpo.planning import replay
from customized_grpo.planning.memory import GIB, GRAPHS_SHARE
from customized_grpo.policies.text_lengths import TEXT_LENGTH
from customized_grpo.rollout.batches import sample_batches
from customized_grpo.rollout.graphs import reuse_obstacle
from customized_grpo.rollout.sampler import plan_iteration

if TYPE_CHECKING:
    from customized_grpo.policies.conditioning import Conditioning
    from customized_grpo.policies.policy import Policy
    from customized_grpo.rollout.sampler import Sampler
    from customized_grpo.training.parts import Parts


@dataclass(frozen=True)
class GraphSize:
    """Bytes of a graph of one transition of B samples: `fixed + B x per_sample`.

    Attributes:
        fixed: Of what does not depend on B, such as weights of the adapter in the type of the products.
        per_sample: Of one sample's activations.
    """

    fixed: int
    per_sample: int

    @classmethod
    def measure(cls, policy: Policy, sampler: Sampler, conditioning: Conditioning) -> GraphSize:
        """Measure a policy with transitions of one sample and of two.

        Args:
            policy: The policy.
            sampler: The recipe's sampler.
            conditioning: Of one sample.
        """
        one = _graph_bytes(policy, sampler, conditioning)
        two = _graph_bytes(policy, sampler, conditioning.repeat_interleave(2))
        # one = fixed + s and two = fixed + 2 s
        return cls(2 * one - two, two - one)


def _graph_bytes(policy: Policy, sampler: Sampler, conditioning: Conditioning) -> int:
    """Return the bytes that a transition leaves behind for its backward pass."""
    generators = [torch.Generator().manual_seed(sample) for sample in range(len(conditioning))]
    x = policy.noise(generators, conditioning.height, conditioning.width)
    tensors = [x, *conditioning.per_sample.values(), *conditioning.shared.values()]
    known = [*tensors, *replay.known_tensors(policy.transformer)]
    # Not compiled: a count of tensors cannot look into compiled blocks, which keep about as much, and torch
    # never compiles a block that it has met inside such a count.
    with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        # Step 0 stands for all: the sizes of tensors do not depend on the noise level.
        return replay.bytes_left(lambda: sampler.transition(policy, x, 0, conditioning), known)


class GraphMemory:
    """Decides before each rollout whether it keeps the graphs of its trained steps.

    The decision changes no number: processes and iterations may differ in it.

    Args:
        parts: The run's parts.
        say: Called with a new decision, unless the recipe has made it.

    Attributes:
        keeps: The last decision; None before the first.
        sentence: The decision and its reason, for the user.
    """

    def __init__(self, parts: Parts, say: Callable[[str], None] = lambda note: None) -> None:
        config = parts.config
        self.parts = parts
        self.say = say
        self.batch_size = config.rollout.batch_size
        self.group_size = config.train.group_size
        n_prompts = config.train.prompts_per_iteration // parts.engine.world_size
        self.obstacle = reuse_obstacle(config, n_prompts * self.group_size)
        self.n_steps = len(plan_iteration(config, 0).trained)  # the same in every iteration
        # by bucket: the longest text that was measured, and its graph
        self.sizes: dict[Hashable, tuple[int, GraphSize]] = {}
        self.keeps: bool | None = None
        self.sentence = ""

    def decide(self, buckets: Sequence[Hashable], conditionings: Sequence[Conditioning]) -> bool:
        """Return whether the graphs are kept.

        Args:
            buckets: Bucket of each prompt of an iteration of this process [P].
            conditionings: Conditioning of each prompt [P].
        """
        before = self.keeps
        # Decided by the recipe alone; memory is not asked.
        if self.obstacle is not None:
            self.keeps = False
            self.sentence = f"updates compute the trained steps again: {self.obstacle}"
        else:
            self.keeps = self._fits(buckets, conditionings)
        # Said when it changes: buckets differ in size, and memory fills up.
        if self.keeps != before and self.parts.config.train.reuse_rollout_graph == "auto":
            self.say(self.sentence)
        return self.keeps

    def _fits(self, buckets: Sequence[Hashable], conditionings: Sequence[Conditioning]) -> bool:
        """Return whether the graphs fit, and say so in `sentence`."""
        needed = self._needed(buckets, conditionings)
        free = free_bytes(self.parts.engine.device)
        if self.parts.engine.device.type == "cpu":
            # processes on a CPU share its memory
            free //= self.parts.engine.world_size
        fits = needed <= GRAPHS_SHARE * free
        numbers = f"{needed / GIB:.2f} GiB, and {free / GIB:.2f} GiB are free, of which they may take half"
        self.sentence = (
            f"updates go back through the rollout's own passes: their graphs take {numbers}"
            if fits
            else f"updates compute the trained steps again: graphs kept from the rollout would take {numbers}"
        )
        return fits

    def savings(self) -> list[str]:
        """Return the setting that saves the memory of the graphs, if they are kept."""
        return ["train.reuse_rollout_graph=never"] if self.keeps else []

    def _needed(self, buckets: Sequence[Hashable], conditionings: Sequence[Conditioning]) -> int:
        """Return the bytes of the graphs of all trained steps of an iteration; never less than they take.

        Where a family's texts have several lengths, the longest of a bucket so far stands for all of it.
        """
        everyone = slice(0, len(buckets) * self.group_size)
        n_bytes = 0
        for samples in sample_batches(buckets, self.group_size, everyone, self.batch_size):
            # a batch is of one bucket, and may begin and end within a group
            first, last = samples.start // self.group_size, (samples.stop - 1) // self.group_size
            prompts = conditionings[first : last + 1]
            size = self._size(buckets[first], prompts)
            # each length of text is a call of its own
            n_calls = len({_text_length(prompt) for prompt in prompts})
            n_bytes += n_calls * size.fixed + (samples.stop - samples.start) * size.per_sample
        # All of them are alive at once, until the update takes the first.
        return n_bytes * self.n_steps

    def _size(self, bucket: Hashable, prompts: Sequence[Conditioning]) -> GraphSize:
        longest = max(prompts, key=_text_length)
        length = _text_length(longest)
        known = self.sizes.get(bucket)
        if known is None or known[0] < length:
            known = (length, GraphSize.measure(self.parts.policy, self.parts.sampler, longest))
            self.sizes[bucket] = known
        return known[1]


def _text_length(conditioning: Conditioning) -> int:
    """Return the tokens of a prompt's texts; 0 for a family that pads all texts to one length."""
    tensors = conditioning.per_sample
    return sum(int(tensors[name][0]) for name in tensors if name.endswith(TEXT_LENGTH))
