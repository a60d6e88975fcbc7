"""Parts that wait: recorded moves say where each part is, its layers say when it works."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from customized_grpo.cli.main import main
from customized_grpo.errors import UserError
from customized_grpo.policies.offload import Placement
from customized_grpo.policies.policy import Policy

pytestmark = pytest.mark.slow  # all of them together

MakeImage = Callable[..., Tensor]
Load = Callable[..., Policy]

DEVICE = torch.device("cpu:0")
"""Stands for an accelerator: the same memory, but told apart from the "cpu" where parts wait."""
WAITS = torch.device("cpu")


class Record:
    """Where each part of a pipeline was last moved, and what was where whenever a layer of it worked."""

    def __init__(self, pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.place: dict[str, torch.device] = {}
        self.worked: dict[str, list[dict[str, torch.device]]] = {}
        for name, part in pipe.components.items():
            if isinstance(part, nn.Module):
                monkeypatch.setattr(part, "to", self._recording(name, part.to))
                for layer in part.modules():
                    if not list(layer.children()):
                        layer.register_forward_pre_hook(self._hook(name))

    def _recording(self, name: str, move: Callable[..., Any]) -> Callable[..., Any]:
        def to(device: torch.device) -> Any:  # and never a dtype: quantised layers have none of their own
            self.place[name] = device
            return move(device)

        return to

    def _hook(self, name: str) -> Callable[..., None]:
        def note(*_: object) -> None:
            self.worked.setdefault(name, []).append(dict(self.place))

        return note


def use(policy: Policy, make_image: MakeImage) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Encode two prompts, ask for a velocity and decode."""
    encoded = policy.encode(["a fox", "a bird"], [[make_image(1)], [make_image(2)]], 64, 64)
    x = policy.noise([torch.Generator().manual_seed(seed) for seed in (1, 2)], 64, 64)
    with torch.no_grad():
        v = policy.velocity(x, 0.6, encoded)
    return encoded.per_sample | encoded.shared, v, policy.decode(x, 64, 64)


def encoders_of(policy: Policy) -> set[str]:
    return {name for name in policy.pipe.components if name.startswith("text_encoder")}


@pytest.mark.parametrize("quantisation", [None, "nf4"])
@pytest.mark.parametrize("text_encoders", ["offload", "drop"])
def test_parts_that_wait_are_on_the_device_when_they_work_and_only_then(
    load_family: Load,
    make_image: MakeImage,
    monkeypatch: pytest.MonkeyPatch,
    family: str,
    text_encoders: str,
    quantisation: str | None,
) -> None:
    settings = {"text_encoders": text_encoders, "offload_vae": True, "quantisation": quantisation}
    policy = load_family(family, **settings)
    record = Record(policy.pipe, monkeypatch)
    policy.placement = Placement(policy.pipe, DEVICE, policy.placement.offload)
    encoders = encoders_of(policy)
    waiting = {**dict.fromkeys(encoders, WAITS), "vae": WAITS, "transformer": DEVICE}
    assert record.place == waiting

    kept = use(load_family(family, quantisation=quantisation), make_image)
    mine = use(policy, make_image)
    assert record.place == waiting
    assert record.worked.keys() == waiting.keys()
    for name, places in record.worked.items():
        assert all(place[name] == DEVICE for place in places), name
    for name in encoders:  # they take turns with the transformer
        assert all(place["transformer"] == WAITS for place in record.worked[name])
    for place in record.worked["transformer"]:
        assert place == waiting

    assert mine[0].keys() == kept[0].keys()
    assert all(torch.equal(tensor, kept[0][name]) for name, tensor in mine[0].items())
    assert torch.equal(mine[1], kept[1]) and torch.equal(mine[2], kept[2])


def test_nothing_moves_unless_asked_to(
    load_family: Load, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    policy = load_family(family)
    record = Record(policy.pipe, monkeypatch)
    use(policy, make_image)
    assert record.place == {}
    Placement(policy.pipe, DEVICE, policy.placement.offload)
    assert set(record.place.values()) == {DEVICE}


def test_parts_go_back_when_their_work_fails(
    load_family: Load, make_image: MakeImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = load_family("qwen_edit", text_encoders="offload", max_text_tokens=16)
    record = Record(policy.pipe, monkeypatch)
    policy.placement = Placement(policy.pipe, DEVICE, policy.placement.offload)
    with pytest.raises(UserError, match="max_text_tokens is 16"):
        policy.encode(["a fox"], [[make_image(1)]], 64, 64)
    assert record.place == {"text_encoder": WAITS, "vae": DEVICE, "transformer": DEVICE}


def test_dropped_text_encoders_are_freed_and_all_but_encoding_goes_on(
    load_family: Load, make_image: MakeImage, family: str, tmp_path: Path
) -> None:
    policy = load_family(family, text_encoders="drop")
    encoded = policy.encode(["a fox"], [[make_image(1)]], 64, 64)
    encoders = [weakref.ref(getattr(policy.pipe, name)) for name in encoders_of(policy)]
    policy.drop_text_encoders()
    gc.collect()
    assert encoders and not [one for one in encoders if one() is not None]

    x = policy.noise([torch.Generator().manual_seed(0)], 64, 64)
    policy.velocity(x, 0.6, encoded).square().mean().backward()
    assert policy.decode(x, 64, 64).shape == (1, 3, 64, 64)
    assert policy.save_lora(tmp_path).is_file()
    with pytest.raises(UserError, match="text encoders were dropped") as caught:
        policy.encode(["a bird"], [[make_image(1)]], 64, 64)
    assert "model.text_encoders=offload" in str(caught.value)


def test_offloading_changes_no_number_of_a_run(tmp_path: Path) -> None:
    lines = []
    for name, settings in {"kept": [], "offloaded": ["text_encoders=offload", "offload_vae=true"]}.items():
        run = tmp_path / name
        shorter = ["train.iterations=1", "evaluation.every=0"]
        with pytest.raises(SystemExit) as left:
            main(["train", "toybox-smoke", f"run.dir={run}", *shorter, *[f"model.{one}" for one in settings]])
        assert left.value.code == 0
        lines.append([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()])
    for kept, offloaded in zip(*lines, strict=True):
        numbers = {key for key in kept if not key.startswith("time/") and key != "wall_s"}
        assert {key: kept[key] for key in numbers} == {key: offloaded[key] for key in numbers}
