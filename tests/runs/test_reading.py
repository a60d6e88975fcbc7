"""Reading a run back: the base under its adapter."""

from __future__ import annotations

from pathlib import Path

import pytest

from customized_grpo.config.schema import ModelConfig
from customized_grpo.policies.base_files import fingerprint_base
from customized_grpo.runs.checkpoints import Checkpoint
from customized_grpo.runs.reading import warn_of_other_base


def test_an_adapter_on_another_base_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = tmp_path / "base" / "diffusion_pytorch_model.safetensors"
    weights.parent.mkdir()
    weights.write_text("weights")
    model = ModelConfig(path=str(weights.parent))
    digests = {f"model.files.{name}": digest for name, digest in fingerprint_base(model).items()}
    checkpoint = Checkpoint(1, {}, {"contents": digests})
    warn_of_other_base(checkpoint, model)
    assert capsys.readouterr().err == ""
    weights.write_text("weightz")
    warn_of_other_base(checkpoint, model)
    assert f"not the one that this run was trained on: {weights.name}" in capsys.readouterr().err
    digests["model.files.start_lora"] = "of a file that only training needs"
    warn_of_other_base(Checkpoint(1, {}, {"contents": digests}), model)
    assert "start_lora" not in capsys.readouterr().err
    warn_of_other_base(Checkpoint(1, {}, {}), model)
    assert capsys.readouterr().err == "", "an older checkpoint does not know"
