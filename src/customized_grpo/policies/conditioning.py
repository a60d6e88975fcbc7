"""Encoded prompts and references: the input of a generator apart from noisy sample and noise level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Indices = slice | Tensor | Sequence[int]


@dataclass(frozen=True)
class Conditioning:
    """The input of `Policy.velocity` apart from the noisy sample and the noise level.

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
        # shared tensors belong to the bucket, not to a row, so they are passed on whole
        # A slice stays one, as a view costs nothing; a list of numbers copies.
        rows = indices if isinstance(indices, slice | Tensor) else torch.as_tensor(indices, dtype=torch.long)
        selected = {name: tensor[rows] for name, tensor in self.per_sample.items()}
        return Conditioning(selected, self.shared, self.height, self.width)

    def repeat_interleave(self, n: int) -> Conditioning:
        """Return every sample n times in a row: the groups of GRPO, from one encoding per prompt."""
        # prompt -> n samples of it in a row, the order in which groups are read everywhere
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

    def share(self, other: Conditioning) -> Conditioning:
        """Return this conditioning with the other's own shared tensors where they are equal to its own."""
        shared = dict(self.shared)
        for name, tensor in other.shared.items():
            if name in shared and torch.equal(shared[name], tensor):
                shared[name] = tensor
        return Conditioning(self.per_sample, shared, self.height, self.width)

    @staticmethod
    def cat(parts: Sequence[Conditioning]) -> Conditioning:
        """Join conditionings of one bucket.

        Raises:
            ValueError: The parts are of different buckets. Models take the position ids of one sample for
                the whole batch, so joining them would give wrong images without an error.
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
                # A comparison of numbers, not of sizes: two buckets can have ids of the same shape. Within a
                # bucket they are mostly the same object, see `share`: a comparison waits for the device.
                if tensor is not first.shared[name] and not torch.equal(tensor, first.shared[name]):
                    raise ValueError(f"part {number} has other {name} than part 0: not the same bucket")
        joined = {}
        for name in first.per_sample:
            joined[name] = torch.cat([part.per_sample[name] for part in parts])
        return Conditioning(joined, first.shared, first.height, first.width)


def reference_shapes(references: Sequence[Sequence[Tensor]], may_be_none: bool) -> list[tuple[int, int]]:
    """Return the height and width of each reference of a sample, which must be the same for every sample.

    Args:
        references: Those of each sample.
        may_be_none: Whether samples without references are right.

    Raises:
        ValueError: The samples are not of one bucket, or a reference is not an fp32 image in [0, 1].
    """
    expected = [tuple(image.shape) for image in references[0]]
    if not expected and not may_be_none:
        raise ValueError("a sample has no references, and this model does not draw from a prompt alone")
    for number, images in enumerate(references):
        shapes = [tuple(image.shape) for image in images]
        if shapes != expected:
            raise ValueError(
                f"sample {number} has references {shapes}, sample 0 has {expected}: "
                "a batch needs as many each, of the same sizes"
            )
        for image in images:
            is_image = image.dtype == torch.float32 and image.ndim == 3 and image.shape[0] == 3
            if not is_image or not bool(((image >= 0) & (image <= 1)).all()):
                raise ValueError(f"sample {number}: a reference is not an fp32 image [3, h, w] in [0, 1]")
    return [(shape[1], shape[2]) for shape in expected]
