"""The time of an iteration on a card that is known by its rate of bf16 products and its memory bandwidth.

Two sums, as neither hides behind the other: products at a share of the card's rate, and everything between
them (norms, casts, activations, residuals), which computes next to nothing and moves bytes at a share of the
bandwidth. A quantised base is dequantised by every call, which moves bytes as well. Text encoders,
autoencoder, rewards, transfers and evaluations are left out: some percent, except for rewards that are slow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from customized_grpo.errors import UserError
from customized_grpo.planning.work import other_models, rollout_calls

if TYPE_CHECKING:
    from customized_grpo.config import Config
    from customized_grpo.planning.work import Batches

PRODUCTS_REACHED = 0.7
"""Share of the published rate that large bf16 products and attention reach; an assumption."""
BANDWIDTH_REACHED = 0.8
"""Share of the published bandwidth that element-wise kernels reach; an assumption."""

UNPACKING_BYTES = {"nf4": 2.5, "int8": 19.0, "fp8": 19.0}
"""Bytes read and written to unpack a weight: nf4 at once, the others in fp32, scaled, then rounded."""


@dataclass(frozen=True)
class Card:
    """A GPU, by its maker's numbers.

    Attributes:
        name: What it is called.
        tflops: 10^12 operations a second of dense bf16 products that are added up in fp32.
        bandwidth: 10^9 bytes a second of its memory.
        gib: Memory that torch can use, in GiB; None: not known.
    """

    name: str
    tflops: float
    bandwidth: float
    gib: float | None = None


CARDS = {
    "3090": Card("GeForce RTX 3090", 71, 936, 23.6),
    "4090": Card("GeForce RTX 4090", 165.2, 1008, 23.6),
    "5090": Card("GeForce RTX 5090", 209.5, 1792, 31.3),
    "a6000": Card("RTX A6000", 154.8, 768, 47.5),
    "l40s": Card("L40S", 362, 864, 44.4),
    "a100": Card("A100 SXM 80 GB", 312, 2039, 79.2),
    "h100": Card("H100 SXM", 989, 3350, 79.1),
    "h200": Card("H200 SXM", 989, 4800, 139.7),
}
"""Rates without sparsity and bandwidths from NVIDIA's whitepapers of GA102 (3090, A6000), Ada (4090) and RTX
Blackwell (5090), and from the data sheets of the others."""


def find_card(text: str) -> Card:
    """Return a card by its name, or by its numbers: "165,1008" for 165 TFLOP/s and 1008 GB/s.

    Raises:
        UserError: It is neither.
    """
    card = CARDS.get(text.lower())
    if card is not None:
        return card
    tflops, comma, bandwidth = text.partition(",")
    try:
        numbers = (float(tflops), float(bandwidth))
    except ValueError:
        numbers = (0.0, 0.0)
    if not comma or not all(math.isfinite(number) and number > 0 for number in numbers):
        raise UserError(
            f"--device {text!r}: no card of that name",
            hint=f"Known are {', '.join(CARDS)}; another one is given by its dense bf16 rate in TFLOP/s and "
            "its memory bandwidth in GB/s, such as 165,1008.",
        )
    return Card(f"a card of {numbers[0]:g} TFLOP/s and {numbers[1]:g} GB/s", *numbers)


@dataclass(frozen=True)
class Duration:
    """The time of an iteration of one process, in seconds.

    Attributes:
        products: Of matrix products, convolutions and attention.
        between: Of what comes between them.
        dequantisation: Of weights that are unpacked for every call.
    """

    products: float
    between: float
    dequantisation: float

    @property
    def iteration(self) -> float:
        """Return the time of an iteration."""
        return self.products + self.between + self.dequantisation

    @property
    def hours_per_100(self) -> float:
        """Return the hours of 100 iterations."""
        return self.iteration * 100 / 3600


def predict_duration(card: Card, *, operations: float, moved: float, unpacked: float) -> Duration:
    """Return the time of an iteration's passes through the transformer on a card.

    Args:
        card: The card.
        operations: Of products, in all passes of a process.
        moved: Bytes that are read and written between them.
        unpacked: Bytes that dequantisation reads and writes.
    """
    # Makers count GB by 10^9 bytes, memory here by 2^30.
    bytes_per_second = BANDWIDTH_REACHED * card.bandwidth * 1e9
    return Duration(
        products=operations / (PRODUCTS_REACHED * card.tflops * 1e12),
        between=moved / bytes_per_second,
        dequantisation=unpacked / bytes_per_second,
    )


def dequantised_bytes(config: Config, batches: Batches, calls: int, quantised_weights: int) -> int:
    """Return the bytes that dequantisation moves in an iteration of one process.

    Every call of the transformer unpacks all of its weights, and so does every backward pass: also those of
    the KL reference, and of the old policy of NFT and AWM.

    Args:
        config: The recipe.
        batches: How its samples are divided.
        calls: Calls of the transformer for one velocity.
        quantised_weights: Number of weights that are packed.
    """
    model = config.model
    if model.quantisation is None:
        return 0
    # Unpacked forward and backward; once more for recomputing, and for each other model that is asked.
    per_micro_batch = 2 + model.gradient_checkpointing + other_models(config.train)
    further = batches.further_prompts * math.ceil(config.train.group_size / config.rollout.batch_size)
    rollout = (batches.rollout_batches + further) * rollout_calls(config)
    update = batches.optimizer_steps * batches.micro_batches_per_step * per_micro_batch
    return int(calls * (rollout + update) * quantised_weights * UNPACKING_BYTES[model.quantisation])
