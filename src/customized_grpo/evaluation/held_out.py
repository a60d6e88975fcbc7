"""Held-out evaluation: the same prompts and the same noise, before, during and after training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from customized_grpo.engine.partition import padded_block
from customized_grpo.evaluation.scores import DIVERSITY, HeldOutScores
from customized_grpo.rollout.batches import count_batches, repeat_examples
from customized_grpo.rollout.ode import sample_examples
from customized_grpo.rollout.scoring import scoring_batch
from customized_grpo.statistics import monitors

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.data.examples import Example
    from customized_grpo.engine.engine import Engine
    from customized_grpo.policies.policy import Policy
    from customized_grpo.rewards.executors import Scorer
    from customized_grpo.rollout.encoding import PromptEncoder

N_FIRST_IMAGES = 8
"""Held-out prompts whose first image is returned, for reports."""

DIVERSITY_PIXELS = 64
"""Side to which images are averaged before their diversity is measured: it is to be seen from afar."""


class Judges(Protocol):
    """Encoders that took no part in training."""

    def columns(self, images: Tensor, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return scores [B] by metric name, one image per example."""
        ...


class HeldOutEvaluation:
    """A recipe's evaluation on its held-out prompts, which are partitioned over the processes.

    Args:
        config: The recipe.
        engine: Joins the scores of all processes.
        policy: Evaluated as it is at the time.
        encoder: Encodes the examples, for images of the evaluation's size.
        scorer: The training rewards, to compare with the judges.
        judges: Held-out judges, if there are any for this data.
        examples: Held-out examples, those of all processes.
    """

    def __init__(
        self,
        config: Config,
        engine: Engine,
        policy: Policy,
        encoder: PromptEncoder,
        scorer: Scorer,
        judges: Judges | None,
        examples: Sequence[Example],
    ) -> None:
        self.settings = config.evaluation
        self.guidance = config.evaluation_model.guidance
        self.sigmas = policy.sigmas(config.evaluation_steps, policy.n_tokens(*encoder.size))
        self.engine = engine
        self.policy = policy
        self.encoder = encoder
        self.scorer = scorer
        self.judges = judges
        self.examples = examples
        # A number counts all held-out prompts, a place this process's own.
        self.own_numbers = padded_block(len(examples), engine.rank, engine.world_size)
        self.own_examples = [examples[number] for number in self.own_numbers]

    @property
    def n_batches(self) -> int:
        """Return the number of batches of this process."""
        return count_batches(self.own_examples, self.settings.samples_per_prompt, self.settings.batch_size)

    def evaluate(self, before_batch: Callable[[], None] = lambda: None) -> tuple[HeldOutScores, Tensor]:
        """Draw and judge the held-out images.

        Args:
            before_batch: Called before every batch of this process; may raise to stop.

        Returns:
            The scores of all processes' images, and the first image of each of the first N_FIRST_IMAGES
            prompts [n, 3, H, W].
        """
        samples_per_prompt = self.settings.samples_per_prompt
        shown = self._shown()
        with self.policy.guided(self.guidance):
            own_scores, own_images = evaluate_policy(
                self.policy,
                self.own_examples,
                self.scorer,
                self.judges,
                encoder=self.encoder,
                sigmas=self.sigmas,
                samples_per_prompt=samples_per_prompt,
                seed=self.settings.seed,
                batch_size=self.settings.batch_size,
                # place of a prompt -> its first sample
                kept=[place * samples_per_prompt for place in shown],
                before_batch=before_batch,
            )
        scores = own_scores.of_all_processes(self.engine.gather, self.examples, samples_per_prompt)
        first_images = torch.zeros(min(N_FIRST_IMAGES, len(self.examples)), *own_images.shape[1:])
        # both in the order of `shown`, because `kept` ascends
        first_images[list(shown.values())] = own_images
        return scores, self.engine.total(first_images)  # those of other processes are zero here

    def _shown(self) -> dict[int, int]:
        """Return those of the first prompts that this process draws: place among its own -> number."""
        place_of: dict[int, int] = {}
        for place, number in enumerate(self.own_numbers):
            if number < N_FIRST_IMAGES:
                place_of.setdefault(number, place)  # padding draws the last prompt again
        return {place: number for number, place in place_of.items()}


