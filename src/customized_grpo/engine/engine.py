"""Processes, device, backward pass and gradient clipping, through accelerate and torch.distributed.

Only tensors and JSON travel between processes, never pickled objects. With one process every exchange is the
identity, so that callers have one path.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from torch import Tensor

from customized_grpo.engine.partition import Share
from customized_grpo.errors import UserError

BUCKET = 64 * 2**20  # bytes of gradients added up in one exchange


class Engine:
    """What the trainer needs from the hardware and from the other processes.

    Precision is not accelerate's business here: the policy owns the one autocast context of both phases.

    Args:
        device: Where to run; with several processes on accelerators, each takes the one of its local rank.
        timeout_s: Seconds a process waits for the others in an exchange before it gives up.
    """

    def __init__(self, device: torch.device, timeout_s: float = 1800.0) -> None:
        on_cpu = device.type == "cpu"
        launched = int(os.environ.get("WORLD_SIZE", "1"))  # by torchrun or accelerate launch
        handlers = []
        if launched > 1:
            backend = "gloo" if on_cpu else None
            handlers = [InitProcessGroupKwargs(backend=backend, timeout=timedelta(seconds=timeout_s))]
        self.accelerator = Accelerator(cpu=on_cpu, mixed_precision="no", kwargs_handlers=handlers)
        self.rank: int = self.accelerator.process_index
        self.world_size: int = self.accelerator.num_processes
        self.device = device if on_cpu or self.world_size == 1 else self.accelerator.device

    @property
    def is_main(self) -> bool:
        """Return whether this is the process that writes to the run folder."""
        return self.rank == 0

    def share(self, steps: int) -> Share:
        """Return this process's share of iterations with that many optimizer steps."""
        return Share(self.rank, self.world_size, steps)

    # Gradients

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss; nothing is exchanged yet."""
        self.accelerator.backward(loss)

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Add up the gradients of all processes, in place; parameters without one are left alone.

        The sum, not the mean: a loss term is divided by the number of terms over all processes already.
        """
        if self.world_size == 1:
            return
        for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            with _contact(self.rank):
                dist.all_reduce(flat)
            for gradient, summed in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))

    def clip_grad_norm(self, parameters: Sequence[torch.nn.Parameter], largest: float) -> float:
        """Scale gradients down to an L2 norm of `largest`; returns the norm before."""
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

    def _reduced(self, tensor: Tensor, how: Any) -> Tensor:
        if self.world_size == 1:
            return tensor
        reduced = tensor.detach().to(self.device, copy=True)
        with _contact(self.rank):
            dist.all_reduce(reduced, how)
        return reduced.to(tensor.device)

    def wait_for_all(self) -> None:
        """Return when every process has come here."""
        self.total(torch.zeros(1))

    # What the main process knows

    def from_main(self, work: Callable[[], Any]) -> Any:
        """Run `work` in the main process and return its result, JSON, in all of them.

        Raises:
            UserError: It raised one: raised in the main process; the others leave with status 2, as the
                message would be the same.
        """
        outcome: dict[str, Any] = {}
        if self.is_main:
            try:
                outcome = {"result": work()}
            except UserError as error:
                self._send_json({"failed": True})
                raise error
        outcome = self._send_json(outcome)
        if "failed" in outcome:
            raise SystemExit(2)
        return outcome["result"]

    def tensors_from_main(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Return the main process's tensors in all of them, on the CPU; the others give None."""
        if self.world_size == 1:
            return dict(tensors or {})
        facts = {n: [list(t.shape), str(t.dtype)] for n, t in (tensors or {}).items()}
        received = {}
        for name, (shape, dtype) in self._send_json(facts).items():
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
        """Stop if the processes do not hold the same parameters, bit for bit: they train one model.

        Raises:
            UserError: They differ, from broken hardware or libraries that do not add up the same everywhere.
        """
        if self.world_size == 1:
            return
        sums = torch.stack([p.detach().double().sum() for p in parameters]).cpu()
        squares = torch.stack([p.detach().double().square().sum() for p in parameters]).cpu()
        mine = torch.stack([sums, squares])
        everyone = self.gather(mine[None])
        if not torch.equal(everyone, mine.expand_as(everyone)):
            raise UserError(
                f"the {self.world_size} processes no longer hold the same adapter; nothing was saved",
                "Resume from the last checkpoint. Mixed accelerators or library versions cause this.",
            )


@contextmanager
def _contact(rank: int) -> Iterator[None]:
    """Turn a broken or timed-out exchange into one sentence: the process that failed says the reason."""
    try:
        yield
    except (dist.DistBackendError, dist.DistNetworkError, RuntimeError) as error:
        raise UserError(
            f"process {rank} lost contact with the others: {str(error).splitlines()[0]}",
            "One of them has failed or is too slow; its own message says why. The last checkpoint is intact: "
            "start again with `cgrpo resume`.",
        ) from error


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the gradients in turn, as many of one type at once as fit into BUCKET bytes."""
    bucket: list[Tensor] = []
    size = 0
    for gradient in gradients:
        if bucket and (size + gradient.nbytes > BUCKET or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(gradient)
        size += gradient.nbytes
    if bucket:
        yield bucket


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name.removeprefix("torch."))
    assert isinstance(dtype, torch.dtype)
    return dtype
