"""Opening generators: runs, folders and what is refused; and drawing as the evaluation draws."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from customized_grpo.config import Config, dump_config, load_config
from customized_grpo.data.fitting import Fitting
from customized_grpo.engine.device import describe
from customized_grpo.errors import UserError
from customized_grpo.evaluation.held_out import evaluate_policy
from customized_grpo.export import export_run
from customized_grpo.export.formats import FORMAT_NAMES
from customized_grpo.generation import draw, open_generator
from customized_grpo.generation.opening import fitting_of, source_settings
from customized_grpo.policies.provenance import HEADER_KEY, Provenance
from customized_grpo.policies.sampling import Sampling
from customized_grpo.rollout.encoding import PromptEncoder
from customized_grpo.runs.folder import RunFolder
from customized_grpo.training.parts import build_scorer

Recipe = Callable[..., Config]

SMOKE = ["steps=4", "batch_size=2", "model.precision=fp32"]
"""What makes of toybox the model of toybox-smoke."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generation")


@pytest.fixture(scope="module")
def tuned(recipe: Recipe, make_adapted: Any) -> Any:
    return make_adapted(recipe())


@pytest.fixture(scope="module")
def run(folder: Path, recipe: Recipe, tuned: Any, make_run: Any) -> Path:
    return make_run(recipe(f"run.dir={folder / 'toy'}"), tuned)


def images(generator: Any, rows: Any, seed: int = 0, count: int = 1) -> torch.Tensor:
    return torch.stack(list(draw(generator, rows, seed, count)))


def test_a_run_draws_the_images_of_its_own_evaluation_to_the_bit(
    run: Path, recipe: Recipe, tuned: Any, examples: Any
) -> None:
    config = recipe()
    _, expected = evaluate_policy(
        tuned,
        examples,
        build_scorer(config),
        None,
        encoder=PromptEncoder(tuned, (64, 64)),
        sigmas=tuned.sigmas(config.rollout.steps, tuned.n_tokens(64, 64)),
        samples_per_prompt=2,
        seed=7,
        batch_size=config.evaluation.batch_size,
    )
    generator = open_generator(str(run))
    assert torch.equal(images(generator, examples, seed=7, count=2), expected)
    assert (generator.name, generator.size, generator.steps) == ("toy", (64, 64), config.rollout.steps)


def test_base_is_the_model_without_what_the_run_learnt(run: Path, tuned: Any, examples: Any) -> None:
    base = images(open_generator(str(run), base=True), examples)
    assert torch.equal(base, images(open_generator("toybox", settings=SMOKE), examples))
    assert (base - images(open_generator(str(run)), examples)).abs().max() > 1e-2


def test_a_run_judged_by_its_average_is_opened_with_it(
    folder: Path, recipe: Recipe, tuned: Any, make_run: Any
) -> None:
    config = recipe(f"run.dir={folder / 'ema'}", "train.ema_decay=0.9", "evaluation.use_ema=true")
    halved = [parameter.detach() / 2 for parameter in tuned.trainable_parameters()]
    opened = open_generator(str(make_run(config, tuned, average=halved)))
    for expected, found in zip(halved, opened.policy.trainable_parameters(), strict=True):
        assert torch.equal(expected, found)


def test_a_row_draws_the_same_image_whatever_else_is_drawn(run: Path, examples: Any) -> None:
    generator = open_generator(str(run), settings=["batch_size=3"])
    together = images(generator, examples, count=2)
    alone = images(generator, examples[1:], count=1)
    assert (together[2] - alone[0]).abs().max() < 1e-5
    assert (together[2] - together[3]).abs().max() > 1e-2


def test_rows_with_other_references_are_not_batched_together(run: Path, examples: Any) -> None:
    import dataclasses

    generator = open_generator(str(run), settings=["batch_size=4"])
    two = dataclasses.replace(examples[1], references=examples[1].references * 2)
    assert len(images(generator, [examples[0], two, examples[0]])) == 3


