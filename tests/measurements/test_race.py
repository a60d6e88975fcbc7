"""The race's table and turns; its contestants need checkouts of other programs, which tests do not have."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import race
from customized_grpo.embedded import load_embedded
from customized_grpo.policies.architecture import Part
from racing.flow_factory import recipe
from racing.work import LORA_TARGETS, Work

MEASUREMENTS = Path(race.__file__).parent
LOOP = """
import sys
from racing.gate import Gate
gate = Gate()
class Model:
    def forward(self, image, text): return image
gate.count(Model, "image", "text")
import torch
print("what a program prints is no report")
for turn in range(3):
    gate.wait()
    with torch.no_grad(): Model().forward(image=torch.ones(2, 16, 8), text=torch.ones(2, 5, 8))
    for _ in range(turn): Model().forward(image=torch.ones(3, 16, 8), text=torch.ones(3, 5, 8))
gate.wait()
"""


def turn(cpu_s: float) -> race.Turn:
    return {"cpu_s": cpu_s, "wall_s": 2 * cpu_s, "sampled": 96, "trained": 36, "shape": "32 + 24 tokens"}


def test_the_table_has_medians_and_their_ratio_to_ours() -> None:
    ours, theirs = race.table("equal", {"ours": [turn(2), turn(9), turn(1)], "flow_grpo": [turn(3), turn(5)]})
    assert ours == (
        "| equal | Customized-GRPO | 2.00 (1.00 to 9.00) | 4.00 | 1.00 | 96 + 36 | 32 + 24 tokens |"
    )
    assert theirs == "| equal | flow_grpo | 4.00 (3.00 to 5.00) | 8.00 | 2.00 | 96 + 36 | 32 + 24 tokens |"


def test_a_turn_counts_what_went_through_the_model_since_it_began() -> None:
    environment = os.environ | {"PYTHONPATH": str(MEASUREMENTS)}
    done = subprocess.run(
        [sys.executable, "-c", LOOP],
        input="go\ngo\n",
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert reports[0] == {"ready": True}
    assert [(one["sampled"], one["trained"], one["shape"]) for one in reports[1:]] == [
        (2, 0, "16 + 5 tokens"),
        (2, 3, "16 + 5 tokens"),
    ]
    assert "no report" in done.stderr


def test_flow_factory_is_asked_for_the_same_work() -> None:
    work = Work(samples=24, group_size=12, batch_size=6, steps=8, trained=3)
    settings = recipe(work, Path("files"), Path("out"))
    train, scheduler = settings["train"], settings["scheduler"]
    assert train["unique_sample_num_per_epoch"] * train["group_size"] == work.samples
    assert (train["per_device_batch_size"], work.batches) == (6, 4)
    assert (train["num_inference_steps"], scheduler["num_sde_steps"]) == (8, 3)
    assert max(scheduler["sde_steps"]) == 6  # the last step draws no noise, as ours


@pytest.mark.parametrize("on_proj_out", [False, True])
def test_ours_has_its_lora_on_the_layers_of_the_others(on_proj_out: bool) -> None:
    config = load_embedded("toybox").transformer.config
    transformer = Part("diffusers", "FluxTransformer2DModel", config).build()
    layers = [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]
    # peft takes a name in a list for the end of a layer's
    theirs = {name for name in layers if name.endswith(tuple(f".{target}" for target in LORA_TARGETS))}
    outputs = {f"single_transformer_blocks.{block}.proj_out" for block in range(config.num_single_layers)}
    target = Work(lora_on_proj_out=on_proj_out).lora_target
    ours = {name for name in layers if re.fullmatch(target, name)}
    assert ours == theirs | (outputs if on_proj_out else set())
    assert len(theirs) == 8 * config.num_layers + 3 * config.num_single_layers


def test_a_race_without_checkouts_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["race.py"])
    with pytest.raises(SystemExit) as ended:
        race.main()
    assert ended.value.code == 2
    assert re.search("name at least one checkout", capsys.readouterr().err)
