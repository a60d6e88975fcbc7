"""The memory and the operations of a model, counted while it runs on tensors that have shapes but no data.

torch's fake tensors go through the same operations, the same autograd graph and the same gradient
checkpointing as real ones. So the count is what a run would allocate, in the same order, and no formula has
to follow changes of diffusers, peft or torch. Workspaces of kernels and fragmentation are not counted.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A count of the bytes of tensors that are made inside the block, as long as each is alive.

    Args:
        known: Tensors that exist already and are counted elsewhere, such as weights.

    Attributes:
        now: Bytes alive.
        peak: The most bytes alive at any time.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: dict[int, Any] = {}
        for tensor in known:
            # Counted as 0 bytes: seen, and so never counted later.
            self._watch(tensor, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                # The storage, because views share one.
                self._watch(tensor, tensor.untyped_storage().nbytes())
        return out

    def _watch(self, tensor: Tensor, n_bytes: int) -> None:
        """Count a tensor's storage, unless it is that of a tensor counted already, until it is freed."""
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._seen:
            return

        def freed(_: Any) -> None:
            self.now -= n_bytes
            # A new storage may get the id of a freed one.
            del self._seen[key]

        self._seen[key] = weakref.ref(storage, freed)
        self.now += n_bytes
        self.peak = max(self.peak, self.now)


def without_data(module: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """Turn a module on "meta" into one of fake tensors on the CPU, in place, and return it.

    "meta" alone is not enough, because autocast ignores tensors there.
    """
    with mode:
        for part in module.modules():
            for name, parameter in list(part.named_parameters(recurse=False)):
                fake = nn.Parameter(
                    torch.empty(parameter.shape, dtype=parameter.dtype), parameter.requires_grad
                )
                setattr(part, name, fake)
            for name, buffer in list(part.named_buffers(recurse=False)):
                setattr(part, name, torch.empty(buffer.shape, dtype=buffer.dtype))
            _fake_tables(part)
    return module


def _fake_tables(part: nn.Module) -> None:
    """Replace the tensors of a module that are no buffers, such as rotary tables: a call would move them."""
    for name, value in list(vars(part).items()):
        tables = value if isinstance(value, list) else [value]
        if not tables or not all(isinstance(table, Tensor) for table in tables):
            continue
        fakes = [torch.empty(table.shape, dtype=table.dtype) for table in tables]
        setattr(part, name, fakes if isinstance(value, list) else fakes[0])


def known_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield a module's parameters, their gradients and its buffers."""
    for parameter in module.parameters():
        yield parameter
        if parameter.grad is not None:
            yield parameter.grad
    yield from module.buffers()


def round_norms_as_accelerators(module: nn.Module) -> None:
    """Make normalisation layers compute in fp32, as autocast does on accelerators but not on CPUs."""

    def to_fp32(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].float(), *args[1:])

    for part in module.modules():
        if isinstance(part, nn.LayerNorm | nn.RMSNorm | nn.GroupNorm):
            part.float()
            part.register_forward_pre_hook(to_fp32)


def peak_bytes(call: Callable[[], Any], known: Iterable[Tensor]) -> int:
    """Return the most bytes alive at once while `call` runs, `known` tensors not counted."""
    with LiveBytes(known) as live:
        call()
    peak: int = live.peak
    return peak


def bytes_left(call: Callable[[], Any], known: Iterable[Tensor]) -> int:
    """Return the bytes that are alive while the result of `call` is, `known` tensors not counted."""
    with LiveBytes(known) as live:
        result = call()
    left: int = live.now
    del result  # it kept its graph alive until here
    return left


def flops(call: Callable[[], Any]) -> int:
    """Return the floating-point operations of matrix products, convolutions and attention in `call`."""

    def attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
        count: int = sdpa_flop_count(query, key, value)  # type: ignore[no-untyped-call]
        return count

    # What attention is on a CPU; the counter of torch knows only those of GPUs.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping={kernel: attention}) as counter:
        call()
    return int(counter.get_total_flops())


class MovedBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A count of the bytes that operations between the products read and write.

    Views move nothing. Products, convolutions and attention are left out: what they take is their operations.

    Attributes:
        total: Bytes read and written.
    """

    PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "attention")
    UNMARKED_VIEWS = ("_unsafe_view", "_reshape_alias")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        is_view = func.is_view or name in self.UNMARKED_VIEWS
        # Views move nothing, and products are counted by their operations.
        if is_view or any(product in name for product in self.PRODUCTS):
            return out
        for tensor in tree_iter((args, kwargs, out)):
            if isinstance(tensor, Tensor):
                self.total += tensor.nbytes
        return out


def moved_bytes(call: Callable[[], Any]) -> int:
    """Return the bytes that `call` reads and writes between its products."""
    with torch.no_grad(), MovedBytes() as moved:
        call()
    total: int = moved.total
    return total


@contextmanager
def bf16_products(enabled: bool) -> Iterator[None]:
    """Enter the autocast context in which policies call their transformer."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled, cache_enabled=False):
        yield
