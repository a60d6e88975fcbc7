from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest
import torch

from customized_grpo.config import load_config, preset_names
from customized_grpo.config.schema import ModelConfig
from customized_grpo.embedded import EMBEDDED
from customized_grpo.errors import UserError
from customized_grpo.policies.architecture import n_parameters
from customized_grpo.policies.checkpoint_files import read_architecture
from customized_grpo.policies.checkpoints import CHECKPOINTS, build_transformer
from customized_grpo.policies.families import get_family
from customized_grpo.policies.provenance import Provenance
from customized_grpo.policies.sampling import Sampling

# transformer, autoencoder, text encoders, in 10^9 parameters: model cards and sizes of the published files
SIZES = {
    "black-forest-labs/FLUX.1-dev": (11.90, 0.0838, 0.123 + 4.762),
    "black-forest-labs/FLUX.1-Kontext-dev": (11.90, 0.0838, 0.123 + 4.762),
    "black-forest-labs/FLUX.2-dev": (32.2, 0.0840, 24.01),
    "black-forest-labs/FLUX.2-klein-4B": (3.88, 0.0840, 4.022),
    "black-forest-labs/FLUX.2-klein-base-4B": (3.88, 0.0840, 4.022),
    "black-forest-labs/FLUX.2-klein-9B": (9.08, 0.0840, 8.191),
    "black-forest-labs/FLUX.2-klein-base-9B": (9.08, 0.0840, 8.191),
    "Qwen/Qwen-Image-Edit-2509": (20.43, 0.1269, 8.292),
    "Qwen/Qwen-Image-Edit-2511": (20.43, 0.1269, 8.292),
    # counted from the classes' defaults; the card says 5.6
    "black-forest-labs/flux-3-image-klein-base": (5.538, 0.0840, 4.438),
    "Qwen/Qwen-Image-2.1": (7.115, 0.3378, 8.767),
}


DIFFERENCES = {
    # training takes fewer steps than the model cards' examples: what a group is ranked by is seen early
    "flux1-kontext": {"steps"},
    "flux2-klein": {"steps"},
    # one reference and a prompt need no more than 512 text tokens, and training pays for every one
    "qwen-image-edit": {"steps", "max_text_tokens"},
    "qwen-image-2.1": {"steps"},
    "flux3-klein": {"steps"},
}
"""Where a preset deliberately draws otherwise than its checkpoint's record says."""


@pytest.mark.parametrize("preset", [name for name in preset_names() if not name.startswith(tuple(EMBEDDED))])
def test_a_preset_draws_as_the_record_of_its_checkpoint_says(preset: str) -> None:
    config = load_config(preset)
    checkpoint = CHECKPOINTS[config.model.path]
    ours = Provenance.from_config(config).sampling
    assert checkpoint.family == config.model.family
    different = {
        field.name
        for field in fields(Sampling)
        if getattr(ours, field.name) != getattr(checkpoint.sampling, field.name)
    }
    name = preset.removesuffix("-8gpu").removesuffix("-24gb")
    assert different - {"height", "width"} == DIFFERENCES.get(name, set())  # sizes are the recipe's choice


def test_every_record_is_of_a_known_family_and_pipeline() -> None:
    for name, checkpoint in CHECKPOINTS.items():
        assert checkpoint.pipeline in get_family(checkpoint.family).pipelines, name
        options = get_family(checkpoint.family).options
        assert options(**checkpoint.sampling.options) is not None


def test_every_published_checkpoint_has_a_size_to_be_compared_with() -> None:
    assert SIZES.keys() == CHECKPOINTS.keys()


@pytest.mark.parametrize("name", SIZES)
def test_parameters_counted_without_data_are_those_that_were_published(name: str) -> None:
    architecture = CHECKPOINTS[name].architecture
    counted = (
        n_parameters(architecture.transformer.build()),
        n_parameters(architecture.vae.build()),
        sum(n_parameters(part.build()) for part in architecture.text_encoders),
    )
    assert [count / 1e9 for count in counted] == pytest.approx(SIZES[name], rel=2e-3)


def test_a_transformer_is_built_frozen_in_the_asked_type_without_data() -> None:
    transformer = build_transformer("black-forest-labs/FLUX.2-klein-4B", "meta", torch.bfloat16)
    parameters = list(transformer.parameters())
    assert {(p.dtype, p.is_meta, p.requires_grad) for p in parameters} == {(torch.bfloat16, True, False)}
    assert torch.get_default_dtype() == torch.float32
    with pytest.raises(UserError, match="FLUX.1-dev"):
        build_transformer("FLUX.3", "meta", torch.bfloat16)


def test_a_family_that_is_not_the_checkpoints_is_refused() -> None:
    with pytest.raises(UserError, match="is of family flux2, model.family says flux1"):
        read_architecture(ModelConfig(family="flux1", path="black-forest-labs/FLUX.2-dev"))


def test_a_folder_is_read_by_its_configs_and_a_broken_one_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model_index.json: no such file"):
        read_architecture(ModelConfig(path=str(tmp_path)))
    index = tmp_path / "model_index.json"
    index.write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(UserError, match="of no known family"):
        read_architecture(ModelConfig(path=str(tmp_path)))
    index.write_text(
        json.dumps(
            {
                "_class_name": "FluxPipeline",
                "transformer": ["diffusers", "FluxTransformer2DModel"],
                "vae": ["diffusers", "AutoencoderKL"],
            }
        )
    )
    with pytest.raises(UserError, match="transformer/config.json: no such file"):
        read_architecture(ModelConfig(path=str(tmp_path)))


def test_an_unknown_hub_id_out_of_reach_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="the hub cannot be reached"):
        read_architecture(ModelConfig(path="nobody/no-such-checkpoint"))
    with pytest.raises(UserError, match="no such folder"):
        read_architecture(ModelConfig(path="./absent"))