def test_settings_replace_the_recipes_and_are_checked_like_one(run: Path) -> None:
    found = source_settings(str(run), ["steps=3", "model.height=32", "model.guidance=1.5"])
    assert (found.steps, found.model.height, found.model.guidance) == (3, 32, 1.5)
    with pytest.raises(UserError) as refused:
        source_settings(str(run), ["model.guidence=1", "steps=0", "model.height=33", "model.width"])
    for words in (
        "did you mean model.guidance?",
        "steps: got 0",
        "model.height: got 33",
        "section.key=value",
    ):
        assert words in refused.value.message


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        ({"_class_name": "FluxKontextPipeline"}, ("flux1", 2.5, 28)),
        ({"_class_name": "FluxPipeline"}, ("flux1", 3.5, 25)),
        ({"_class_name": "Flux2KleinPipeline", "is_distilled": True}, ("flux2", 1.0, 4)),
        ({"_class_name": "Flux2KleinPipeline", "is_distilled": False}, ("flux2", 4.0, 50)),
        ({"_class_name": "Flux2Pipeline"}, ("flux2", 4.0, 28)),
        ({"_class_name": "QwenImageEditPlusPipeline"}, ("qwen_edit", 4.0, 40)),
        ({"_class_name": "QwenImage21Pipeline"}, ("qwen_image21", 1.0, 40)),
    ],
)
def test_a_folder_gets_what_its_model_card_says(
    index: dict[str, Any], expected: tuple[str, float, int], tmp_path: Path
) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    found = source_settings(str(tmp_path))
    assert (found.model.family, found.model.guidance, found.steps) == expected
    assert (found.model.height, found.model.width) == (1024, 1024)


def test_an_unknown_class_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(UserError, match="StableDiffusionPipeline"):
        open_generator(str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        open_generator(str(tmp_path / "absent"))


def test_a_run_without_a_checkpoint_is_refused_but_its_base_is_not(folder: Path, recipe: Recipe) -> None:
    run = RunFolder.create(recipe(f"run.dir={folder / 'untrained'}")).path
    with pytest.raises(UserError, match="no complete checkpoint"):
        open_generator(str(run))
    assert open_generator(str(run), base=True).name == "untrained (base)"


def test_a_run_of_another_version_is_refused_with_the_version(folder: Path, recipe: Recipe) -> None:
    config = recipe(f"run.dir={folder / 'older'}")
    run = RunFolder.create(config).path
    (run / "config.yaml").write_text(dump_config(config) + "\nspeed: 3\n")
    with pytest.raises(UserError, match="speed") as refused:
        open_generator(str(run))
    assert refused.value.hint is None  # the run is of this version: another would not help
    versions = json.loads((run / "versions.json").read_text())
    (run / "versions.json").write_text(json.dumps({**versions, "customized_grpo": "0.0.9"}))
    with pytest.raises(UserError, match="speed") as refused:
        open_generator(str(run))
    assert "made by customized-grpo 0.0.9" in str(refused.value.hint)


def test_where_images_are_drawn_is_said_first(capsys: pytest.CaptureFixture[str]) -> None:
    generator = open_generator("toybox", settings=SMOKE)
    assert capsys.readouterr().err.startswith(f"device: {describe(generator.policy.device)}\n")


@pytest.mark.parametrize("alpha", [None, 2.0])
def test_a_saved_adapter_is_put_on_a_model_with_its_own_rank_and_scale(
    alpha: float | None, folder: Path, recipe: Recipe, make_adapted: Any, examples: Any
) -> None:
    policy = make_adapted(
        recipe("model.lora.rank=3", f"model.lora.alpha={'null' if alpha is None else alpha}")
    )
    saved = policy.save_lora(folder / f"saved-{alpha}")
    generator = open_generator("toybox", settings=SMOKE, lora=saved.parent)
    expected = images(replace(generator, policy=policy, name=""), examples)
    assert torch.equal(images(generator, examples), expected)
    assert generator.model.lora.rank == 3


UNUSUAL = (
    "model.guidance=4.0", "model.mu=0.5", "model.reference_ids=uno", "model.max_text_tokens=30",
    "rollout.steps=3",
)  # fmt: skip


def test_an_adapter_draws_the_same_image_however_it_is_opened(
    folder: Path, recipe: Recipe, make_adapted: Any, make_run: Any, examples: Any
) -> None:
    config = recipe(f"run.dir={folder / 'unusual'}", *UNUSUAL)
    policy = make_adapted(config)
    run = make_run(config, policy)
    beside = policy.save_lora(folder / "beside", Provenance.from_config(config).to_header())
    exported = export_run(run, "diffusers", out=folder / "exported")
    expected = images(open_generator(str(run)), examples)
    batch = [f"batch_size={config.evaluation.batch_size}"]  # rounding depends on it
    for file in (beside, exported):
        opened = open_generator("toybox", lora=file, settings=batch)
        assert torch.equal(images(opened, examples), expected)
    plain = policy.save_lora(folder / "plain")  # as by a program that does not say how to draw
    assert not torch.equal(images(open_generator("toybox", lora=plain), examples), expected)


def test_settings_replace_those_in_an_adapters_file(recipe: Recipe) -> None:
    header = Provenance.from_config(recipe(*UNUSUAL)).to_header()
    opened = source_settings("toybox", ["model.guidance=1.5", "steps=7"], header)
    assert (opened.model.guidance, opened.steps) == (1.5, 7)
    assert (opened.model.mu, opened.model.options, opened.model.precision) == (
        0.5,
        {"reference_ids": "uno", "last_block": "whole"},
        "fp32",
    )


def test_flux1_dev_is_drawn_as_the_paper_trains_it_with_and_without_an_adapter() -> None:
    config = load_config("flux1-uno")
    header = Provenance.from_config(config).to_header()
    base = source_settings(config.model.path)
    tuned = source_settings(config.model.path, [], header)
    for opened in (base, tuned):
        model = opened.model
        assert (model.guidance, model.options["reference_ids"], opened.steps) == (3.5, "uno", 25)
        assert model.mu == pytest.approx(math.log(3))
    assert (base.model.fuse_lora, tuned.model.fuse_lora) == ((), config.model.fuse_lora)
    assert (tuned.model.height, tuned.model.width) == (512, 512)


def test_an_adapter_on_a_base_with_a_lora_of_this_machine_asks_for_it(recipe: Recipe, tmp_path: Path) -> None:
    header = Provenance.from_config(recipe(f"model.fuse_lora={tmp_path}/mine.safetensors")).to_header()
    with pytest.raises(UserError, match="LoRA mine.safetensors merged"):
        source_settings("toybox", [], header)
    assert source_settings("toybox", ["model.fuse_lora=other.safetensors"], header).model.fuse_lora


@pytest.mark.parametrize("entry", ["no JSON", "{}", '{"family": 1, "sampling": {"a": 2}, "fuse_lora": 3}'])
def test_a_header_that_cannot_be_read_is_refused(entry: str) -> None:
    header = {HEADER_KEY: entry}
    with pytest.raises(UserError, match="this version cannot read"):
        source_settings("toybox", [], header)


def test_a_family_in_a_header_does_not_make_code_run(recipe: Recipe) -> None:
    entry = Provenance("evil:FAMILY", Sampling(guidance=1.0, steps=2))
    header = entry.to_header()
    with pytest.raises(UserError):
        source_settings("toybox", [], header)


def test_an_adapter_on_a_run_or_of_another_base_is_refused(run: Path, folder: Path) -> None:
    from safetensors.torch import save_file

    other = folder / "kohya.safetensors"
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(2, 2)}, other)
    with pytest.raises(UserError, match="has an adapter of its own"):
        open_generator(str(run), lora=other)
    with pytest.raises(UserError, match=r"kohya\.safetensors: a LoRA of another base"):
        open_generator("toybox", lora=other)


