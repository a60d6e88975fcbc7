"""Changes of a valid input into one that may be anything: of bytes, of text, of JSON trees."""

from __future__ import annotations

import copy
import json
import math
import random
import struct
from typing import Any

import safetensors.torch
import torch

HEADER_LENGTH = struct.Struct("<Q")
"""The first bytes of a safetensors file: how long its JSON header is."""

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 10**30, 0.5, -0.0, 1e308, float("inf"), float("nan")),
    *("", " ", "null", "no", "1e-4", "nan", "0x10", "~", "/", "..", "../../etc/passwd", "a" * 5000),
    *(
        "é",
        "狗",
        "🦊",
        "\x00",
        "\x1b[31m",
        "\u202e",
        "\ud800",
        "a\nb",
        "key: value",
        "# text",
        "{",
        "${HOME}",
    ),
    *("!!python/object/apply:os.system ['true']", "os:system", "http://[", "C:\\dogs\\1.png"),
    *([], {}, [[]], [None], {"": ""}, {"a": {"b": []}}, [1, "a", None]),
)

FRAGMENTS = (
    *(
        "\x00",
        "\ufeff",
        "\r\n",
        "\t",
        "  ",
        "#",
        ":",
        "- ",
        "{",
        "[",
        '"',
        "'",
        "&a ",
        "*a",
        "<<: ",
        "!!",
        "---\n",
    ),
    *("\u2028", "é", "🦊", "\x85", "%", "|", ">", "9" * 400, "(" * 200, "[" * 3000),
)


def pick_node(draw: random.Random, tree: Any) -> tuple[Any, Any] | None:
    """Return a container of a JSON tree and a key in it, each equally likely; None: nothing is in it."""
    places: list[tuple[Any, Any]] = []
    containers = [tree]
    while containers:
        container = containers.pop()
        keys = list(container) if isinstance(container, dict) else range(len(container))
        for key in keys:
            places.append((container, key))
            if isinstance(container[key], dict | list):
                containers.append(container[key])
    return draw.choice(places) if places else None


def mutate_tree(draw: random.Random, tree: Any) -> Any:
    """Return a JSON tree after one to three changes, made in place where it is a container."""
    for _ in range(draw.randint(1, 3)):
        place = pick_node(draw, tree) if isinstance(tree, dict | list) else None
        if place is None or draw.random() < 0.02:
            return _odd_value(draw)
        _change(draw, *place)
    return tree


def _change(draw: random.Random, container: Any, key: Any) -> None:
    """Change one value of a container, remove it, or give it another key."""
    kind = draw.choice(("value", "value", "value", "wrap", "scale", "remove", "key"))
    value = container[key]
    if kind == "wrap":
        container[key] = [value]
    elif kind == "scale" and isinstance(value, int | float):
        container[key] = value * draw.choice((-1, 0.5, 3, 1000))
    elif kind == "remove":
        del container[key]
    elif kind == "key" and isinstance(container, dict):
        container[draw.choice(("", "x", "__class__", f"{key}s", f"{key}.{key}", "é"))] = container.pop(key)
    else:
        container[key] = _odd_value(draw)


def _odd_value(draw: random.Random) -> Any:
    """Return an odd value that no other input shares: changes would be carried from one to the next."""
    return copy.deepcopy(draw.choice(ODD_VALUES))


def mutate_text(draw: random.Random, text: str) -> str:
    """Return a text with pieces inserted, removed, repeated or cut off."""
    for _ in range(draw.randint(1, 4)):
        start = draw.randint(0, len(text))
        end = min(len(text), start + draw.randint(0, 40))
        kind = draw.choice(("insert", "insert", "remove", "repeat", "cut"))
        if kind == "insert":
            text = text[:start] + draw.choice(FRAGMENTS) + text[start:]
        elif kind == "remove":
            text = text[:start] + text[end:]
        elif kind == "repeat":
            text = text[:end] + text[start:]
        else:
            text = text[:start]
    return text


