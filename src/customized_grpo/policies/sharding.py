"""A frozen base that is split over the processes (FSDP2), for transformers that one device cannot hold.

Every process keeps a part of each weight; a block's weights are gathered for as long as it runs. The adapter
is added afterwards and whole on every process: its gradients are summed as without sharding, and checkpoints
are the same.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from customized_grpo.errors import UserError


def shard(transformer: Any, device: torch.device) -> None:
    """Split a frozen transformer, without an adapter yet, over all processes, block by block.

    Args:
        transformer: A diffusers model; it may be on the CPU, and its parts move to the device as they are
            split, so that a device never holds more than its share and one block.
        device: Where this process runs.

    Raises:
        UserError: There is only one process.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        raise UserError(
            "model.shard=true needs several processes, this is one",
            hint="Start with torchrun or accelerate launch.",
        )
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    transformer.requires_grad_(False)
    # Block by block, so that only one is whole on a device at a time.
    for block in transformer.modules():
        if type(block).__name__ in transformer._repeated_blocks:
            fully_shard(block, mesh=mesh)
    # Last: the root takes what the blocks have left, embeddings and output layer.
    fully_shard(transformer, mesh=mesh)


def is_sharded(transformer: torch.nn.Module) -> bool:
    """Return whether `shard` was called on a transformer."""
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in transformer.parameters())
