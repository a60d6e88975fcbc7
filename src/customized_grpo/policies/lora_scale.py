"""The scale of a LoRA's layers, s in W + s B A, by what its file or adapter_config.json says of it.

A tensor "alpha" beside a layer's matrices means s = alpha / rank. peft's configuration, in the header of
diffusers' files or in a file of its own, means the same with `lora_alpha`, or with the entry of
`alpha_pattern` that matches the layer; and s = alpha / sqrt(rank) with `use_rslora` (arXiv 2312.03732).
Without either s is 1.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from customized_grpo.errors import UserError
from customized_grpo.files import read_json

METADATA_KEY = "lora_adapter_metadata"
FILE_PREFIX = "transformer."
PEFT_CONFIG = "adapter_config.json"
MAX_REPETITIONS = 3
# with any other start peft changes the base's weights too, so its A and B fit no unchanged base
_STARTS_THAT_KEEP_THE_BASE = (True, False, None, "gaussian", "eva", "orthogonal")


class PeftScale:
    """What a configuration of peft says of the layers' scales.

    Args:
        config: Its entries.
        source: Where they are from, for messages.

    Raises:
        UserError: An entry has the wrong type, or is of something other than a plain LoRA.
    """

    def __init__(self, config: Mapping[str, Any], source: str) -> None:
        self._source = source
        self._config = config
        kind = str(config.get("peft_type", "LORA")).rpartition(".")[2]
        if kind != "LORA":
            raise UserError(f"{source}: peft_type is {kind}; only LORA is possible here")
        for key in ("use_dora", "use_qalora", "fan_in_fan_out"):
            if config.get(key):
                raise UserError(f"{source}: {key} is true; only a plain LoRA is possible here")
        start = config.get("init_lora_weights")
        if start not in _STARTS_THAT_KEEP_THE_BASE:
            raise UserError(
                f"{source}: init_lora_weights is {start!r}, so it was trained on changed base weights",
                hint="Let peft convert it when saving: path_initial_model_for_weight_conversion=FOLDER.",
            )
        self._rslora = config.get("use_rslora", False)
        if not isinstance(self._rslora, bool):
            raise UserError(f"{source}: use_rslora must be true or false, not {self._rslora!r}")
        self._patterns = {key: self._pattern(key) for key in ("alpha_pattern", "rank_pattern")}

    def alpha(self, layer: str, rank: int) -> float:
        """Return s times rank for a layer.

        Args:
            layer: Its name in the transformer.
            rank: Rank of its matrices in the file.

        Raises:
            UserError: The configuration says another rank, or no number.
        """
        expected = self._value(layer, "rank_pattern", "r")
        if expected is not None and expected != rank:
            raise UserError(f"{self._source}: {layer} has rank {expected:g} there, {rank} in its tensors")
        alpha = self._value(layer, "alpha_pattern", "lora_alpha")
        if alpha is None:
            raise UserError(f"{self._source}: there is no lora_alpha in it, so the scale is not known")
        # rslora divides by the root of the rank; what is returned is still divided by the rank.
        return alpha * math.sqrt(rank) if self._rslora else alpha

    def _value(self, layer: str, pattern_key: str, key: str) -> float | None:
        """Return the number of the first pattern that matches a layer's name, or that for all layers."""
        from peft.utils.other import get_pattern_key

        patterns = self._patterns[pattern_key]
        # peft's own rule, so that the first pattern wins here as there.
        matching = get_pattern_key(list(patterns), layer)
        value = patterns.get(matching, self._config.get(key))
        if value is None and key not in self._config:
            return None
        # bool is a subclass of int
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{self._source}: {key} of {layer} must be a number, not {value!r}")
        return float(value)

    def _pattern(self, key: str) -> dict[str, Any]:
        patterns = self._config.get(key) or {}
        if not isinstance(patterns, dict):
            raise UserError(f"{self._source}: {key} must map layer names to numbers, not {patterns!r}")
        for pattern in patterns:
            if not _is_simple(pattern):
                raise UserError(
                    f"{self._source}: {key} has {pattern!r}, no regular expression that is safe to use",
                    hint="Write whole names of layers, or their ends.",
                )
        return patterns


def read_scale(file: Path, header: Mapping[str, str], *, by_peft: bool) -> PeftScale | None:
    """Return what peft's configuration of a file says; None if it has none.

    Args:
        file: The safetensors file.
        header: The entries of its header.
        by_peft: Whether peft named the tensors: its files do not say their alpha themselves.

    Raises:
        UserError: The configuration is damaged, or there is none although peft wrote the file.
    """
    if METADATA_KEY in header:
        return PeftScale(_from_header(file, header[METADATA_KEY]), f"{file}, {METADATA_KEY} of its header")
    if not by_peft:
        return None
    config = file.with_name(PEFT_CONFIG)
    if not config.is_file():
        raise UserError(
            f"{file}: peft wrote it, and its scale is in {PEFT_CONFIG}, which is not beside it",
            hint=f"Copy it there, or write one that has the file's own numbers: "
            f'{{"r": RANK, "lora_alpha": ALPHA}} in {config}.',
        )
    return PeftScale(read_json(config), str(config))


def _is_simple(pattern: str) -> bool:
    """Return whether a regular expression can be compiled and matched fast: the file may be anybody's.

    A repeated group, or many repetitions one after the other, can take for ever.
    """
    # Nested repetitions can take exponential time; a name of a layer needs hardly any.
    repetitions = re.findall(r"[*+{]", pattern)
    if len(repetitions) > MAX_REPETITIONS or re.search(r"\)[*+?{]", pattern):
        return False
    try:
        re.compile(rf"(.*\.)?({pattern})$")  # as peft's `get_pattern_key` has it
    except (re.error, OverflowError, RecursionError):
        return False
    return True


def _from_header(file: Path, text: str) -> dict[str, Any]:
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: {METADATA_KEY} of its header is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{file}: {METADATA_KEY} of its header must be an object, not {text[:40]!r}")
    prefixed = {
        key.removeprefix(FILE_PREFIX): value for key, value in config.items() if key.startswith(FILE_PREFIX)
    }
    return prefixed or config
