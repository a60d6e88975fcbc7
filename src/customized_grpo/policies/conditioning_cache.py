"""Encoded prompts and references on disk: a safetensors file each, found by a hash of what was encoded."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from customized_grpo import __version__
from customized_grpo.errors import UserError
from customized_grpo.files import write_tensors
from customized_grpo.policies.conditioning import Conditioning

if TYPE_CHECKING:
    from customized_grpo.config.schema import ModelConfig
    from customized_grpo.policies.policy import Policy

# Settings that change nothing about what a prompt and its references are encoded to.
IRRELEVANT = {
    "path", "fuse_lora", "start_lora", "lora", "mu", "quantisation", "gradient_checkpointing", "compile",
    "text_encoders", "offload_vae", "cache", "device",
}  # fmt: skip
LIBRARIES = ("diffusers", "transformers")  # what encodes: a new version may encode otherwise, without a word
SAMPLED = 8  # values of each weight that go into the hash of a model's encoders


class ConditioningCache:
    """Conditionings of single samples by key; several runs, processes and machines may share one.

    A file is written beside its place and then renamed, so that readers see all of it or nothing. One that
    cannot be read counts as missing.

    Args:
        folder: Where to keep it; made when missing.
        encoders: From `encoders_hash`: with another model's, its files are never found.

    Raises:
        UserError: The folder cannot be made.
    """

    def __init__(self, folder: Path, encoders: str) -> None:
        # Other encoders have another folder: old files stay and are never mixed in.
        self.folder = folder / encoders[:16]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"model.cache {str(folder)!r} cannot be written: {error.strerror}", "Choose another folder."
            ) from error

    def get(self, key: str) -> Conditioning | None:
        """Return the conditioning of a key, on the CPU; None if there is none."""
        parts: dict[str, dict[str, Tensor]] = {"per_sample": {}, "shared": {}}
        try:
            with safe_open(self._file(key), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 not a mapping
                    part, _, rest = name.partition(".")
                    parts[part][rest] = file.get_tensor(name)
                # The size is no tensor, so it is in the header.
                size = json.loads(file.metadata()["size"])
        except (FileNotFoundError, SafetensorError):
            return None
        return Conditioning(**parts, height=size[0], width=size[1])

    def put(self, key: str, conditioning: Conditioning) -> None:
        """Write a conditioning under a key.

        Raises:
            UserError: It cannot be written.
        """
        tensors = {}
        for part in ("per_sample", "shared"):
            for name, tensor in getattr(conditioning, part).items():
                tensors[f"{part}.{name}"] = tensor.cpu().contiguous()
        target = self._file(key)
        size = json.dumps([conditioning.height, conditioning.width])
        try:
            write_tensors(target, tensors, {"size": size})
        except OSError as error:
            n_bytes = sum(tensor.nbytes for tensor in tensors.values())
            raise UserError(
                f"model.cache: cannot write {target} ({n_bytes:,} bytes): {error}",
                hint="Free some space, or set model.cache=null.",
            ) from error

    def _file(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def encoders_hash(policy: Policy, model: ModelConfig) -> str:
    """Return a hash of everything that encodings depend on: weights, settings, device, versions.

    Of every weight of the text encoders and the autoencoder it covers the name, shape, type and first values:
    any training changes those, and 10 GB need not be read.

    Args:
        policy: The policy, its text encoders still there.
        model: The recipe's `model` section.
    """
    # By exclusion: a setting that is new here counts until someone has thought about it.
    settings = model.model_dump(mode="json", exclude=IRRELEVANT)
    versions = [__version__, *[importlib.metadata.version(name) for name in LIBRARIES]]
    known = json.dumps([settings, policy.device.type, versions], sort_keys=True)
    digest = hashlib.sha256(known.encode())
    for part, module in sorted(policy.pipe.components.items()):
        # The transformer encodes nothing, and an adapter changes it all the time.
        if isinstance(module, nn.Module) and module is not policy.transformer:
            for name, tensor in sorted(module.state_dict().items()):
                digest.update(f"{part} {name} {tensor.dtype} {tuple(tensor.shape)};".encode())
                digest.update(tensor.detach().flatten()[:SAMPLED].float().cpu().numpy().tobytes())
    return digest.hexdigest()
