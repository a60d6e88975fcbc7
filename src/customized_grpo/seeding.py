"""Stateless randomness: every generator is a pure function of (run seed, keys).

Nothing draws from a global generator, so a resumed run and a run on more processes draw the same numbers
without any random state being saved.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(seed: int, *keys: int | str) -> int:
    """Return a 63-bit seed for one purpose, the same on every platform.

    Args:
        seed: The run's seed.
        keys: What the numbers are for, for example ("rollout", iteration, prompt_id, sample).
            Integers and strings with the same text are different keys.
    """
    text = repr((int(seed), *keys)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


def generator(seed: int, *keys: int | str) -> torch.Generator:
    """Return a CPU generator seeded with `derive_seed(seed, *keys)`.

    CPU on purpose: the numbers then do not depend on the accelerator.
    """
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, *keys))