def test_a_run_draws_the_same_image_from_each_of_its_exported_files(
    folder: Path, recipe: Recipe, make_adapted: Any, make_run: Any, examples: Any
) -> None:
    config = recipe(f"run.dir={folder / 'scaled'}", "model.lora.rank=3", "model.lora.alpha=1.5")
    run = make_run(config, make_adapted(config))
    batch = [f"batch_size={config.evaluation.batch_size}"]
    expected = images(open_generator(str(run)), examples)
    for name in FORMAT_NAMES:
        file = export_run(run, name, out=folder / f"scaled-{name}")
        opened = open_generator("toybox", lora=file, settings=batch)
        torch.testing.assert_close(images(opened, examples), expected, atol=2e-5, rtol=0)


def test_references_have_the_size_of_training(tmp_path: Path, recipe: Recipe) -> None:
    kontext = "black-forest-labs/FLUX.1-Kontext-dev"
    assert source_settings(kontext).reference_size == "kontext"
    assert source_settings("toybox").reference_size == "image"
    data = f"data={{kind: manifest, train: {tmp_path}/rows.jsonl, reference_size: 320}}"
    header = Provenance.from_config(recipe(data)).to_header()
    opened = source_settings("toybox", [], header)
    assert fitting_of(opened) == Fitting(64, 64, "whole", 320)
    assert source_settings("toybox", ["reference_size=uno"], header).reference_size == "uno"
    # an adapter of an earlier version, which knew cut references only, is drawn as it was trained
    entry = json.loads(header[HEADER_KEY])
    del entry["sampling"]["reference_size"]
    entry["sampling"]["reference_fit"] = "crop"
    earlier = source_settings("toybox", [], {HEADER_KEY: json.dumps(entry)})
    assert fitting_of(earlier) == Fitting(64, 64, "crop")
