"""Where tokens are in a sequence, worked out for real while the rest of a model has no data.

Some transformers read from a mask which places of a sequence are images. Masks and indices are small and hold
values, so operations on them alone run as usual; an operation on both gets indices instead of a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map_only

_FACTORIES = (torch.ones, torch.zeros, torch.arange, torch.tensor)


class RealLayout(TorchFunctionMode):
    """Inside the block, tensors of truth values and integers have data, also in a `FakeTensorMode`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [value for value in tree_iter((args, kwargs)) if isinstance(value, Tensor)]
        if func in _FACTORIES:
            return _made(func, args, kwargs)
        if given and all(_is_layout(tensor) for tensor in given):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is Tensor.repeat_interleave and len(args) > 1 and isinstance(args[1], Tensor):
            return _repeated(args[0], args[1], **kwargs)
        if func in (Tensor.__getitem__, Tensor.__setitem__):
            args = (args[0], tree_map_only(Tensor, _places, args[1]), *args[2:])
        return func(*args, **kwargs)


def _is_layout(tensor: Tensor) -> bool:
    return not isinstance(tensor, FakeTensor) and not (tensor.is_floating_point() or tensor.is_complex())


def _made(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    """Return a new tensor, with data if it is of truth values or integers."""
    with unset_fake_temporarily():
        probe: Tensor = func(*args, **{**kwargs, "device": "meta"})
    if probe.is_floating_point() or probe.is_complex():
        made: Tensor = func(*args, **kwargs)
        return made
    with unset_fake_temporarily():
        real: Tensor = func(*args, **kwargs)
    return real


def _places(index: Tensor) -> Tensor:
    """Return where a mask is true; any other index as it is."""
    if index.dtype != torch.bool or not _is_layout(index):
        return index
    with unset_fake_temporarily():
        return index.nonzero()[:, 0]


def _repeated(tensor: Tensor, repeats: Tensor, dim: int) -> Tensor:
    with unset_fake_temporarily():
        places = torch.arange(len(repeats)).repeat_interleave(repeats)
    return tensor.index_select(dim, places)
