"""Run by test_engine.py in two processes: every exchange of the engine, checked on every process."""

from __future__ import annotations

import errno
import sys

import torch

from customized_grpo.engine.engine import Engine
from customized_grpo.engine.interrupts import Interrupted, StopFlag
from customized_grpo.errors import UserError

engine = Engine(torch.device("cpu"), timeout_s=60)
rank = engine.rank
assert engine.world_size == 2 and engine.is_main is (rank == 0)


def exchanges() -> None:
    assert engine.gather(torch.tensor([[rank, 7]])).tolist() == [[0, 7], [1, 7]]
    assert engine.total(torch.tensor([1.5, rank])).tolist() == [3.0, 1.0]
    assert (engine.largest(rank), engine.smallest(rank)) == (1, 0)
    assert (engine.all_true(True), engine.all_true(rank == 0)) == (True, False)
    assert engine.from_main(lambda: {"who": rank, "text": "ä"}) == {"who": 0, "text": "ä"}
    assert engine.gather_json({"who": "ä" * (1 + 9 * rank)}) == [{"who": "ä"}, {"who": "ä" * 10}]
    mine = {"a": torch.arange(3), "b": torch.tensor(0.25, dtype=torch.bfloat16)} if rank == 0 else None
    received = engine.tensors_from_main(mine)
    assert received["a"].tolist() == [0, 1, 2]
    assert received["b"].dtype == torch.bfloat16 and float(received["b"]) == 0.25


def gradients() -> None:
    """Of several types, shapes and sizes; one parameter has one here or there alone, and one has none."""
    shapes = [(3, 2), (5,), (), (1000, 1000), (7,), (2, 2), (4,)]
    dtypes = [torch.float32, torch.bfloat16] + 5 * [torch.float32]
    parameters = [torch.nn.Parameter(torch.zeros(s, dtype=d)) for s, d in zip(shapes, dtypes, strict=True)]
    alone = {4: 0, 5: 1}  # parameter -> the process that has its gradient
    for number, parameter in enumerate(parameters[:-1]):
        if alone.get(number, rank) == rank:
            parameter.grad = torch.full_like(parameter, (number + 1) * (1 + 2 * rank))
    engine.sum_gradients(parameters)
    for number, parameter in enumerate(parameters[:-1]):
        expected = (number + 1) * (4 if number not in alone else 1 + 2 * alone[number])
        assert parameter.grad is not None and bool((parameter.grad == expected).all()), number
    assert parameters[-1].grad is None


def agreement() -> None:
    same = [torch.arange(4.0), torch.ones(2)]
    engine.check_agreement(same)
    if rank == 1:
        same[0][0] += 1e-7
    try:
        engine.check_agreement(same)
    except UserError as error:
        assert "no longer hold the same adapter" in error.message
    else:
        raise AssertionError("a difference was not noticed")


def stopping() -> None:
    flag = StopFlag(engine)
    flag.check()
    check = flag.batch_check(2 + rank)  # process 1 has a batch more, which must not wait for process 0
    check(), check()
    if rank == 1:
        check()
        flag.status = 143
    try:
        flag.check()
    except Interrupted as stop:
        assert stop.status == 143
    else:
        raise AssertionError("the signal of process 1 did not reach this process")


def refusal() -> None:
    """Every error of the main process ends the others at once; its message is told once on each host."""
    errors = {
        UserError("the folder is taken", hint="Take another."): "the folder is taken",
        OSError(errno.ENOSPC, "No space left on device", "run/a.json"): "run/a.json: No space left on device",
        ValueError("a mistake of ours"): "the main process failed: ValueError: a mistake of ours",
    }
    for error, message in errors.items():
        for local_rank in (0, 1):
            engine.local_rank = local_rank
            raised = refused(error)
            if rank == 0:
                assert raised is error
            elif local_rank == 0:  # the first of another host
                assert isinstance(raised, UserError) and raised.message.startswith(message), raised
            else:
                assert isinstance(raised, SystemExit) and raised.code == 2, raised


def refused(error: Exception) -> BaseException:
    """Return what this process raises when the main one meets the error."""

    def refuse() -> None:
        raise error

    try:
        engine.from_main(refuse)
    except BaseException as raised:
        return raised
    raise AssertionError("the error of the main process was lost")


for check in (exchanges, gradients, agreement, stopping, refusal):
    check()
engine.close()
print(f"process {rank} is done", file=sys.stderr)
