"""A second device where there is none: CPU tensors that say they are on "cuda:0" and are treated as if.

A tensor is "on the device" while its storage is in a register, and everything that asks for a place (`to`,
`device=`, `is_cuda`, ...) is answered from there. Kernels are the CPU's, so numbers are real and whole
trainings run, the backward pass and recomputation included. What CUDA refuses is refused: operands of two
places, numpy of a device tensor, a generator of the CPU for numbers of the device. Transfers and waits are
counted by place in the source. Nothing is shown about CUDA's kernels, memory or speed.

FakeTensor cannot do this: it has no numbers, and its backward pass needs a real device.
"""

from __future__ import annotations

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_iter

DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")
Base = torch._C.TensorBase
aten = torch.ops.aten

INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
"""Operations that take indices on the CPU beside a tensor of the device, and copy them."""
SCALAR_ON_CPU = {
    aten.masked_fill.Tensor,
    aten.masked_fill_.Tensor,
    aten.fill_.Tensor,
    aten.where.self,
    aten.clamp.Tensor,
}
"""Operations that are not marked as pointwise, but take a number that is a tensor on the CPU as those do."""
WAITING = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.is_nonzero.default,
    aten._unique2.default,
    aten.masked_select.default,
}
"""Operations whose result the CPU needs, so that it waits until the device has done all its work."""


class MixedDevices(RuntimeError):
    """An operation got tensors of both devices."""


@dataclass
class Traffic:
    """What went between CPU and device, by the line of the package that asked for it.

    Attributes:
        to_device: Copies to the device.
        to_cpu: Copies back, each of them also a wait.
        waits: Times that the CPU waited for the device.
        n_bytes: Bytes copied in either direction.
    """

    to_device: Counter[str] = field(default_factory=Counter)
    to_cpu: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    n_bytes: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        for counter in (self.to_device, self.to_cpu, self.waits, self.n_bytes):
            counter.clear()

    @property
    def n_copies(self) -> int:
        """Return the copies in both directions."""
        return self.to_device.total() + self.to_cpu.total()

    @property
    def n_waits(self) -> int:
        """Return the waits at all places."""
        return self.waits.total()


