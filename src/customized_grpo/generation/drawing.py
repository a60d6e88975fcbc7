"""Images of any generator, drawn as training's evaluation draws them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from customized_grpo.policies.out_of_memory import explained
from customized_grpo.rollout.encoding import PromptEncoder
from customized_grpo.rollout.ode import sample_examples

if TYPE_CHECKING:
    from customized_grpo.data.examples import Example
    from customized_grpo.generation.opening import Generator


def draw(generator: Generator, rows: Sequence[Example], seed: int, count: int = 1) -> Iterator[Tensor]:
    """Draw `count` images of every row, as training's evaluation draws them.

    The noise of an image depends on (seed, id of its row, its number) alone, and is that of the evaluation: a
    run's held-out rows with the seed of its recipe give the evaluation's own images.

    Args:
        generator: From `open_generator`.
        rows: Prompts with their references, which are taken at the size they come in.
        seed: Of the noise.
        count: Images of each row.

    Yields:
        Images [3, H, W] in [0, 1], on the CPU: all of the first row, then of the second, ...

    Raises:
        UserError: They do not fit the memory.
    """
    drawn = sample_examples(
        generator.policy,
        PromptEncoder(generator.policy, generator.size),
        rows,
        generator.sigmas(),
        samples_per_prompt=count,
        batch_size=generator.batch_size,
        seed=seed,
        # The evaluation's noise: same seed, id and number, same image as there.
        purpose="held-out",
    )
    with explained(generator.model, {"batch_size": generator.batch_size}, training=False):
        for _, images in drawn:
            # one transfer for the batch, not one for each image
            yield from images.cpu()
