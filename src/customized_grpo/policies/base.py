"""What the rest of the package knows about a generator: its conditioning and one interface.

Shapes: B samples, N image tokens of one sample, C channels of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

Indices = slice | Tensor | Sequence[int]


@dataclass(frozen=True)
class Conditioning:
    """Everything `Policy.velocity` needs besides the noisy sample and the noise level.

    All samples of one conditioning belong to one bucket: same size, same number and sizes of references.

    Attributes:
        per_sample: Tensors whose dimension 0 is the sample, such as prompt embeddings and reference tokens.
        shared: Tensors that are equal for every sample of the bucket, such as position ids.
        height: Height of the images, in pixels.
        width: Width of the images, in pixels.
    """

    per_sample: dict[str, Tensor]
    shared: dict[str, Tensor]
    height: int
    width: int

    def __post_init__(self) -> None:
        if not self.per_sample:
            raise ValueError("a conditioning needs at least one per-sample tensor")
        sizes = {name: len(tensor) for name, tensor in self.per_sample.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"per-sample tensors disagree about the number of samples: {sizes}")

    def __len__(self) -> int:
        return len(next(iter(self.per_sample.values())))

    def index(self, indices: Indices) -> Conditioning:
        """Return the samples that `indices` selects, in that order; a slice is a view."""
        rows = indices if isinstance(indices, slice | Tensor) else torch.as_tensor(indices, dtype=torch.long)
        chosen = {name: tensor[rows] for name, tensor in self.per_sample.items()}
        return Conditioning(chosen, self.shared, self.height, self.width)

    def repeat_interleave(self, n: int) -> Conditioning:
        """Return every sample n times in a row: the groups of GRPO, from one encoding per prompt."""
        repeated = {name: tensor.repeat_interleave(n, dim=0) for name, tensor in self.per_sample.items()}
        return Conditioning(repeated, self.shared, self.height, self.width)

    def to(self, device: torch.device | str) -> Conditioning:
        """Return the same conditioning on another device; dtypes stay."""
        return Conditioning(
            {name: tensor.to(device) for name, tensor in self.per_sample.items()},
            {name: tensor.to(device) for name, tensor in self.shared.items()},
            self.height,
            self.width,
        )

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Join conditionings of one bucket.

        Raises:
            ValueError: The parts are of different buckets. Models take position ids from one row for the
                whole batch, so that joining them anyway would be wrong without any sign of it.
        """
        if not parts:
            raise ValueError("nothing to join")
        first = parts[0]
        for number, part in enumerate(parts[1:], start=1):
            if (part.height, part.width) != (first.height, first.width):
                raise ValueError(
                    f"part {number} is {part.height}x{part.width}, part 0 {first.height}x{first.width}: "
                    "samples of one batch must have one size"
                )
            if part.shared.keys() != first.shared.keys() or part.per_sample.keys() != first.per_sample.keys():
                raise ValueError(f"part {number} was not encoded by the same policy as part 0")
            for name, tensor in part.shared.items():
                if not torch.equal(tensor, first.shared[name]):
                    raise ValueError(f"part {number} has other {name} than part 0: not the same bucket")
        joined = {name: torch.cat([part.per_sample[name] for part in parts]) for name in first.per_sample}
        return Conditioning(joined, first.shared, first.height, first.width)


class Policy(Protocol):
    """A generator that is tuned: x_s = (1 - s) x0 + s noise, v = noise - x0, s = sigma falls from 1 to 0."""

    @property
    def device(self) -> torch.device:
        """Return where the model runs."""
        ...

    def encoding(self) -> AbstractContextManager[None]:
        """Have the encoders at hand inside the block, for several calls of `encode`."""
        ...

    def encode(
        self, prompts: Sequence[str], references: Sequence[Sequence[Tensor]], height: int, width: int
    ) -> Conditioning:
        """Encode prompts and references [3, h, w] in [0, 1] of one bucket, without gradients."""
        ...

    def n_tokens(self, height: int, width: int) -> int:
        """Return N, the number of tokens of an image."""
        ...

    def noise(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        """Return initial noise [B, N, C], fp32, one generator per sample: independent of the batch."""
        ...

    def sigmas(self, steps: int, n_tokens: int) -> Tensor:
        """Return noise levels [steps + 1], fp32, on the CPU, falling to 0, by the checkpoint's scheduler."""
        ...

    def velocity(self, x: Tensor, sigma: float | Tensor, conditioning: Conditioning) -> Tensor:
        """Return v [B, N, C], fp32, of x [B, N, C], fp32, at sigma (a number or [B]); the only model call."""
        ...

    def decode(self, x: Tensor, height: int, width: int) -> Tensor:
        """Return images [B, 3, height, width] in [0, 1], fp32, of clean tokens [B, N, C]."""
        ...

    def trainable_parameters(self) -> list[torch.nn.Parameter]:
        """Return the adapter's parameters, always in the same order."""
        ...

    def reference(self) -> AbstractContextManager[None]:
        """Switch the adapter off inside the block: the frozen base. Gradients are refused inside."""
        ...

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Return copies of the adapter's tensors by name."""
        ...

    def load_adapter_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Overwrite the adapter with tensors from `adapter_tensors`."""
        ...

    def save_lora(self, folder: Path) -> Path:
        """Write the adapter in diffusers' format into the folder and return the file."""
        ...

    def load_lora(self, path: Path) -> None:
        """Overwrite the adapter with a file, or the file in a folder, from `save_lora`."""
        ...
