"""How the C library keeps the memory of tensors on a CPU from one iteration for the next.

glibc hands a large freed block back to the system at once, and asks for it again in the next iteration. The
graphs that a rollout keeps for its update are hundreds of such blocks: the system clears each page anew. The
settings below (mallopt(3) of glibc) keep freed memory in the process. No number of a run depends on them.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Mapping

import torch

TRIM_THRESHOLD = -1, 2**31 - 1
"""mallopt's M_TRIM_THRESHOLD: bytes that may lie free at the end of the heap; the largest that it takes."""

MMAP_THRESHOLD = -3, 32 * 2**20
"""mallopt's M_MMAP_THRESHOLD: bytes from which a block is the system's again when it is freed; the largest
that it takes on 64 bits. Larger ones are rare, and would leave gaps."""

OWN_SETTINGS = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD")
"""Variables by which a user has chosen how memory is kept, or another allocator."""


def keep_freed_memory(device: torch.device, environment: Mapping[str, str] = os.environ) -> bool:
    """Have this process keep the memory of freed tensors, unless the user has settings of their own.

    Only on a CPU, and for the rest of the process. The peak of memory stays within some per cent.

    Args:
        device: Where tensors are.
        environment: Where a user's own settings would be.

    Returns:
        Whether it was set; not outside of Linux with glibc.
    """
    if device.type != "cpu" or any(environment.get(name) for name in OWN_SETTINGS):
        return False
    if platform.libc_ver()[0] != "glibc":
        return False
    set_option = ctypes.CDLL(None).mallopt
    # 1: taken. Without the first of them the second would only move the blocks to be handed back elsewhere.
    return bool(set_option(*TRIM_THRESHOLD) == 1 and set_option(*MMAP_THRESHOLD) == 1)


class _MallocInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc: ten numbers of bytes or blocks, by their names there."""

    _names = [
        "arena",
        "ordblks",
        "smblks",
        "hblks",
        "hblkhd",
        "usmblks",
        "fsmblks",
        "uordblks",
        "fordblks",
        "keepcost",
    ]
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


def kept_bytes() -> int:
    """Return the bytes of freed memory that this process keeps, for which it need not ask the system.

    0 where the C library does not tell: outside of Linux, and in glibc before 2.33.
    """
    if platform.libc_ver()[0] != "glibc":
        return 0
    inform = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if inform is None:
        return 0
    inform.restype = _MallocInfo
    return int(inform().fordblks)  # of freed blocks that the process still has
