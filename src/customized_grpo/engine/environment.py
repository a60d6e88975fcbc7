"""Environment variables that start processes, and those by which libraries would change numbers unasked.

A recipe says everything that decides numbers, so accelerate's own variables are taken out of the environment
of this process: `ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4`, say, left by another program, would divide every
gradient by four. Variables of the libraries below accelerate cannot be taken back once those are loaded: they
are read out, so that a run can say when they change.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from dataclasses import dataclass

from customized_grpo.errors import UserError

LAUNCH_VARIABLES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that torchrun and `accelerate launch` set in each process that they start."""

MPI_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Numbers of processes by launchers of MPI, which accelerate would follow as well."""

ACCELERATE_PREFIXES = ("ACCELERATE_", "FSDP_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")
"""Variables of accelerate: plugins, precision, compilation, accumulation, device."""

NEUTRAL = ("", "0", "no", "false", "none", "default")
"""Values that `accelerate launch` sets for what is switched off, in lower case."""

NUMERIC_VARIABLES = (
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
    "ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_DEFAULT_FPMATH_MODE",
    "DIFFUSERS_ATTN_BACKEND",
)
"""Variables that give matrix products or attention another precision or order of sums."""

DETERMINISTIC_CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
"""Variable and value with which products on CUDA repeat bit for bit (NVIDIA's documentation of cuBLAS)."""

ALLOCATOR_VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Settings of torch's allocator, by their name since torch 2.9 and before."""

EXPANDABLE = "expandable_segments:True"
"""Without it, parts of different sizes that take turns on a device leave gaps that none of them fits."""

BLOCKING_WAIT = "TORCH_NCCL_BLOCKING_WAIT"


LAUNCHERS = "Start with torchrun or accelerate launch"
ALONE = "For one process alone: `unset WORLD_SIZE`."


@dataclass(frozen=True)
class Launch:
    """The place of this process among those that a launcher has started.

    Attributes:
        world_size: Number of processes.
        rank: Number of this one.
        address: Where they meet, "host:port"; empty for one process alone.
    """

    world_size: int = 1
    rank: int = 0
    address: str = ""

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> Launch:
        """Read the launcher's variables, and remove them where they name one process or none.

        Left in place they would make accelerate wait for processes that nobody has started.

        Raises:
            UserError: They contradict each other, or only a part of them is there.
        """
        world_size = _integer(environment, "WORLD_SIZE")
        if world_size is None:
            _refuse_mpi(environment)
        if world_size is None or world_size == 1:
            for name in (*LAUNCH_VARIABLES, *MPI_SIZES):
                environment.pop(name, None)
            return cls()
        missing = [name for name in LAUNCH_VARIABLES if not environment.get(name, "").strip()]
        if missing:
            raise UserError(
                f"WORLD_SIZE={world_size} in the environment says that {world_size} processes train "
                f"together, but {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set",
                hint=f"{LAUNCHERS}, which set all of them. {ALONE}",
            )
        numbers = {name: _integer(environment, name) for name in ("RANK", "LOCAL_RANK", "MASTER_PORT")}
        rank = numbers["RANK"] or 0
        if rank >= world_size:
            raise UserError(
                f"RANK={rank} in the environment is not below WORLD_SIZE={world_size}",
                hint=f"{LAUNCHERS}. {ALONE}",
            )
        return cls(world_size, rank, f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}")


def _refuse_mpi(environment: MutableMapping[str, str]) -> None:
    """Refuse to be one of several processes of MPI, which would all train the same run.

    Raises:
        UserError: A launcher of MPI has started several.
    """
    for name in MPI_SIZES:
        if (_integer(environment, name) or 1) > 1:
            raise UserError(
                f"{name}={environment[name]} in the environment: MPI has started several processes, which "
                "would not train together",
                hint=f"{LAUNCHERS}, or start one process without mpirun.",
            )


def _integer(environment: MutableMapping[str, str], name: str) -> int | None:
    """Return a variable as a number of at least 0; None if it is empty or not set.

    Raises:
        UserError: It is something else.
    """
    text = environment.get(name, "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or (name == "WORLD_SIZE" and int(text) == 0):
        raise UserError(
            f"{name}={text} in the environment is neither a number of processes nor the number of a process",
            hint=f"A launcher such as torchrun sets it. For one process alone: `unset {name}`.",
        )
    return int(text)


def remove_accelerate_variables(environment: MutableMapping[str, str] = os.environ) -> list[str]:
    """Take accelerate's variables out of the environment.

    Returns:
        Those that would have changed something, "NAME=value", for a message.
    """
    names = sorted(name for name in environment if name.startswith(ACCELERATE_PREFIXES))
    effective = []
    for name in names:
        value = environment.pop(name)
        if value.strip().lower() not in NEUTRAL:
            effective.append(f"{name}={value}")
    return effective


def numeric_variables(environment: MutableMapping[str, str] = os.environ) -> dict[str, str]:
    """Return the variables in the environment by which a library computes with other numbers."""
    return {name: environment[name] for name in NUMERIC_VARIABLES if environment.get(name)}


def prepare_cuda(torch_version: str, environment: MutableMapping[str, str] = os.environ) -> None:
    """Set variables that CUDA's libraries read when they start; the user's own values stay.

    Args:
        torch_version: Of the installed torch, which decides a name.
        environment: Where to set them.
    """
    environment.setdefault(*DETERMINISTIC_CUBLAS)
    if not any(name in environment for name in ALLOCATOR_VARIABLES):
        major, minor, *_ = torch_version.split(".")
        is_new = (int(major), int(minor)) >= (2, 9)
        environment[ALLOCATOR_VARIABLES[0 if is_new else 1]] = EXPANDABLE


def raise_from_nccl(environment: MutableMapping[str, str] = os.environ) -> None:
    """Have a broken or late exchange between accelerators raise in Python.

    Otherwise a thread of NCCL ends the process, without a message that says what to do. Exchanges then hold
    up the CPU, which does not matter where there are a few in an iteration.
    """
    environment.setdefault(BLOCKING_WAIT, "1")
