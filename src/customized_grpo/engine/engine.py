"""Processes, device, backward pass and gradient clipping, through accelerate and torch.distributed.

Only tensors and JSON travel between processes, never pickled objects. With one process every exchange is the
identity, so that callers have one path.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor

from customized_grpo.disk import DISK_ERRORS, disk_error
from customized_grpo.engine.environment import Launch, raise_from_nccl, remove_accelerate_variables
from customized_grpo.engine.host_memory import keep_freed_memory
from customized_grpo.engine.partition import Partition
from customized_grpo.errors import UserError

BUCKET = 64 * 2**20  # bytes of gradients added up in one exchange


class Engine:
    """What the trainer needs from the hardware and from the other processes.

    Precision is not accelerate's business here: the policy owns the one autocast context of both phases.

    Args:
        device: Where to run; with several processes on accelerators, each takes the one of its local rank.
        timeout_s: Seconds a process waits for the others in an exchange before it gives up.
        is_sharded: Whether passes through the model are exchanges too, which must not hold up the CPU.

    Attributes:
        rank: Number of this process, from 0.
        local_rank: Its number among those of its host, from 0.
        world_size: Number of processes.
        device: Where this process runs.
        ignored: Variables of accelerate in the environment, "NAME=value", that would have changed numbers.

    Raises:
        UserError: The launcher's variables do not fit, or the others cannot be joined.
    """

    def __init__(self, device: torch.device, timeout_s: float = 1800.0, *, is_sharded: bool = False) -> None:
        on_cpu = device.type == "cpu"
        launch = Launch.from_environment()
        self.ignored = remove_accelerate_variables()
        handlers = []
        if launch.world_size > 1:
            if not on_cpu and not is_sharded:
                raise_from_nccl()
            # None: accelerate takes the backend of the device, nccl on CUDA.
            backend = "gloo" if on_cpu else None
            handlers = [InitProcessGroupKwargs(backend=backend, timeout=timedelta(seconds=timeout_s))]
        else:
            _forget_another_device(device)
        keep_freed_memory(device)
        with _joining(launch):
            self.accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=handlers)
        self.rank: int = self.accelerator.process_index
        # Of its host: it chooses the device, and who prints there. The rank chooses the samples.
        self.local_rank: int = self.accelerator.local_process_index
        self.world_size: int = self.accelerator.num_processes
        self.device = device if on_cpu or self.world_size == 1 else self.accelerator.device

    @property
    def is_main(self) -> bool:
        """Return whether this is the process that writes to the run folder."""
        return self.rank == 0

    def partition(self, updates: int) -> Partition:
        """Return how iterations with that many updates are partitioned, as this process sees it."""
        return Partition(self.rank, self.world_size, updates)

    # Gradients

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss; nothing is exchanged between processes yet."""
        self.accelerator.backward(loss)

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Add up the gradients of all processes, in place; parameters without one anywhere are left alone.

        The sum, not the mean: a loss term is divided by the number of terms over all processes already.
        """
        if self.world_size == 1:
            return
        self._fill_gradients(parameters)
        # All processes have gradients of the same parameters now, so their buckets are equal.
        for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            with _contact(self.rank):
                dist.all_reduce(flat)
            sums = flat.split([gradient.numel() for gradient in bucket])
            for gradient, summed in zip(bucket, sums, strict=True):
                gradient.copy_(summed.view_as(gradient))

    def _fill_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Give a parameter that has a gradient in another process alone one of zeros here.

        FLUX.3's layers for references have none where all rows of a process are without references.
        """
        mine = torch.tensor([float(p.grad is not None) for p in parameters])
        for parameter, count in zip(parameters, self.total(mine).tolist(), strict=True):
            if count and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def clip_grad_norm(self, parameters: Sequence[torch.nn.Parameter], largest: float) -> float:
        """Scale gradients down to an L2 norm of at most `largest`; return the norm before."""
        norm = self.accelerator.clip_grad_norm_(parameters, largest)
        assert norm is not None
        return float(norm)

    # Exchanges between processes

    def gather(self, tensor: Tensor) -> Tensor:
        """Return the tensors of all processes, of one shape and type, joined along dimension 0 by rank."""
        if self.world_size == 1:
            return tensor
        mine = tensor.detach().to(self.device).contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.world_size)]
        with _contact(self.rank):
            dist.all_gather(parts, mine)
        return torch.cat(parts).to(tensor.device)

    def total(self, tensor: Tensor) -> Tensor:
        """Return the sum of the tensors of all processes."""
        return self._reduced(tensor, dist.ReduceOp.SUM)

    def largest(self, value: float) -> float:
        """Return the largest of the values of all processes."""
        return float(self._reduced(torch.tensor(value, dtype=torch.float64), dist.ReduceOp.MAX))

    def smallest(self, value: float) -> float:
        """Return the smallest of the values of all processes."""
        return -self.largest(-value)

    def all_true(self, value: bool) -> bool:
        """Return whether the value is true in all processes."""
        return bool(self.smallest(value))

    def _reduced(self, tensor: Tensor, operation: Any) -> Tensor:
        if self.world_size == 1:
            return tensor
        reduced = tensor.detach().to(self.device, copy=True)
        with _contact(self.rank):
            dist.all_reduce(reduced, operation)
        return reduced.to(tensor.device)

    def wait_for_all(self) -> None:
        """Return when every process has called this."""
        self.total(torch.zeros(1))

    # From the main process to the others

    def from_main(self, work: Callable[[], Any]) -> Any:
        """Run `work` in the main process and return its result, JSON, in all of them.

        Whatever `work` raises is raised in the main process. The others end as well, at once: the first
        process of each further host with the same message, the rest in silence.

        Raises:
            UserError: `work` failed.
        """
        if self.is_main:
            try:
                result = work()
            except BaseException as error:
                with suppress(UserError):  # the others may be gone; this error is the one to tell
                    self._send_json({"failed": _message(error)})
                raise
            return self._send_json({"result": result})["result"]
        outcome = self._send_json(None)
        if "failed" not in outcome:
            return outcome["result"]
        if self.local_rank == 0:
            raise UserError(*outcome["failed"])
        raise SystemExit(2)

    def gather_json(self, value: Any) -> list[Any]:
        """Return the values of all processes, JSON, by rank."""
        if self.world_size == 1:
            return [value]
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        lengths = self.gather(torch.tensor([len(data)]))
        # all_gather takes tensors of one shape: the lengths travel first, then bytes padded to the longest.
        padded = torch.zeros(int(lengths.max()), dtype=torch.uint8)
        padded[: len(data)] = data
        everyone = self.gather(padded[None])
        values = []
        for row, length in zip(everyone, lengths.tolist(), strict=True):
            values.append(json.loads(row[:length].numpy().tobytes()))
        return values

    def tensors_from_main(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Return the main process's tensors in all of them, on the CPU; the others give None."""
        if self.world_size == 1:
            return dict(tensors or {})
        # The others cannot know what comes: shapes go first, as JSON, then the tensors in the same order.
        shapes_and_types: dict[str, Any] = {}
        for name, tensor in (tensors or {}).items():
            shapes_and_types[name] = [list(tensor.shape), str(tensor.dtype)]
        received = {}
        for name, (shape, dtype) in self._send_json(shapes_and_types).items():
            if tensors is not None:
                tensor = tensors[name].to(self.device)
            else:
                tensor = torch.empty(shape, dtype=_dtype(dtype), device=self.device)
            self._broadcast(tensor)
            received[name] = tensor.cpu()
        return received

    def _send_json(self, value: Any) -> Any:
        """Return the main process's value in all of them."""
        if self.world_size == 1:
            return value
        data = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(self.device)
        length = torch.tensor(len(data), device=self.device)
        # Two exchanges, because a receiver needs the shape before the content.
        self._broadcast(length)
        if not self.is_main:
            data = torch.empty(int(length), dtype=torch.uint8, device=self.device)
        self._broadcast(data)
        return json.loads(data.cpu().numpy().tobytes())

    def _broadcast(self, tensor: Tensor) -> None:
        if self.world_size > 1:
            with _contact(self.rank):
                dist.broadcast(tensor, src=0)

    def close(self) -> None:
        """Leave the group of processes, after the last exchange."""
        if self.world_size > 1:
            dist.destroy_process_group()

    # Agreement

    def check_agreement(self, parameters: Sequence[Tensor]) -> None:
        """Refuse to go on if the processes do not hold the same parameters, bit for bit.

        Raises:
            UserError: They differ, because of broken hardware or libraries that sum in another order.
        """
        if self.world_size == 1:
            return
        sums = torch.stack([p.detach().double().sum() for p in parameters]).cpu()
        squares = torch.stack([p.detach().double().square().sum() for p in parameters]).cpu()
        # [2, parameters] in fp64: equal parameters give equal numbers, and others hardly ever do.
        mine = torch.stack([sums, squares])
        everyone = self.gather(mine[None])
        if not torch.equal(everyone, mine.expand_as(everyone)):
            raise UserError(
                f"the {self.world_size} processes no longer hold the same adapter; nothing was saved",
                hint="Resume from the last checkpoint. Mixed accelerators or library versions cause this.",
            )


def _message(error: BaseException) -> tuple[str, str | None]:
    """Return message and hint of an error of the main process, for the others."""
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        error = disk_error(error)
    if isinstance(error, UserError):
        return error.message, error.hint
    reason = "".join(traceback.format_exception_only(error)).strip()
    return f"the main process failed: {reason}", "Its own message says where."


def _forget_another_device(device: torch.device) -> None:
    """Let accelerate take a device of another kind than an earlier run of this process had, as in a notebook.

    It keeps the first one for the life of a process, and refuses the CPU after it.
    """
    if PartialState._shared_state and PartialState().device.type != device.type:
        AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def _joining(launch: Launch) -> Iterator[None]:
    """Turn a group of processes that cannot be formed into one message.

    Raises:
        UserError: The port is taken, or the others did not come in time.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:  # of torch.distributed: its own classes are RuntimeErrors
        if launch.world_size == 1:
            raise
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"process {launch.rank} of {launch.world_size} could not join the others at {launch.address}: "
            f"{reason}",
            hint="Start all of them at the same time, with one MASTER_ADDR and a MASTER_PORT that no other "
            "program uses; torchrun does so by itself. For one process alone: `unset WORLD_SIZE`.",
        ) from error


@contextmanager
def _contact(rank: int) -> Iterator[None]:
    """Turn a broken or timed-out exchange into one message; the reason is in that of the failed process."""
    try:
        yield
    except (dist.DistBackendError, dist.DistNetworkError, RuntimeError) as error:
        raise UserError(
            f"process {rank} lost contact with the others: {str(error).splitlines()[0]}",
            hint="One of them has failed or is too slow; its own message says why. The last checkpoint is "
            "intact: start again with `cgrpo resume`.",
        ) from error


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the gradients in order, in lists of one type and at most BUCKET bytes (or a single gradient)."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size + gradient.nbytes > BUCKET or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
            size = 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name.removeprefix("torch."))
    assert isinstance(dtype, torch.dtype)
    return dtype
