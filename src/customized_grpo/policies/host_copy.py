"""Frozen weights that keep their place on the CPU while they are on the device.

A part that takes turns on the device would be copied there and back again. Its weights do not change, so the
way back is not needed: the copy that it came from is still right. Half of the bytes of every turn go.

The copy is not pinned: torch's pinned memory rounds each tensor up to a power of two, which can take twice
the memory of the machine that `cgrpo plan` promises.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

CPU = torch.device("cpu")


@dataclass
class _Copy:
    """A tensor on the CPU, its twin on the device, and the version of the twin that it equals."""

    tensor: Tensor
    twin: Tensor
    version: int

    def equals(self, tensor: Tensor) -> bool:
        """Return whether a tensor of the part is still the twin, and never written to."""
        return tensor is self.twin and tensor._version == self.version


class HostCopy:
    """The frozen weights of a part, on the CPU for good once it has been there.

    Args:
        part: The module. What it trains (the adapter) is moved as usual and copied both ways.
        device: Where it works.
    """

    def __init__(self, part: nn.Module, device: torch.device) -> None:
        self._part = part
        self._device = device
        self._copies: dict[str, _Copy] = {}

    def come(self) -> None:
        """Move the part to the device; its frozen weights stay on the CPU too."""
        # Taken before the move, which replaces the data of each weight.
        waiting = {name: tensor.data for name, tensor in self._frozen()}
        self._part.to(self._device)
        for name, tensor in self._frozen():
            self._copies[name] = _Copy(waiting[name], tensor, tensor._version)

    def leave(self) -> None:
        """Move the part to the CPU; frozen weights that were there before are not copied again."""
        for name, tensor in self._frozen():
            copy = self._copies.get(name)
            # An operation in place, or a part that takes another buffer, would make the copy stale.
            if copy is not None and copy.equals(tensor):
                tensor.data = copy.tensor
        self._copies.clear()  # the part holds them again, and no weight stays that it has lost
        self._part.to(CPU)

    def _frozen(self) -> Iterator[tuple[str, Tensor]]:
        """Return the weights and buffers that training leaves alone, tied ones once."""
        for name, parameter in self._part.named_parameters():
            # peft's second adapters are frozen too, but get new values
            if not parameter.requires_grad and "lora_" not in name:
                yield name, parameter
        yield from self._part.named_buffers()
