"""`cgrpo export`: which adapter is written, what its header says, what is refused; no weights are read."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from customized_grpo.cli.main import main
from customized_grpo.errors import UserError
from customized_grpo.export import FORMAT_NAMES, export_run
from customized_grpo.export.adapter import Layer, RunAdapter, read_adapter
from customized_grpo.export.formats import FORMATS
from customized_grpo.export.metadata import header, tensor_hash
from customized_grpo.export.run import file_stem, in_precision
from customized_grpo.policies.checkpoints import CHECKPOINTS
from customized_grpo.runs.folder import RunFolder


@pytest.fixture(scope="module")
def trained(make_trained: Any) -> Any:
    return make_trained("flux1", alpha=6.0)


def export(*arguments: object) -> int:
    try:
        return main(["export", *map(str, arguments)])
    except SystemExit as left:
        assert isinstance(left.code, int)
        return left.code


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata())


@pytest.mark.parametrize("family", ["flux1", "flux2", "qwen_edit", "qwen_image21", "flux3"])
def test_the_average_is_exported_under_its_own_layers_names(
    family: str, make_trained: Any, tmp_path: Path
) -> None:
    trained = make_trained(family, average=True)
    tensors = load_file(export_run(trained.path, "diffusers", out=tmp_path / "average"))
    expected = trained.policy.adapter_tensors()
    assert tensors.keys() == {f"transformer.{name}" for name in expected}
    for name, tensor in expected.items():
        assert torch.equal(tensors[f"transformer.{name}"], tensor / 2), name
    now = load_file(export_run(trained.path, "diffusers", out=tmp_path / "now", average=False))
    assert all(torch.equal(now[f"transformer.{name}"], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("average", [False, True])
def test_no_weights_of_the_base_are_read(average: bool, make_trained: Any, tmp_path: Path) -> None:
    trained = make_trained("flux1", average=True)
    weights = list(trained.base.rglob("*.safetensors"))
    hidden = [Path(shutil.move(path, path.with_suffix(".hidden"))) for path in weights]
    try:
        exported = export_run(trained.path, "kohya", out=tmp_path / "out", average=average)
    finally:
        for path in hidden:
            shutil.move(path, path.with_suffix(".safetensors"))
    assert weights and exported.stat().st_size > 0


def test_a_named_checkpoint_is_exported(make_trained: Any, tmp_path: Path) -> None:
    trained = make_trained("flux1", step=7)
    assert (
        metadata(export_run(trained.path, "diffusers", out=tmp_path / "a", step=7))["cgrpo.iteration"] == "7"
    )
    with pytest.raises(UserError, match="no committed checkpoint of step 3"):
        export_run(trained.path, "diffusers", out=tmp_path / "b", step=3)
    assert not (tmp_path / "b").exists()


def test_the_header_says_what_the_file_is(trained: Any, tmp_path: Path) -> None:
    files = {name: export_run(trained.path, name, out=tmp_path / name) for name in FORMAT_NAMES}
    found = {name: metadata(file) for name, file in files.items()}
    kohya = found["kohya"]
    assert kohya["modelspec.architecture"] == "flux-1-dev/lora"
    assert (kohya["ss_network_module"], kohya["ss_network_dim"], kohya["ss_network_alpha"]) == (
        "networks.lora_flux", "4", "6",
    )  # fmt: skip
    assert found["comfyui"]["ss_network_alpha"] == "4"  # none is left: it is folded in
    assert json.loads(found["diffusers"]["lora_adapter_metadata"])["transformer.lora_alpha"] == 6.0
    assert kohya["ss_seed"] == "0" and kohya["ss_sd_model_name"] == "flux1"
    assert len({facts["modelspec.hash_sha256"] for facts in found.values()}) == 3
    for facts in found.values():
        assert str(trained.base.parent) not in json.dumps(facts)  # no folders of this machine


QWEN_IMAGE21 = "networks.lora_qwen_image_21"
NAMES = {
    # sd-scripts at 48d368fa: library/sai_model_spec.py, library/flux_utils.py, flux_train_network.py
    "black-forest-labs/FLUX.1-Kontext-dev": ("flux-1-dev", "networks.lora_flux", "flux1"),
    # musubi-tuner at 30c658c: utils/sai_model_spec.py, networks/, dataset/architectures.py
    "black-forest-labs/FLUX.2-dev": ("Flux.2-dev", "networks.lora_flux_2", "flux_2_dev"),
    "black-forest-labs/FLUX.2-klein-4B": ("Flux.2-klein-4b", "networks.lora_flux_2", "flux_2_klein_4b"),
    "black-forest-labs/FLUX.2-klein-base-4B": ("Flux.2-klein-4b", "networks.lora_flux_2", "flux_2_klein_4b"),
    "black-forest-labs/FLUX.2-klein-9B": ("Flux.2-klein-9b", "networks.lora_flux_2", "flux_2_klein_9b"),
    "black-forest-labs/FLUX.2-klein-base-9B": ("Flux.2-klein-9b", "networks.lora_flux_2", "flux_2_klein_9b"),
    "Qwen/Qwen-Image-Edit-2509": ("Qwen-Image-Edit-Plus", "networks.lora_qwen_image", "qwen_image_edit"),
    "Qwen/Qwen-Image-Edit-2511": ("Qwen-Image-Edit-2511", "networks.lora_qwen_image", "qwen_image_edit"),
    # the module: musubi-tuner at 960b201; the architecture: SwarmUI's class of models; the version is not
    # confirmed: it follows the others
    "Qwen/Qwen-Image-2.1": ("Qwen-Image-2.1", QWEN_IMAGE21, "qwen_image_21"),
    # nobody has named it yet
    "black-forest-labs/flux-3-image-klein-base": (None, None, None),
}


@pytest.mark.parametrize("path", NAMES)
def test_the_header_names_the_base_as_trainers_name_it(path: str, trained: Any) -> None:
    adapter = read_adapter(trained.path)
    base = {"path": path, "family": CHECKPOINTS[path].family, "options": {}}
    model = adapter.config.model.model_copy(update=base)
    adapter = replace(adapter, config=adapter.config.model_copy(update={"model": model}))
    found = header(adapter, "diffusers", {}, title="x")
    architecture, module, version = NAMES[path]
    assert found.get("modelspec.architecture") == (architecture and f"{architecture}/lora")
    assert ("modelspec.sai_model_spec" in found) == (architecture is not None)
    assert (found.get("ss_network_module"), found.get("ss_base_model_version")) == (module, version)
    assert found["ss_sd_model_name"] == path


def test_every_known_checkpoint_has_names_that_were_looked_up() -> None:
    assert NAMES.keys() == CHECKPOINTS.keys() - {"black-forest-labs/FLUX.1-dev"}  # as Kontext


@pytest.mark.parametrize(
    ("family", "name", "words"),
    [
        ("flux3", "comfyui", "no public version of ComfyUI"),
        ("flux3", "kohya", "no program was found"),
        ("qwen_image21", "kohya", "--format comfyui"),
        ("qwen_image21", "comfyui", None),
        ("flux1", "kohya", None),
    ],
)
def test_what_is_not_known_of_a_format_is_said_at_export_and_in_the_card(
    family: str,
    name: str,
    words: str | None,
    make_trained: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained = make_trained(family)
    assert export(trained.path, "--format", name, "--out", tmp_path / "out") == 0
    said = capsys.readouterr().err
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("note: format" in said, "Not confirmed: " in card) == (words is not None, words is not None)
    if words is not None:
        assert words in said and words in card


def test_the_hash_is_of_the_tensors(trained: Any, tmp_path: Path) -> None:
    file = export_run(trained.path, "diffusers", out=tmp_path / "out")
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(file).items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    assert metadata(file)["modelspec.hash_sha256"] == f"0x{digest.hexdigest()}"


@pytest.mark.parametrize("name", FORMAT_NAMES)
@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_the_space_by_another_type(
    name: Any, precision: Any, dtype: torch.dtype, trained: Any, tmp_path: Path
) -> None:
    whole = load_file(export_run(trained.path, name, out=tmp_path / "whole"))
    file = export_run(trained.path, name, out=tmp_path / "half", precision=precision)
    half = load_file(file)
    assert half.keys() == whole.keys()
    for key, tensor in half.items():
        assert torch.equal(tensor, whole[key].to(dtype))
    assert metadata(file)["modelspec.hash_sha256"] == f"0x{tensor_hash(half)}"


# Refusals


def test_a_number_that_a_type_cannot_hold_is_refused() -> None:
    with pytest.raises(UserError, match="layer has numbers that fp16 cannot hold"):
        in_precision({"layer": torch.tensor([1e6])}, "fp16")


def test_an_occupied_folder_is_refused_and_left_alone(
    trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(trained.path) == 0
    file = Path(capsys.readouterr().out.strip())
    assert file == trained.path / "export" / "diffusers" / "pytorch_lora_weights.safetensors"
    before = file.read_bytes()
    assert export(trained.path) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert file.read_bytes() == before


def test_an_average_that_is_not_kept_is_refused(
    trained: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(trained.path, "--ema", "--out", tmp_path) == 2
    assert "train.ema_decay is null" in capsys.readouterr().err


def test_an_unknown_format_is_refused_with_the_known_ones(
    trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(trained.path, "--format", "a1111") == 2
    message = capsys.readouterr().err
    assert all(name in message for name in FORMAT_NAMES)


def test_a_run_without_a_checkpoint_or_with_a_wrong_recipe_is_refused(recipe: Any, tmp_path: Path) -> None:
    run = RunFolder.create(recipe(f"run.dir={tmp_path / 'run'}")).path
    with pytest.raises(UserError, match="no complete checkpoint"):
        export_run(run, "diffusers")
    (run / "config.yaml").write_text((run / "config.yaml").read_text() + "\nspeed: 3\n")
    with pytest.raises(UserError, match="speed"):
        export_run(run, "diffusers")
    assert not (run / "export").exists()


@pytest.mark.parametrize("name", ["comfyui", "kohya"])
@pytest.mark.parametrize("layer", ["norm_out.linear", "time_text_embed"])
def test_layers_that_a_format_has_no_name_for_are_refused(name: Any, layer: str, recipe: Any) -> None:
    layers = {layer: Layer(torch.zeros(4, 8), torch.zeros(8, 4))}
    adapter = RunAdapter(recipe(), 1, False, 4, 4.0, layers, {})
    with pytest.raises(UserError, match=f"have no name there: {layer}"):
        FORMATS[name](adapter)
    assert set(FORMATS["diffusers"](adapter)) == {f"transformer.{layer}.lora_{x}.weight" for x in "AB"}


def test_what_was_read_is_the_checkpoints(trained: Any) -> None:
    adapter = read_adapter(trained.path)
    assert (adapter.rank, adapter.alpha, adapter.iteration, adapter.is_average) == (4, 6.0, 2, False)


@pytest.mark.parametrize(
    ("title", "stem"), [("my run", "my-run"), ("../../x", "x"), ("käse", "k-se"), ("..", "adapter")]
)
def test_the_file_is_named_after_the_run_and_stays_in_its_folder(title: str, stem: str) -> None:
    assert file_stem(title) == stem
