"""A user's own adapter, trained on, merged with what was in the base, and drawn with elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from customized_grpo.config import Config
from customized_grpo.errors import UserError
from customized_grpo.export.run import Merge, export_run
from customized_grpo.generation.drawing import draw
from customized_grpo.generation.opening import Generator, open_generator
from customized_grpo.runs.reading import run_checkpoint, run_config
from customized_grpo.training import trainer

Recipe = Callable[..., Config]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def loras(tmp_path_factory: Any, recipe: Recipe, make_adapted: Any) -> Path:
    """An SFT adapter of rank 3 and alpha 6, and another LoRA for the base."""
    folder = tmp_path_factory.mktemp("loras")
    target = r"'transformer_blocks\.\d+\.attn\.to_[qk]'"
    sft = recipe("model.lora.rank=3", "model.lora.alpha=6.0", f"model.lora.target={target}")
    make_adapted(sft).save_lora(folder / "sft")
    make_adapted(recipe("model.lora.rank=2")).save_lora(folder / "other")
    return folder


@pytest.fixture(scope="module")
def run(loras: Path, recipe: Recipe) -> Path:
    config = recipe(
        f"run.dir={loras / 'run'}",
        f"model.fuse_lora=[{{path: {loras}/other, scale: 0.5}}]",
        f"model.start_lora={loras}/sft",
        "train.iterations=1",
        "train.kl_weight=0.1",
        "train.kl_reference=start",
    )
    assert trainer.train(config) == 0
    return config.run.dir


def test_training_continues_the_adapter(run: Path, loras: Path) -> None:
    lora = run_config(run).model.lora
    assert (lora.rank, lora.alpha) == (3, 6.0)
    before = load_file(loras / "sft" / "pytorch_lora_weights.safetensors")
    after = run_checkpoint(run).tensors["adapter"]
    assert {f"transformer.{name}" for name in after} == before.keys()
    moves = [float((after[name] - before[f"transformer.{name}"]).abs().max()) for name in after]
    assert 0 < max(moves) < 1e-3  # one optimizer step at the learning rate of 3e-4


def test_the_kl_is_from_the_start(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    line = next(row for row in map(json.loads, lines) if row["kind"] == "train")
    assert abs(line["policy/kl"]) < 1e-9  # before the first step the policy is the start, not the base


def test_another_start_is_refused_by_its_content(run: Path, loras: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(loras, tmp_path / "moved"))
    text = (copy / "run" / "config.yaml").read_text()
    (copy / "run" / "config.yaml").write_text(text.replace(str(loras), str(copy)))
    assert trainer.resume(copy / "run", overrides=["train.iterations=1"]) == 0  # moved, and the same
    file = copy / "sft" / "pytorch_lora_weights.safetensors"
    tensors = load_file(file)
    with safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, file, header)
    with pytest.raises(UserError, match=r"model\.files\.start_lora: "):
        trainer.resume(copy / "run", overrides=["train.iterations=1"])


def test_the_merged_export_draws_on_the_plain_base_what_the_run_draws(
    run: Path, examples: Any, tmp_path: Path
) -> None:
    file = export_run(run, "diffusers", out=tmp_path / "merged", merge=Merge("adapter"))
    batch = [f"batch_size={run_config(run).evaluation.batch_size}"]
    drawn = images(open_generator(str(run)), examples)
    again = images(open_generator("toybox", lora=file, settings=batch), examples)
    plain = images(open_generator("toybox", settings=["steps=4", *batch]), examples)
    torch.testing.assert_close(again, drawn, atol=1e-4, rtol=0)
    assert (plain - drawn).abs().max() > 1e-2  # the comparison can fail


def images(generator: Generator, examples: Any) -> Tensor:
    with torch.no_grad():
        return torch.stack(list(draw(generator, examples, seed=0, count=1)))