def mutate_bytes(draw: random.Random, data: bytes) -> bytes:
    """Return bytes with some flipped, inserted, overwritten or cut off."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        # The first bytes hold what decides how the rest is read.
        limit = min(len(changed), 64) if draw.random() < 0.5 else len(changed)
        start = draw.randint(0, limit)
        kind = draw.choice(("flip", "flip", "insert", "overwrite", "cut"))
        if kind == "flip" and start < len(changed):
            changed[start] ^= 1 << draw.randrange(8)
        elif kind == "insert":
            changed[start:start] = draw.randbytes(draw.randint(1, 16))
        elif kind == "overwrite":
            length = min(8, len(changed) - start)
            changed[start : start + length] = draw.choice((b"\xff" * length, b"\x00" * length))
        elif kind == "cut":
            del changed[start:]
    return bytes(changed)


def mutate_safetensors(draw: random.Random, data: bytes) -> bytes:
    """Return a safetensors file whose tensors, or whose header's JSON, or whose bytes are changed."""
    way = draw.random()
    if way < 0.2:
        return mutate_bytes(draw, data)
    (length,) = HEADER_LENGTH.unpack_from(data)
    end = HEADER_LENGTH.size + length
    header = json.loads(data[HEADER_LENGTH.size : end])
    if way < 0.4:
        text = dump_json(mutate_tree(draw, header))
        return HEADER_LENGTH.pack(len(text)) + text + data[end:]
    metadata = header.get("__metadata__", {})
    tensors = safetensors.torch.load(data)
    if metadata and draw.random() < 0.5:
        key = draw.choice(list(metadata))
        metadata[key] = _mutated_entry(draw, metadata[key])
    else:
        for _ in range(draw.randint(1, 3)):
            _mutate_tensors(draw, tensors)
    return safetensors.torch.save(tensors, metadata)


def _mutated_entry(draw: random.Random, text: str) -> str:
    """Return an entry of the metadata, which often is JSON, after a change."""
    try:
        tree = json.loads(text)
    except ValueError:
        return mutate_text(draw, text).encode("utf-8", "replace").decode()
    return json.dumps(mutate_tree(draw, tree))


def _mutate_tensors(draw: random.Random, tensors: dict[str, torch.Tensor]) -> None:
    """Remove, rename, add or spoil a tensor."""
    if not tensors:
        return
    name = draw.choice(list(tensors))
    tensor = tensors[name]
    kind = draw.choice(("remove", "rename", "add", "value", "shape", "dtype", "zero"))
    if kind == "remove":
        del tensors[name]
    elif kind == "rename":
        old, new = draw.choice(
            ((".lora_A.", ".lora_down."), ("transformer.", ""), (".weight", ""), ("", "x."))
        )
        tensors[name.replace(old, new, 1)] = tensors.pop(name)
    elif kind == "add":
        ending = draw.choice((".alpha", ".dora_scale", ".lokr_w1", ".bias", ".diff"))
        tensors[name.rpartition(".lora")[0] + ending] = torch.tensor(draw.choice((4.0, 0.0, -1.0, math.nan)))
    elif kind == "value" and tensor.is_floating_point():
        tensors[name] = tensor * draw.choice((math.nan, math.inf, 1e30))
    elif kind == "shape":
        tensors[name] = draw.choice(
            (tensor.flatten(), tensor.flatten()[:1].clone(), tensor[None], tensor.flatten().flip(0))
        )
    elif kind == "dtype":
        tensors[name] = tensor.to(draw.choice((torch.float64, torch.float16, torch.int8, torch.bool)))
    else:
        tensors[name] = torch.zeros(draw.choice(((), (0,), (0, 4), (1, 1))))


def dump_json(value: Any) -> bytes:
    """Return JSON, half surrogates and infinite numbers included, which a careless program writes."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", errors="surrogatepass")
