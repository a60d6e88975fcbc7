"""`cgrpo env`: what a bug report needs to know about this machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from customized_grpo.cli.common import JsonFile, table, write_json_file
from customized_grpo.engine.environment import (
    ALLOCATOR_VARIABLES,
    DETERMINISTIC_CUBLAS,
    LAUNCH_VARIABLES,
    NUMERIC_VARIABLES,
)

OPTIONAL = (
    "bitsandbytes",
    "torchao",
    "onnxruntime",
    "fastapi",
    "uvicorn",
    "ray",
    "pyarrow",
    "tensorboard",
    "wandb",
    "trackio",
    "mlflow-skinny",
    "pillow-heif",
    "torchvision",
)
"""Distributions that a part of the package uses or, torchvision, trips over."""

VARIABLES = (
    *LAUNCH_VARIABLES,
    *NUMERIC_VARIABLES,
    *ALLOCATOR_VARIABLES,
    DETERMINISTIC_CUBLAS[0],
    "CUDA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_HUB_CACHE",
    "CGRPO_TRUST",
)
"""Variables that decide numbers, devices or where files are sought; none of them holds a secret."""


def env(json: JsonFile = None) -> None:
    """Print what a bug report needs.

    Versions, hardware, and the variables that decide numbers, devices and folders. Nothing is sent anywhere,
    and no token or password is printed.

    For example: cgrpo env > environment.txt
    """
    facts = environment_facts()
    write_json_file(json, facts)
    print(table([(name, value or "-") for name, value in facts.items()]))


def environment_facts() -> dict[str, str]:
    """Return names and values that describe where the package runs; a value may be empty."""
    import psutil

    from customized_grpo.engine.device import has_bf16_instructions, why_no_accelerator
    from customized_grpo.runs.folder import versions

    found = versions()
    # popped, because what is left at the end are versions of libraries, one line each
    git = found.pop("git")
    commit = f" ({git['commit'][:10]}{', modified' if git['modified'] else ''})" if git else ""
    # the cores that this process may use, fewer in a container; macOS does not tell them
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    bf16 = {True: "yes", False: "emulated, about ten times slower than fp32", None: "unknown"}
    facts = {
        "customized_grpo": f"{found.pop('customized_grpo')}{commit}",
        "python": f"{found.pop('python')}, {platform.python_implementation()}",
        "platform": found.pop("platform"),
        "cpu": f"{_cpu_name()}, {cores} cores here",
        "cpu bf16": bf16[has_bf16_instructions()],
        "memory": f"{psutil.virtual_memory().total / 2**30:.1f} GiB",
        **_accelerators(),
    }
    reason = why_no_accelerator()
    if reason is not None and "gpu 0" not in facts:
        facts["gpu"] = f"not used: {reason}"
    # the libraries that are always there, then those that may be missing
    facts |= {name: str(version) for name, version in found.items()}
    facts |= {name: _installed(name) for name in OPTIONAL}
    facts |= {name: os.environ[name] for name in VARIABLES if name in os.environ}
    return facts


def _accelerators() -> dict[str, str]:
    """Return a line for each GPU that torch can use, or one that says that there is none."""
    import torch

    if not torch.cuda.is_available():
        is_apple = torch.backends.mps.is_available()
        return {"gpu": "mps" if is_apple else "none"}
    gpus = {}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gib = properties.total_memory / 2**30
        compute = f"{properties.major}.{properties.minor}"
        gpus[f"gpu {index}"] = f"{properties.name}, {gib:.1f} GiB, compute {compute}"
    # a build of torch has one of the two
    gpus["cuda"] = str(torch.version.cuda or torch.version.hip)
    return gpus


def _cpu_name() -> str:
    """Return the processor's name where the system tells it, else its architecture."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _installed(distribution: str) -> str:
    """Return the version of a distribution; empty if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
