"""Batches whose prompts have texts of several lengths, for transformers that padding would change.

Some transformers take no mask of the text, or place the image behind it: a padded text gives another
velocity. Their policies call the transformer once for each length in a batch, with the text alone. So a
sample depends on its own prompt, not on its batch. The samples of a group have one prompt, so most batches
have one length.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from customized_grpo.policies.conditioning import Conditioning

TEXT_LENGTH = "_length"
"""End of the names under which a conditioning has the lengths of its texts, per sample."""

Predict = Callable[[Tensor, Tensor, Conditioning, int], Tensor]
"""Maps x [b, N, C], levels [b], conditioning of b samples, and their one length of text to v [b, N, C]."""


class HostValues:
    """Values of small tensors on the host; each is read once, as a reading waits for all work there."""

    def __init__(self) -> None:
        self._values = WeakIdKeyDictionary()

    def __call__(self, tensor: Tensor) -> list[int]:
        """Return the values of a tensor that is never written to."""
        if tensor not in self._values:
            self._values[tensor] = tensor.tolist()
        values: list[int] = self._values[tensor]
        return values


def by_length(
    predict: Predict, x: Tensor, level: Tensor, conditioning: Conditioning, lengths: list[int]
) -> Tensor:
    """Return velocities [B, N, C] of samples whose texts have these lengths [B], each length in one call.

    The calls come in the order of the lengths, and a length's samples in the order of the batch.
    """
    distinct = sorted(set(lengths))
    if len(distinct) == 1:
        return predict(x, level, conditioning, distinct[0])
    velocities = []
    order: list[int] = []
    for length in distinct:
        rows = [row for row, own in enumerate(lengths) if own == length]
        velocities.append(predict(x[rows], level[rows], conditioning.index(rows), length))
        order += rows
    # place in the calls -> row of the batch, turned round by argsort
    back = torch.tensor(order, device=x.device).argsort()
    return torch.cat(velocities)[back]
