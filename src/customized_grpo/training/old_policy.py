"""The old policy of NFT and AWM: the adapter that draws the samples and follows the trained one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from customized_grpo.algorithms.forward_process import old_decay
from customized_grpo.errors import UserError
from customized_grpo.policies.lora import adapter_exchanged

if TYPE_CHECKING:
    from customized_grpo.config.training import ForwardConfig
    from customized_grpo.policies.policy import Policy


class OldPolicy:
    """A copy of the adapter that is moved towards it after each iteration.

    Args:
        policy: The policy that is trained; the copy is made of its adapter as it is now.
        config: How it follows.
    """

    def __init__(self, policy: Policy, config: ForwardConfig) -> None:
        self.policy = policy
        self.growth = config.old_growth
        self.largest = config.old_largest
        # Tensors and no second model: only the adapter differs.
        self._tensors = policy.adapter_tensors()

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the old adapter on the policy inside the block, without gradients."""
        with torch.no_grad(), adapter_exchanged(self.policy.transformer, self._tensors):
            yield

    def follow(self, iteration: int) -> None:
        """Move it after an iteration: old = d old + (1 - d) trained, d = `old_decay`.

        Args:
            iteration: Number of finished iterations before this one.
        """
        share = old_decay(iteration, self.growth, self.largest)
        for name, trained in self.policy.adapter_tensors().items():
            # at share 0 the copy itself, to the bit: a sum of rounded products need not be
            self._tensors[name] = trained if share == 0 else torch.lerp(trained, self._tensors[name], share)

    def tensors(self) -> dict[str, Tensor]:
        """Return its tensors by name, for a checkpoint."""
        return dict(self._tensors)

    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Take the tensors of a checkpoint over.

        Raises:
            UserError: They are not those of this adapter.
        """
        shapes = {name: tensor.shape for name, tensor in self._tensors.items()}
        if {name: tensor.shape for name, tensor in saved.items()} != shapes:
            raise UserError(
                "the checkpoint's old policy has other tensors than the adapter",
                hint="It was saved for another model, adapter rank or target: resume with the same ones.",
            )
        for name, tensor in self._tensors.items():
            # a copy of the same type and on the same device
            self._tensors[name] = saved[name].to(tensor, copy=True)
