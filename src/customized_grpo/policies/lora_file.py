"""A LoRA file: which linear layers it updates, and how; `lora_reader` reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from customized_grpo.errors import UserError
from customized_grpo.files import open_tensors
from customized_grpo.hub import is_hub_id

FILE_NAME = "pytorch_lora_weights.safetensors"
PEFT_FILE_NAME = "adapter_model.safetensors"
PICKLED = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
EXAMPLES = 3  # names in a message


@dataclass(frozen=True)
class LowRank:
    """The update of one linear layer: W + (alpha / rank) up down.

    Attributes:
        down: A [rank, in], in the file's type.
        up: B [out, rank], in the file's type.
        alpha: Scale times rank.
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def scale(self) -> float:
        """Return alpha / rank."""
        return self.alpha / self.down.shape[0]


@dataclass(frozen=True)
class Entry:
    """Where in a file the update of one layer is.

    Attributes:
        down: Key of A.
        up: Key of B, whose rows may be those of several layers.
        rows: Which of them are this layer's.
        rank: Rank of both.
        alpha: Scale times rank.
    """

    down: str
    up: str
    rows: slice
    rank: int
    alpha: float


@dataclass(frozen=True)
class LoraFile:
    """A safetensors file with low-rank updates of a transformer's linear layers.

    Attributes:
        path: The file.
        header: All entries of its header.
        entries: By the name of the layer.
    """

    path: Path
    header: Mapping[str, str]
    entries: Mapping[str, Entry]

    @property
    def rank(self) -> int:
        """Return the largest rank of a layer."""
        return max(entry.rank for entry in self.entries.values())

    @property
    def is_uniform(self) -> bool:
        """Return whether all layers have one rank and one scale."""
        return len({(entry.rank, entry.alpha) for entry in self.entries.values()}) == 1

    @property
    def alpha(self) -> float:
        """Return the alpha of an adapter that takes the file: its own, or the rank if it has several."""
        return next(iter(self.entries.values())).alpha if self.is_uniform else float(self.rank)

    @property
    def target(self) -> str:
        """Return a regular expression that matches the updated layers and no others."""
        # Escaped, because a dot in a name would match any character.
        return "|".join(re.escape(name) for name in sorted(self.entries))

    def updates(self) -> Iterator[tuple[str, LowRank]]:
        """Read the layers' updates one by one.

        Yields:
            Name and update of a layer.

        Raises:
            UserError: A tensor has values that are not finite.
        """
        with open_tensors(self.path) as opened:
            for name, entry in self.entries.items():
                down = opened.get_tensor(entry.down)
                # B of fused projections (q, k, v in one) has the rows of several layers; A is common to them.
                up = opened.get_tensor(entry.up)[entry.rows]
                for key, tensor in ((entry.down, down), (entry.up, up)):
                    if not bool(tensor.float().isfinite().all()):
                        raise UserError(
                            f"{self.path}: {key} has values that are not finite",
                            hint="Its training diverged, or the file is damaged.",
                        )
                yield name, LowRank(down, up, entry.alpha)

    def adapter_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of an adapter of `rank`, by the names of `lora.adapter_tensors`, fp32.

        Layers of a lower rank get rows and columns of zeros.
        """
        tensors = {}
        for name, update in self.updates():
            # Zero rows of A and zero columns of B: their product, the update, stays the same.
            missing = self.rank - update.down.shape[0]
            tensors[f"{name}.lora_A.weight"] = nn.functional.pad(update.down.float(), (0, 0, 0, missing))
            tensors[f"{name}.lora_B.weight"] = nn.functional.pad(update.up.float(), (0, missing))
        return tensors

    def uniform_tensors(self) -> dict[str, Tensor]:
        """Return `adapter_tensors` for one scale, that of `alpha`, in all layers.

        Where a layer has another scale, its B takes up the quotient: the update stays the same.
        """
        tensors = self.adapter_tensors()
        common = self.alpha / self.rank
        for name, scale in self.scales().items():
            if scale != common:
                tensors[f"{name}.lora_B.weight"] *= scale / common
        return tensors

    def scales(self) -> dict[str, float]:
        """Return alpha / rank of every layer."""
        return {name: entry.alpha / entry.rank for name, entry in self.entries.items()}


def find_file(path: Path) -> Path:
    """Return the LoRA file at a path, or the one in a folder.

    Raises:
        UserError: No such file, or a pickle.
    """
    path = path.expanduser()
    if path.suffix in PICKLED:
        raise UserError(
            f"{path}: pickled weights are refused, because loading them can run any program",
            hint="Ask for safetensors, or convert: safetensors.torch.save_file(torch.load(path), new_path).",
        )
    file = path
    if path.is_dir():
        # diffusers' name first; a folder of peft alone has the other one.
        present = [path / name for name in (FILE_NAME, PEFT_FILE_NAME) if (path / name).is_file()]
        file = present[0] if present else path / FILE_NAME
    if not file.is_file():
        hint = f"A saved adapter is a folder with {FILE_NAME} or {PEFT_FILE_NAME}."
        if is_hub_id(str(path)):
            hint += f" To use one of the hub: `hf download {path} --local-dir FOLDER`, and name the folder."
        raise UserError(f"{file}: no such file", hint=hint)
    return file


def read_header(path: Path) -> Mapping[str, str]:
    """Return the header's entries of a LoRA file, or of the one in a folder.

    Raises:
        UserError: See `find_file`, or it is not safetensors.
    """
    with open_tensors(find_file(path)) as opened:
        header: dict[str, str] = opened.metadata() or {}
    return header


def examples(names: list[str]) -> str:
    """Return the first of some names, for a message."""
    return ", ".join(names[:EXAMPLES]) + (", ..." if len(names) > EXAMPLES else "")
