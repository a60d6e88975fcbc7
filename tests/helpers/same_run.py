"""What a run leaves behind, but for its times: two runs are the same when all of it is."""

from __future__ import annotations

from pathlib import Path

import torch

from customized_grpo.reporting.metrics import Record, read_metrics
from customized_grpo.runs.checkpoints import CheckpointStore

STATE = (
    *("iteration", "rollouts", "further_prompts", "wasted_in_a_row", "skipped_in_a_row"),
    *("health", "history", "optimizer"),
)


def steps(run: Path) -> list[int]:
    return CheckpointStore(run / "checkpoints", 0).steps()


def lines(run: Path) -> list[Record]:
    return [
        {key: value for key, value in line.items() if not key.startswith(("time/", "wall_s"))}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def events(run: Path, name: str) -> list[Record]:
    return [line for line in lines(run) if line["kind"] == "event" and line["event"] == name]


def images(run: Path) -> dict[str, bytes]:
    found = [path for pattern in ("evaluations/*", "samples/**/*.png") for path in run.glob(pattern)]
    return {str(path.relative_to(run)): path.read_bytes() for path in found}


def assert_same_run(run: Path, reference: Path) -> None:
    """Compare metrics, evaluations, images and the last checkpoint, bit for bit."""
    assert lines(run) == lines(reference)
    assert images(run) == images(reference)
    assert steps(run)[-1] == steps(reference)[-1]
    ours, theirs = (CheckpointStore(r / "checkpoints", 0).load(steps(r)[-1]) for r in (run, reference))
    assert {key: ours.state[key] for key in STATE} == {key: theirs.state[key] for key in STATE}
    assert ours.tensors.keys() == theirs.tensors.keys()
    for entry, tensors in theirs.tensors.items():
        assert ours.tensors[entry].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(ours.tensors[entry][name], tensor), f"{entry}: {name}"
