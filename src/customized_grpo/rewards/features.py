"""Features that are computed once: a cache by content, and the hash of the weights that make them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from cachetools import LRUCache
from torch import Tensor, nn

CHUNK = 64  # images encoded together


class FeatureCache:
    """LRU cache of features, keyed by the hash of what they are computed from.

    Args:
        capacity: Entries kept.
    """

    def __init__(self, capacity: int) -> None:
        self._entries: LRUCache[bytes, Tensor] = LRUCache(capacity)

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, keys: Sequence[bytes], compute: Callable[[list[int]], Tensor]) -> Tensor:
        """Return features [len(keys), D], computing each distinct missing key once, by itself.

        Products of another batch size round differently. Computed alone, a feature does not depend on what
        else was missing, so a score depends neither on earlier scores nor on whether a run was resumed.

        Args:
            keys: Hashes of the contents; they may repeat.
            compute: Maps positions in `keys` to features [number of positions, D].
        """
        features: dict[bytes, Tensor] = {}
        for position, key in enumerate(keys):
            if key in features:
                continue
            features[key] = self._entries[key] if key in self._entries else compute([position])[0]
        # Stored only now: one call may have more distinct keys than the cache has places.
        for key in keys:
            self._entries[key] = features[key]
        return torch.stack([features[key] for key in keys])


def content_key(*tensors: Tensor) -> bytes:
    """Return the sha256 of shapes, dtypes and values."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        # as bytes: numpy has no bf16
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()


def weights_hash(model: nn.Module) -> str:
    """Return the sha256 of a model's weights, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + content_key(tensor))
    return digest.hexdigest()
