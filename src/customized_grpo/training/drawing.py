"""An iteration's groups, drawn and scored; with dynamic sampling those that teach nothing are replaced.

The rows of a training are one stream of prompts, in shuffled passes. An iteration takes the next P of them;
then, while some of its groups teach nothing and the budget lasts, one further prompt for each of these
places. A place belongs to a process, which draws all prompts of it. So prompts and samples are the same at
any number of processes, and what is left to remember is how many prompts were drawn.

Legend: P prompts of an iteration over all processes, G samples of each, N = P x G, K rewards.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from customized_grpo.data.mixture import draw_rows
from customized_grpo.data.sampler import count_repeats
from customized_grpo.rollout.batches import count_batches, repeat_examples, samples_of_groups
from customized_grpo.rollout.scoring import scoring_batch
from customized_grpo.training.algorithm import Algorithm, Draw
from customized_grpo.training.signal import idle_groups

if TYPE_CHECKING:
    from customized_grpo.config.training import DynamicSamplingConfig
    from customized_grpo.data.examples import Example
    from customized_grpo.engine.interrupts import StopFlag
    from customized_grpo.engine.partition import Partition
    from customized_grpo.training.graph_memory import GraphMemory
    from customized_grpo.training.loss_terms import Samples
    from customized_grpo.training.metrics import Clock
    from customized_grpo.training.parts import Parts
    from customized_grpo.training.state import RunState


@dataclass
class Groups:
    """The groups that an iteration trains on.

    Attributes:
        rows: Row of the training data of each group, over all processes [P].
        samples: The samples of this process.
        scores: Of the samples of all processes [N, K], in the iteration's order, NaN where a reward could
            not score.
        n_drawn: Groups that were drawn for them, over all processes; at least P.
        idle: Numbers of those that teach nothing all the same; empty without dynamic sampling, which alone
            looks for them.
    """

    rows: list[int]
    samples: Samples
    scores: Tensor
    n_drawn: int
    idle: list[int]

    @property
    def n_further(self) -> int:
        """Return how many prompts were drawn besides the first P."""
        return self.n_drawn - len(self.rows)

    def metrics(self, settings: DynamicSamplingConfig | None) -> dict[str, float]:
        """Return what dynamic sampling did, for the iteration's line of metrics; nothing without it.

        Counts of groups over all processes: drawn; dropped for a further prompt; how many could be; and
        those that teach nothing and stayed, because the budget was spent.
        """
        if settings is None:
            return {}
        return {
            "sampling/drawn": self.n_drawn,
            "sampling/dropped": self.n_further,
            "sampling/budget": settings.budget,
            "sampling/stayed": len(self.idle),
        }


class Drawing:
    """Draws and scores the groups of an iteration.

    Args:
        parts: The run's parts.
        algorithm: Draws samples.
        partition: Which places of an iteration are this process's.
        state: How far the run is; only read.
        graph_memory: Decides whether trained steps keep their graphs.
        stop: Checked before every batch and while waiting for rewards.
        phase: Called with the name of what begins.
    """

    def __init__(
        self,
        parts: Parts,
        algorithm: Algorithm[Any],
        partition: Partition,
        state: RunState,
        graph_memory: GraphMemory,
        stop: StopFlag,
        phase: Callable[[str], None],
    ) -> None:
        self.config = parts.config
        self.engine = parts.engine
        self.train = parts.data.train
        self.scorer = parts.scorer
        self.algorithm = algorithm
        self.partition = partition
        self.state = state
        self.graph_memory = graph_memory
        self.stop = stop
        self.phase = phase

    def draw(self, clock: Clock) -> Groups:
        """Return the groups of the next iteration; all processes must call this.

        Args:
            clock: Counts the time of rollout and rewards.
        """
        drawn = self._next_rows([], self.config.train.prompts_per_iteration)
        rows = list(drawn)
        samples, scores = self._draw_places(drawn, range(len(rows)), clock)
        assert samples is not None  # every process has places
        settings = self.config.train.dynamic_sampling
        if settings is None:
            return Groups(rows, samples, scores, len(drawn), [])
        idle = self._idle(scores)
        while idle and len(drawn) - len(rows) < settings.budget:
            places = idle[: settings.budget - (len(drawn) - len(rows))]
            drawn += self._next_rows(drawn, len(places))
            others, other_scores = self._draw_places(drawn, places, clock)
            self._replace(samples, places, others)
            scores[samples_of_groups(places, samples.group_size)] = other_scores
            for place, row in zip(places, drawn[-len(places) :], strict=True):
                rows[place] = row
            idle = self._idle(scores)
        return Groups(rows, samples, scores, len(drawn), idle)

    def next_example(self) -> Example:
        """Return the first prompt of the next iteration."""
        return self.train[self._next_rows([], 1)[0]]

    def _next_rows(self, drawn: Sequence[int], count: int) -> list[int]:
        """Return the rows that follow those that this iteration has drawn."""
        before = self.state.iteration * self.config.train.prompts_per_iteration + self.state.further_prompts
        return draw_rows(self.train, before + len(drawn), count, self.config.run.seed)

    def _idle(self, scores: Tensor) -> list[int]:
        """Return the numbers of the groups that teach nothing: the same in all processes, as scores are."""
        settings = self.config.train.dynamic_sampling
        assert settings is not None
        return idle_groups(self.config, self.scorer.rewards, scores, settings.largest_std)

    def _replace(self, samples: Samples, places: Sequence[int], others: Samples | None) -> None:
        """Put further groups of this process in the places that they were drawn for."""
        if others is None:
            return
        all_own = self.partition.own_prompts(self.config.train.prompts_per_iteration)
        # place of the iteration -> group of this process
        samples.replace_groups([all_own.index(place) for place in places if place in all_own], others)

    def _draw_places(
        self, drawn: Sequence[int], places: Sequence[int], clock: Clock
    ) -> tuple[Samples | None, Tensor]:
        """Draw and score the groups of some places, for which the last rows of this iteration were drawn.

        Args:
            drawn: All rows that this iteration has drawn, in their order.
            places: Places of the last of them in the iteration, ascending.
            clock: Counts the time.

        Returns:
            The samples of this process, None where no place is its own; and the scores of all processes, as
            many groups as places.
        """
        first = len(drawn) - len(places)
        # a row that comes twice in an iteration has other samples the second time
        repeats = count_repeats(drawn)
        all_own = self.partition.own_prompts(self.config.train.prompts_per_iteration)
        own = [number for number, place in enumerate(places) if place in all_own]
        examples = [self.train[drawn[first + number]] for number in own]
        with clock.phase("rollout"):
            samples = self.collect(examples, [repeats[first + number] for number in own], clock)
        with clock.phase("reward"):
            scores = self.score()
            return samples, self._of_all_processes(scores, own, len(places))

    def collect(self, examples: list[Example], repeats: Sequence[int], clock: Clock) -> Samples | None:
        """Draw a group of samples for each example; hand each batch of images to the rewards at once.

        Args:
            examples: Prompts of this process; there may be none.
            repeats: How often each one's row was drawn before it in this iteration.
            clock: Counts the time of rewards that run here.
        """
        group_size = self.config.train.group_size
        self.phase("rollout")
        example_of_sample = repeat_examples(examples, group_size)

        def submit(samples: slice, images: Tensor) -> None:
            with clock.phase("reward"):
                self.scorer.submit(scoring_batch(images, example_of_sample[samples]), group_size)

        n_batches = count_batches(examples, group_size, self.config.rollout.batch_size)
        before_batch = self.stop.batch_check(n_batches)  # an exchange, also for a process that draws nothing
        if not examples:
            return None
        draw = Draw(
            examples,
            self.state.iteration,
            repeats=repeats,
            keep_graphs=self.graph_memory.decide,
            before_batch=before_batch,
            on_batch=submit,
        )
        samples: Samples = self.algorithm.draw(draw)
        return samples

    def score(self) -> Tensor:
        """Wait for the scores of this process's samples.

        Returns:
            [n, K], n samples in the order in which they were drawn, NaN where a reward could not score.
        """
        self.phase("reward")
        self.stop.check()
        # A check while waiting is an exchange, and the other processes wait for their own rewards.
        is_alone = self.engine.world_size == 1
        return self.scorer.collect(self.stop.check) if is_alone else self.scorer.collect()

    def _of_all_processes(self, scores: Tensor, own: Sequence[int], n_groups: int) -> Tensor:
        """Return the scores of all processes, of whom each has some of the groups.

        Args:
            scores: Of this process's groups.
            own: Numbers of its groups.
            n_groups: Number of all groups.
        """
        if self.engine.world_size == 1:
            return scores
        group_size = self.config.train.group_size
        everyone = torch.zeros(n_groups * group_size, scores.shape[1])
        everyone[samples_of_groups(own, group_size)] = scores
        # a sum with zeros is exact, and NaN stays NaN
        return self.engine.total(everyone)
