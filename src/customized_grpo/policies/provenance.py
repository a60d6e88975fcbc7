"""What an adapter's file says of the model it was trained on, so that others draw as its run was judged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pydantic import TypeAdapter

from customized_grpo.config.schema import FusedLora, FusedLoras
from customized_grpo.errors import UserError
from customized_grpo.hub import public_name
from customized_grpo.policies.families import read_options
from customized_grpo.policies.reference_rule import reference_size_of
from customized_grpo.policies.sampling import Sampling

if TYPE_CHECKING:
    from customized_grpo.config import Config

HEADER_KEY = "cgrpo.trained_on"


@dataclass(frozen=True)
class Provenance:
    """The model that an adapter was trained on, its weights apart.

    Attributes:
        family: Name of its family.
        sampling: How the run's evaluation drew images.
        fuse_lora: LoRAs that were part of the base, each a section of `model.fuse_lora` whose path is a hub's
            "owner/name:file" or the name of a file.
    """

    family: str
    sampling: Sampling
    fuse_lora: tuple[FusedLora, ...] = ()

    @classmethod
    def from_config(cls, config: Config) -> Provenance:
        """Return what a run's recipe says; a file of this machine is named by its last part alone."""
        # As the run was judged, and not as it was trained: sizes and guidance may differ.
        model = config.evaluation_model
        sampling = Sampling(
            guidance=model.guidance,
            steps=config.evaluation_steps,
            mu=model.mu,
            max_text_tokens=model.max_text_tokens,
            height=model.height,
            width=model.width,
            precision=model.precision,
            reference_fit=model.reference_fit,
            reference_size=reference_size_of(config),
            options=read_options(model).model_dump(mode="json", exclude_defaults=True),
        )
        return cls(model.family, sampling, tuple(public_lora(lora) for lora in model.fuse_lora))

    def to_header(self) -> dict[str, str]:
        """Return the entry of a safetensors header."""
        loras = [lora.model_dump() for lora in self.fuse_lora]
        return {HEADER_KEY: json.dumps(asdict(self) | {"fuse_lora": loras}, sort_keys=True)}

    @classmethod
    def from_header(cls, header: Mapping[str, str], source: str) -> Provenance | None:
        """Return what a safetensors header says; None if the file was not written by this package.

        Values are not checked: they become settings, which are checked as strictly as a recipe.

        Args:
            header: The metadata of a file.
            source: The file, for the message.

        Raises:
            UserError: The entry has another form.
        """
        if HEADER_KEY not in header:
            return None
        try:
            entry = json.loads(header[HEADER_KEY])
            loras = TypeAdapter(FusedLoras).validate_python(entry["fuse_lora"])
            return cls(entry["family"], Sampling(**entry["sampling"]), loras)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{source}: this version cannot read the entry {HEADER_KEY!r} of its header: {error}",
                hint="Use the version of customized-grpo that wrote it.",
            ) from error


def public_lora(lora: FusedLora) -> FusedLora:
    """Return what to call a fused LoRA in public, see `hub.public_name`."""
    return lora.model_copy(update={"path": public_name(lora.path)})