@torch.no_grad()
def evaluate_policy(
    policy: Policy,
    examples: Sequence[Example],
    scorer: Scorer,
    judges: Judges | None,
    *,
    encoder: PromptEncoder,
    sigmas: Tensor,
    samples_per_prompt: int,
    seed: int,
    batch_size: int,
    kept: Sequence[int] | None = None,
    before_batch: Callable[[], None] = lambda: None,
) -> tuple[HeldOutScores, Tensor]:
    """Draw images for held-out prompts and score them.

    Images are scored batch by batch, and only those that are asked for stay in memory: 1,200 of 512 x 512
    pixels would take 3.8 GB.

    Args:
        policy: The policy as it is now.
        examples: Held-out examples.
        scorer: The training rewards, to compare with the judges.
        judges: Held-out judges, if there are any for this data.
        encoder: Encodes the examples; knows the size of the images.
        sigmas: Noise levels [T + 1]; steps draw no noise.
        samples_per_prompt: Images of each prompt.
        seed: Seed of the initial noise, which also depends on the prompt's id and the sample's number.
        batch_size: Images drawn together.
        kept: Rows of the table whose images are returned, ascending; None: all.
        before_batch: Called before every batch; may raise to stop.

    Returns:
        The scores, and the images [N, 3, H, W] of the rows in `kept` (samples of a prompt are rows one after
        the other).
    """
    example_of_sample = repeat_examples(examples, samples_per_prompt)
    wanted = set(range(len(example_of_sample)) if kept is None else kept)
    columns: dict[str, list[float]] = {}
    kept_images = []
    # torch.cat passes over an empty tensor of one dimension, whatever the shape of the others
    of_open_group = torch.empty(0)
    for samples, batch in sample_examples(
        policy,
        encoder,
        examples,
        sigmas,
        samples_per_prompt=samples_per_prompt,
        batch_size=batch_size,
        seed=seed,
        purpose="held-out",
        before_batch=before_batch,
    ):
        images = batch.cpu()  # the device keeps its memory for the next batch
        scores = score_columns(images, example_of_sample[samples], scorer, judges, samples_per_prompt)
        statistics = monitors.image_statistics(images)
        scores |= {f"monitor/{name}": values for name, values in statistics.items()}
        if samples_per_prompt > 1:
            pooled = torch.cat([of_open_group, _pooled(images)])
            n_whole = len(pooled) // samples_per_prompt * samples_per_prompt  # a batch may end within a group
            scores[DIVERSITY] = _diversity(pooled[:n_whole], samples_per_prompt)
            of_open_group = pooled[n_whole:]
        for name, values in scores.items():
            columns.setdefault(name, []).extend(values.tolist())
        # copies: a view would keep the whole batch
        kept_images += [images[row - samples.start].clone() for row in _between(samples, wanted)]
    returned = torch.stack(kept_images) if kept_images else torch.empty(0, 3, *encoder.size)
    return HeldOutScores.from_columns(columns, examples, samples_per_prompt), returned


def _between(samples: slice, wanted: set[int]) -> list[int]:
    # Numbers over all samples of this process, not within the batch.
    return [row for row in range(samples.start, samples.stop) if row in wanted]


def score_columns(
    images: Tensor,
    examples: Sequence[Example],
    scorer: Scorer,
    judges: Judges | None,
    group_size: int = 1,
) -> dict[str, Tensor]:
    """Return scores [B] by metric name: rewards by kind and by name, and what the judges say.

    Args:
        images: [B, 3, H, W] in [0, 1], on the CPU.
        examples: One example per image.
        scorer: The training rewards.
        judges: Held-out judges, if there are any.
        group_size: Images of one prompt in a row, which groupwise rewards compare.
    """
    scores = scorer.score(scoring_batch(images, examples), group_size)
    columns = {f"reward/{kind}": values for kind, values in scorer.by_kind(scores).items()}
    columns |= {f"score/{name}": values for name, values in scorer.by_name(scores).items()}
    if judges is not None:
        columns |= judges.columns(images, examples)
    return columns


def _pooled(images: Tensor) -> Tensor:
    """Return images averaged to DIVERSITY_PIXELS and centred, [N, D]."""
    # A smaller image stays as it is.
    side = min(DIVERSITY_PIXELS, *images.shape[2:])
    # Centred, because the cosine of two all-positive vectors is near 1 whatever they show.
    return torch.nn.functional.adaptive_avg_pool2d(images, side).flatten(1) - 0.5


def _diversity(pooled: Tensor, group_size: int) -> Tensor:
    """Return the diversity of each prompt's images [N], equal for all images of a prompt.

    It is `training.metrics.pixel_diversities` of the images averaged to DIVERSITY_PIXELS.
    """
    return monitors.in_group_diversity(pooled, group_size).repeat_interleave(group_size)
