"""Two hosts are two processes: network namespaces joined by a cable stand for hosts, torchrun meets across.

Each namespace has a network stack of its own: the processes can only talk over the pair of interfaces.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from customized_grpo.reporting.metrics import read_metrics
from customized_grpo.runs.checkpoints import CheckpointStore
from forked import cgrpo
from processes import child_environment, finish

pytestmark = pytest.mark.slow

ADDRESSES = ["10.213.7.1", "10.213.7.2"]
RECIPE = ["train.iterations=1", "train.group_size=2", "rollout.steps=3", "run.process_timeout_s=60.0"]


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=20)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Names of two namespaces that reach each other, and nothing else."""
    if shutil.which("ip") is None:
        pytest.skip("needs the command ip (iproute2)")
    names = [f"cgrpo{os.getpid()}{end}" for end in "ab"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "cable0", "netns", names[1])
        for name, address in zip(names, ADDRESSES, strict=True):
            ip("-n", name, "addr", "add", f"{address}/24", "dev", "cable0")
            for interface in ("cable0", "lo"):
                ip("-n", name, "link", "set", interface, "up")
        yield names
    except subprocess.CalledProcessError as error:
        pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
    finally:
        for name in names:  # takes its end of the cable along
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=20)


def start(host: str, rank: int, folder: Path) -> subprocess.Popen[str]:
    """Start torchrun on one of the hosts, as a user would on each."""
    return subprocess.Popen(
        [
            *("ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run"),
            *("--nnodes", "2", "--nproc_per_node", "1", "--node_rank", str(rank)),
            *("--master_addr", ADDRESSES[0], "--master_port", "29511"),
            *("-m", "customized_grpo", "train", "toybox-smoke", f"run.dir={folder}", *RECIPE),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(GLOO_SOCKET_IFNAME="cable0"),
    )


def test_two_hosts_train_what_two_processes_on_one_host_train(hosts: list[str], tmp_path: Path) -> None:
    started = [start(host, rank, tmp_path / "hosts") for rank, host in enumerate(hosts)]
    try:
        for process in started:
            status, printed = finish(process)
            assert status == 0, printed
    finally:
        for process in started:
            process.kill()
    status, printed = cgrpo(2, "train", "toybox-smoke", f"run.dir={tmp_path / 'host'}", *RECIPE)
    assert status == 0, printed
    ours, theirs = (CheckpointStore(tmp_path / name / "checkpoints", 0).load(1) for name in ("hosts", "host"))
    assert ours.state["processes"] == 2
    for entry, tensors in theirs.tensors.items():
        for name, tensor in tensors.items():
            assert torch.equal(ours.tensors[entry][name], tensor), f"{entry}: {name}"
    evaluations = [
        [
            line["judge/prompt"]
            for line in read_metrics(tmp_path / name / "metrics.jsonl")
            if line["kind"] == "eval"
        ]
        for name in ("hosts", "host")
    ]
    assert evaluations[0] == evaluations[1]
