"""Runs whose numbers are equal to round-off, as those of different numbers of processes are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from customized_grpo.reporting.metrics import Record, read_metrics
from customized_grpo.runs.checkpoints import Checkpoint, CheckpointStore


def last_checkpoint(run: Path) -> Checkpoint:
    store = CheckpointStore(run / "checkpoints", 0)
    step = store.latest()
    assert step is not None
    return store.load(step)


def lines(run: Path) -> list[Record]:
    return [
        {key: value for key, value in line.items() if not key.startswith(("time/", "wall_s"))}
        for line in read_metrics(run / "metrics.jsonl")
    ]


def assert_same_numbers(ours: list[Record], theirs: list[Record]) -> None:
    assert len(ours) == len(theirs)
    for line, expected in zip(ours, theirs, strict=True):
        assert line.keys() == expected.keys()
        for key, value in expected.items():
            if isinstance(value, float):
                found = line[key]
                assert isinstance(found, float | int)
                # correlations of z-scores over three samples magnify round-off
                close = math.isclose(found, value, rel_tol=2e-3, abs_tol=2e-4)
                assert close, f"{line['kind']} {line['iteration']}: {key} is {found}, not {value}"
            else:
                assert line[key] == value, key


def assert_close_tensors(ours: Checkpoint, theirs: Checkpoint, entries: Sequence[str]) -> None:
    for entry in entries:
        assert ours.tensors[entry].keys() == theirs.tensors[entry].keys()
        for name, tensor in theirs.tensors[entry].items():
            close = torch.allclose(ours.tensors[entry][name], tensor, atol=2e-5, rtol=1e-3)
            assert close, f"{entry}: {name}"
