"""Which device a command runs on, said at its start, and why it is the CPU where a GPU seems to be there."""

from __future__ import annotations

import os
import re
import shutil
import sys
import warnings
from pathlib import Path

import psutil
import torch

from customized_grpo.engine.environment import numeric_variables
from customized_grpo.engine.host_memory import kept_bytes

DRIVER = Path("/proc/driver/nvidia/version")
AMD_DRIVER = Path("/dev/kfd")
CGROUP = Path("/sys/fs/cgroup")
"""Where a container finds its limit of memory, in its version 2."""
CPU_INFO = Path("/proc/cpuinfo")
BF16_FLAGS = re.compile(r"\b(avx512_bf16|amx_bf16|bf16)\b")
"""Flags of /proc/cpuinfo for products of bf16 numbers: of x86 the first two, of Arm the last."""


def announce(device: torch.device, *, requested: str, precision: str, is_embedded: bool) -> None:
    """Print the device on stderr, and what makes it a slow one.

    Args:
        device: Where the command runs.
        requested: The recipe's model.device.
        precision: The recipe's model.precision.
        is_embedded: Whether the model comes with the package, which a CPU can train.
    """
    _say(f"device: {describe(device)}")
    if device.type == "cpu" and requested == "auto":
        reason = why_no_accelerator()
        if reason is not None:
            _say(f"warning: this runs on the CPU although a GPU seems to be there: {reason}")
        elif not is_embedded:
            _say(
                "warning: no accelerator was found, so this runs on the CPU, which is far too slow for a "
                "model of billions of parameters; if it is meant, set model.device=cpu"
            )
    if device.type == "cpu" and precision == "bf16" and has_bf16_instructions() is False:
        _say(
            "note: this CPU has no bf16 instructions and emulates them, about ten times slower than fp32; "
            "model.precision=fp32 is faster here"
        )
    for name, value in numeric_variables().items():
        _say(f"note: {name}={value} in the environment changes numbers")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def describe_with_reason(device: torch.device, *, requested: str) -> str:
    """Return a device in words, and why it is the CPU if nobody asked for that.

    Args:
        device: The device.
        requested: The recipe's model.device.
    """
    words = describe(device)
    if device.type == "cpu" and requested == "auto":
        return f"{words}; no accelerator: {why_no_accelerator() or 'none was found'}"
    return words


def describe(device: torch.device) -> str:
    """Return a device in words, with the version of torch."""
    torch_version = f"torch {torch.__version__}"
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        gib = properties.total_memory / 2**30
        return f"{device} ({properties.name}, {gib:.0f} GiB), {torch_version}"
    if device.type == "cpu":
        n_threads = torch.get_num_threads()
        return f"cpu ({n_threads} thread{'s' if n_threads > 1 else ''}), {torch_version}"
    return f"{device}, {torch_version}"


def why_no_accelerator() -> str | None:
    """Return why torch cannot use a GPU that seems to be there; None if none seems to be."""
    has_nvidia = DRIVER.exists() or shutil.which("nvidia-smi") is not None
    if not has_nvidia and not AMD_DRIVER.exists():
        return None
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides it"
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is a build for CPUs; install one for your driver (pytorch.org)"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the same words as the error's
            torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return f"{str(error).strip().splitlines()[0]} (torch {torch.__version__})"
    return "torch finds a driver, but no device"


def has_bf16_instructions() -> bool | None:
    """Return whether the CPU multiplies bf16 numbers by itself; None where nothing says so."""
    try:
        return BF16_FLAGS.search(CPU_INFO.read_text(errors="replace")) is not None
    except OSError:
        return None


def free_bytes(device: torch.device) -> int:
    """Return the bytes that tensors on a device can still take, those that torch holds in reserve included.

    On a CPU the limit of a container counts, with what it has cached as taken; and what this process keeps of
    freed memory is free, as torch's reserve is on a GPU.
    """
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + reserve)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    free = psutil.virtual_memory().available
    try:
        limit = int((CGROUP / "memory.max").read_text())
        free = min(free, limit - int((CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # no container, or one without a limit: "max"
        pass
    return int(free) + kept_bytes()
