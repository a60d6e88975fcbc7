"""The places of a pipeline's parts: on the device, or waiting on the CPU until they are needed.

Text encoders that wait take turns with the transformer: those of Qwen-Image-Edit, 15 GiB, do not fit 24 GiB
together with its transformer, 10 GiB even in nf4.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from customized_grpo.errors import UserError
from customized_grpo.policies.host_copy import CPU, HostCopy
from customized_grpo.policies.sharding import is_sharded


@dataclass(frozen=True)
class Offload:
    """Which parts wait on the CPU between their calls.

    Attributes:
        text_encoders: "keep" leaves them on the device; "offload" lets them wait; "drop" lets them wait, and
            the trainer frees them once every row is encoded.
        vae: Whether the autoencoder waits.
    """

    text_encoders: Literal["keep", "offload", "drop"] = "keep"
    vae: bool = False


EVERYTHING_STAYS = Offload()


class Placement:
    """The places of a pipeline's parts; those that wait are on the device for as long as they work.

    Args:
        pipe: A diffusers pipeline.
        device: Where parts work.
        offload: Which of them wait.
    """

    def __init__(self, pipe: Any, device: torch.device, offload: Offload) -> None:
        self._pipe = pipe
        self._device = device
        self.offload = offload
        self._dropped = False
        self._encoding = False
        self._copies: dict[str, HostCopy] = {}
        for name, part in pipe.components.items():
            if isinstance(part, nn.Module):
                self._copies[name] = HostCopy(part, device)
                part.to(CPU if self._waits(name) else device)

    @property
    def text_encoders_wait(self) -> bool:
        """Return whether text encoders come for their work only; the transformer then makes room for them."""
        return self.offload.text_encoders != "keep"

    @contextmanager
    def text_encoders(self) -> Iterator[None]:
        """Have the text encoders on the device inside the block; when they wait, without the transformer.

        A block inside another one changes nothing, so that many calls can share one transfer.

        Raises:
            UserError: They were dropped.
        """
        if self._dropped:
            raise UserError(
                "the text encoders were dropped after all rows were encoded; no other prompt can be encoded",
                hint="Set model.text_encoders=offload, which keeps them on the CPU.",
            )
        if not self.text_encoders_wait or self._encoding:
            yield
            return
        self._encoding = True
        stays = is_sharded(self._pipe.transformer)  # small enough, and its parts cannot be moved
        if not stays:
            # Out of the way first: encoders and transformer together may not fit.
            self._copies["transformer"].leave()
        try:
            with self._visiting(self._text_encoder_names()):
                yield
        finally:
            # The encoders have left by now: the transformer may need their place.
            self._encoding = False
            if not stays:
                self._copies["transformer"].come()

    @contextmanager
    def vae(self) -> Iterator[None]:
        """Have the autoencoder on the device inside the block."""
        with self._visiting(["vae"] if self.offload.vae else []):
            yield

    def drop_text_encoders(self) -> None:
        """Free the text encoders; they cannot come back."""
        names = self._text_encoder_names()
        for name in names:
            setattr(self._pipe, name, None)  # what pipelines and modular ones both take
            del self._copies[name]
        self._dropped = True

    @contextmanager
    def _visiting(self, names: Sequence[str]) -> Iterator[None]:
        parts = [self._copies[name] for name in names]
        try:
            for part in parts:
                part.come()
            yield
        finally:
            for part in parts:
                part.leave()

    def _waits(self, name: str) -> bool:
        if name in self._text_encoder_names():
            return self.text_encoders_wait
        return name == "vae" and self.offload.vae

    def _text_encoder_names(self) -> list[str]:
        """Return text_encoder, and text_encoder_2 where the family has two."""
        parts = self._pipe.components.items()
        return [name for name, part in parts if name.startswith("text_encoder") and part is not None]