class Register:
    """The storages that count as being on the device."""

    def __init__(self) -> None:
        self._storages: dict[int, weakref.ref[Any]] = {}

    def holds(self, tensor: Tensor) -> bool:
        storage = _storage(tensor)
        return storage is not None and storage._cdata in self._storages

    def place(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Count a tensor's storage to a device, and return the tensor."""
        storage = _storage(tensor)
        if storage is None:
            return tensor
        key = storage._cdata
        if device.type == "cpu":
            self._storages.pop(key, None)
        elif key not in self._storages:
            self._storages[key] = weakref.ref(storage, lambda _: self._storages.pop(key, None))
        return tensor


def _storage(tensor: Tensor) -> Any:
    try:
        return None if _real("is_meta", tensor) else Base.untyped_storage(tensor)
    except (NotImplementedError, RuntimeError):  # a wrapper of tensors, or one without data
        return None


def _real(name: str, tensor: Tensor) -> Any:
    """Return a property of a tensor as torch itself says it."""
    return getattr(Base, name).__get__(tensor)


def _place_in_source() -> str:
    """Return file and line of the innermost frame of the package, else of the test."""
    frame = sys._getframe(2)
    outermost = "?"
    while frame is not None:
        file = frame.f_code.co_filename
        if "/customized_grpo/" in file:
            return f"{file.rsplit('customized_grpo/', 1)[1]}:{frame.f_lineno}"
        if outermost == "?" and file != __file__ and "/torch/" not in file:
            outermost = f"{file.rsplit('/', 1)[-1]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return outermost


def _is_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class SecondDevice(TorchDispatchMode):
    """The mode under which tensors have places; enter it by `second_device`.

    Attributes:
        traffic: What went between the devices.
        register: Which tensors are on the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.traffic = Traffic()
        self.register = Register()

    # Operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [one for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)]
        device = kwargs.get("device")
        if any(_real("is_meta", one) for one in tensors) or str(device) == "meta":
            return func(*args, **kwargs)
        if _is_device(device):
            if kwargs.get("generator") is not None:
                raise RuntimeError(f"{func}: a generator of the CPU for numbers of the device")
            kwargs["device"] = CPU
        if func is aten._to_copy.default:
            return self._copied(func(*args, **kwargs), args[0], _is_device(device))
        if func is aten.cat.default and torch._C._current_graph_task_id() != -1:
            self._adopt_zeros(tensors)
        places = {self.register.holds(one) for one in tensors}
        if func is aten.copy_.default:
            self._count_copy(self.register.holds(args[1]), self.register.holds(args[0]), args[0].nbytes)
        elif len(places) == 2:
            self._check_mixture(func, args, tensors)
        if True in places and func in WAITING:
            self.traffic.waits[f"{func} {_place_in_source()}"] += 1
        out = self._run(func, args, kwargs)
        if func is not aten.copy_.default and (True in places or _is_device(device)):
            self._place_all(out)
        return out

    def _adopt_zeros(self, tensors: list[Tensor]) -> None:
        """Place zeros on the device that the backward pass has made itself, for a part that nobody used.

        It takes the device from the storage, where CUDA would be found, and finds the CPU here.
        """
        if any(self.register.holds(one) for one in tensors):
            for one in tensors:
                if not self.register.holds(one) and not one.any():
                    self.register.place(one, DEVICE)

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func.namespace != "bitsandbytes":
            return func(*args, **kwargs)
        with self:  # these are written in Python: what they make must come through here as well
            return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **kwargs)

    def _copied(self, out: Tensor, source: Tensor, to_device: bool) -> Tensor:
        # torch takes every tensor for one of the CPU, so that "to the CPU" is never asked for in C++
        before = self.register.holds(source)
        if to_device:
            self._count_copy(before, True, out.nbytes)
        return self.register.place(out, DEVICE if to_device or before else CPU)

    def _place_all(self, out: Any) -> None:
        for one in tree_iter(out):
            if isinstance(one, Tensor):
                self.register.place(one, DEVICE)

    def _check_mixture(self, func: Any, args: Any, tensors: list[Tensor]) -> None:
        """Allow what CUDA allows: numbers on the CPU in pointwise operations, and indices.

        Raises:
            MixedDevices: CUDA would refuse it.
        """
        on_cpu = [one for one in tensors if not self.register.holds(one)]
        is_number = all(one.dim() == 0 for one in on_cpu)
        if is_number and (torch.Tag.pointwise in func.tags or func in SCALAR_ON_CPU):
            return
        if "foreach" in str(func):  # lists of tensors, each beside its own; AdamW counts its steps on the CPU
            return
        if func in INDEXING and self.register.holds(args[0]):
            indices = [one for one in tree_iter(args[1]) if isinstance(one, Tensor)]
            if all(any(one is index for index in indices) or one.dim() == 0 for one in on_cpu):
                self.traffic.waits[f"index on the CPU {_place_in_source()}"] += 1
                return
        places = [("cuda" if self.register.holds(one) else "cpu", tuple(one.shape)) for one in tensors]
        raise MixedDevices(f"{func} got tensors on {places}, at {_place_in_source()}")

    def _count_copy(self, from_device: bool, to_device: bool, n_bytes: int) -> None:
        if from_device == to_device:
            return
        place = _place_in_source()
        self.traffic.n_bytes[place] += n_bytes
        if to_device:
            self.traffic.to_device[place] += 1
        else:
            self.traffic.to_cpu[place] += 1
            self.traffic.waits[f"copy to the CPU {place}"] += 1

    # Tensor methods

    def device_of(self, tensor: Tensor) -> torch.device:
        return DEVICE if self.register.holds(tensor) else _real("device", tensor)

    def to(self, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        is_wrapper = type(tensor) is not Tensor and hasattr(type(tensor), "__tensor_flatten__")
        if _storage(tensor) is None or is_wrapper:
            return Base.to(tensor, *args, **kwargs)
        copy = kwargs.pop("copy", False)
        other = kwargs.pop("other", args[0] if args else None)
        if isinstance(other, Tensor):
            device, dtype, layout = self.device_of(other), other.dtype, None
        else:
            device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
        options = {} if layout is None else {"memory_format": layout}
        dtype = dtype or tensor.dtype
        here = self.device_of(tensor)
        if device is not None and device.type == "meta":
            return Base.to(tensor, device=device, dtype=dtype)
        if device is None or device.type == here.type:
            return Base.to(tensor, dtype=dtype, copy=copy, **options)
        moved = Base.to(tensor, dtype=dtype, copy=True, **options)
        self._count_copy(here.type == "cuda", device.type == "cuda", moved.nbytes)
        return self.register.place(moved, device)

    def numpy(self, tensor: Tensor, **kwargs: Any) -> Any:
        if self.register.holds(tensor):
            raise TypeError("can't convert a tensor of the device to numpy: use Tensor.cpu() first")
        return Base.numpy(tensor, **kwargs)

    def tolist(self, tensor: Tensor) -> Any:
        if self.register.holds(tensor):
            self.traffic.waits[f"tolist {_place_in_source()}"] += 1
        return Base.tolist(tensor)

    def made(self, make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return a factory of tensors from numbers that also makes them on the device."""

        def factory(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            if isinstance(data, Tensor):
                if device is None and kwargs.get("dtype") is None:
                    return data
                return data.to(device or data.device, dtype=kwargs.get("dtype") or data.dtype)
            if not _is_device(device):
                return make(data, *args, device=device, **kwargs)
            out = make(data, *args, **kwargs)
            self._count_copy(False, True, out.nbytes)
            return self.register.place(out, DEVICE)

        return factory

    def tensor_methods(self) -> dict[str, Any]:
        """Return what takes the place of attributes of torch.Tensor."""
        holds = self.register.holds
        return {
            "device": property(self.device_of),
            "is_cuda": property(holds),
            "is_cpu": property(lambda one: not holds(one) and _real("is_cpu", one)),
            "get_device": lambda one: 0 if holds(one) else -1,
            "to": self.to,
            "cpu": lambda one, **kwargs: self.to(one, CPU),
            "cuda": lambda one, *args, **kwargs: self.to(one, DEVICE),
            "numpy": self.numpy,
            "tolist": self.tolist,
            "pin_memory": lambda one, *args: one,
            "is_pinned": lambda one, *args: True,
        }


def _bound(method: Any) -> Any:
    """Return a property as it is, and a bound method as a function that takes the tensor first."""
    return (
        method if isinstance(method, property) else lambda one, *args, **kwargs: method(one, *args, **kwargs)
    )


@contextmanager
def second_device() -> Iterator[SecondDevice]:
    """Give this process a device "cuda:0" inside the block, and count what goes there and back."""
    mode = SecondDevice()
    with ExitStack() as stack:
        for name, method in mode.tensor_methods().items():
            stack.enter_context(_attribute(Tensor, name, _bound(method)))
        for name in ("tensor", "as_tensor"):
            stack.enter_context(patch.object(torch, name, mode.made(getattr(torch, name))))
        for replaced in (*_autocast(), *_cuda(), *_package(mode)):
            stack.enter_context(replaced)
        stack.enter_context(mode)
        try:
            yield mode
        finally:
            _forget_tables()


def _forget_tables() -> None:
    """Forget bitsandbytes' tables by device: the next block has a device of its own under the same name."""
    if "bitsandbytes" in sys.modules:
        from bitsandbytes.backends import utils
        from bitsandbytes.backends.default import ops

        utils._code_4bit_cache.clear()
        ops._get_4bit_quantize_bounds.cache_clear()


@contextmanager
def _attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Set an attribute of a class, and take it away again where the class had inherited it."""
    own = owner.__dict__.get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def _autocast() -> Iterator[Any]:
    """Yield patches that make autocast of the device that of the CPU, whose kernels run."""

    def as_cpu(device_type: str = "cpu") -> str:
        return "cpu" if device_type == "cuda" else device_type

    autocast = torch.amp.autocast_mode.autocast
    init = autocast.__init__
    enabled = torch.is_autocast_enabled
    dtype = torch.get_autocast_dtype

    def on_the_cpu(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        init(self, as_cpu(device_type), *args, **kwargs)

    yield patch.object(autocast, "__init__", on_the_cpu)
    yield patch.object(torch, "is_autocast_enabled", lambda device="cpu": enabled(as_cpu(device)))
    yield patch.object(torch, "get_autocast_dtype", lambda device: dtype(as_cpu(device)))


def _cuda() -> Iterator[Any]:
    """Yield patches that make torch.cuda find one device, without asking a driver."""
    properties = SimpleNamespace(name="a rehearsed device", total_memory=24 * 2**30)
    yield patch.object(torch.cuda, "is_available", lambda: True)
    yield patch.object(torch.cuda, "device_count", lambda: 1)
    yield patch.object(torch.cuda, "_lazy_init", lambda: None)
    yield patch.object(torch.cuda, "get_rng_state", lambda device=None: torch.get_rng_state())
    yield patch.object(torch.cuda, "set_rng_state", lambda state, device=None: torch.set_rng_state(state))
    yield patch.object(torch.cuda, "manual_seed_all", lambda seed: None)
    yield patch.object(torch.cuda, "get_device_properties", lambda device=None: properties)
    yield patch.object(torch.cuda, "mem_get_info", lambda device=None: (24 * 2**30, 24 * 2**30))


def _package(mode: SecondDevice) -> Iterator[Any]:
    """Yield patches of what the package does by libraries that look below these tensors."""
    from customized_grpo.policies import quantisation

    quantised = quantisation._quantised

    def on_the_cpu(weight: Tensor, kind: Any, device: torch.device) -> Any:
        if kind == "nf4":
            return quantised(weight, kind, device)
        with _disable_current_modes():  # torchao's class of tensors cannot be made under a mode
            parts = quantised(weight, kind, CPU)
        return tuple(part if part is None else mode.register.place(part, device) for part in parts)

    yield patch.object(quantisation, "_quantised", on_the_cpu)
