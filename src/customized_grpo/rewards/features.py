"""Features that are computed once: a cache by content, and the hash that says which weights made them."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

CHUNK = 64  # pictures encoded together


class FeatureCache:
    """The features of what was seen lately, by content.

    Args:
        capacity: Entries kept; the one that was not used for longest goes first.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, not {capacity}")
        self.capacity = capacity
        self._entries: OrderedDict[bytes, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, keys: Sequence[bytes], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """Return features [len(keys), D], computing each distinct missing key once, by itself.

        Products of another batch size round differently. Computed alone, a feature never depends on what else
        was missing then, so neither does a score on what was scored before, or on whether a run was resumed.

        Args:
            keys: Hashes of the contents; they may repeat.
            compute: Maps positions in `keys` to features [number of positions, D].
        """
        missing = {key: position for position, key in enumerate(keys) if key not in self._entries}
        found = {key: self._entries[key] for key in keys if key not in missing}
        found |= {key: compute([position])[0] for key, position in missing.items()}
        for key in keys:
            self._entries[key] = found[key]
            self._entries.move_to_end(key)
        while len(self._entries) > self.capacity:
            self._entries.popitem(last=False)
        return torch.stack([found[key] for key in keys])


def content_key(*tensors: Tensor) -> bytes:
    """Return the sha256 of shapes, dtypes and values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()


def weights_hash(model: nn.Module) -> str:
    """Return the sha256 of a model's weights, by name: equal weights, equal hash, wherever they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + content_key(tensor))
    return digest.hexdigest()
