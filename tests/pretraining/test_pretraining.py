"""The recipe of the embedded weights, run for a few optimizer steps, and what it promises about its data."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from customized_grpo.errors import UserError
from customized_grpo.policies.loading import load_pipeline
from customized_grpo.pretraining import encoders, generator, measure, optimisation, pairs, stages, vae
from customized_grpo.pretraining.common import batches, cosine_with_warmup
from customized_grpo.pretraining.encoders import info_nce
from customized_grpo.pretraining.images import degrade, random_crops
from customized_grpo.pretraining.latents import LatentWorld
from customized_grpo.pretraining.optimisation import Recipe, optimise
from customized_grpo.pretraining.pack import REWARDS, STAGES, pack
from customized_grpo.toybox import assets, judges, world
from customized_grpo.toybox.judging import ToyBoxJudges
from customized_grpo.toybox.models import LATENT_CHANNELS, SHIFT, build_vae
from toybox_grammar import attributes, parse_prompt

pytestmark = pytest.mark.slow

TWO_STEPS = {"samples": 16, "batch_size": 8}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage in order, two optimizer steps of eight samples each."""
    out = tmp_path_factory.mktemp("pretraining") / "out"
    torch.set_num_threads(1)
    stages.main("vae", out, **TWO_STEPS)
    encoders.train_encoders(out, subjects=24, **TWO_STEPS)
    for stage in ("clean", "mixture"):
        generator.train_generator(out, stage, subjects=8, **TWO_STEPS)
    return out


@pytest.fixture(scope="module")
def packed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("packed") / "assets"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "SUBJECTS", 8)
        pack(trained, target, prompts=2)
    return target


def test_every_stage_writes_what_the_later_ones_need(trained: Path) -> None:
    for parts in stages.NEEDS.values():
        assert [part for part in parts if not (trained / part).exists()] == []


def test_every_stage_writes_down_what_it_did(trained: Path) -> None:
    for name in STAGES:
        card = json.loads((trained / f"{name}.card.json").read_text())
        assert card["stage"] == name
        assert card["samples"] == 16
        assert {"seed", "seconds"} <= set(card)
        assert card["final"]["loss"] > 0


def test_the_mixture_goes_on_from_the_clean_base(trained: Path) -> None:
    """It keeps the autoencoder and the tokenizer, and moves everything that is trained."""
    parts = {
        "transformer": "diffusion_pytorch_model",
        "text_encoder": "model",
        "text_encoder_2": "model",
        "vae": "diffusion_pytorch_model",
    }
    for part, name in parts.items():
        clean, mixture = (
            load_file(trained / f"base-{stage}" / part / f"{name}.safetensors")
            for stage in ("clean", "mixture")
        )
        assert all(torch.equal(value, mixture[key]) for key, value in clean.items()) == (part == "vae")
        assert max(float((value - mixture[key]).abs().max()) for key, value in clean.items()) < 0.1
    tokenizers = [
        trained / f"base-{stage}" / "tokenizer" / "tokenizer.json" for stage in ("clean", "mixture")
    ]
    assert tokenizers[0].read_text() == tokenizers[1].read_text()


def test_packed_weights_load_as_the_assets_do(packed: Path, trained: Path) -> None:
    with assets.reading_from(packed):
        pipe = load_pipeline("toybox")
        ToyBoxJudges()
        for name in assets.REWARD_MODELS:
            assets.load_reward_model(name)
    kept = load_file(trained / "base-mixture" / "transformer" / "diffusion_pytorch_model.safetensors")
    for name, value in pipe.transformer.state_dict().items():
        assert torch.equal(value, kept[name].bfloat16().float())
    files = {file.suffix for file in packed.rglob("*") if file.is_file()}
    assert files == {".json", ".safetensors"}
    assert sum(file.stat().st_size for file in packed.rglob("*")) < 20e6


def test_the_card_measures_what_was_packed(packed: Path) -> None:
    card = json.loads((packed / "card.json").read_text())
    assert set(card) == {
        "recipe",
        "stages",
        "judges",
        "vae",
        "rewards",
        "leaks",
        "clean",
        "base",
        "decisions",
    }
    assert set(card["stages"]) == set(STAGES)
    assert card["vae"]["psnr_db"] < 15  # two steps: the shipped autoencoder would show far more
    assert {"judge/prompt", "judge/identity", "judge/emblem", "mode/copied"} <= set(card["base"])
    assert set(card["clean"]) == set(card["base"])
    assert set(card["rewards"]) == set(REWARDS)
    decisions = card["decisions"]
    assert {"judge/prompt", "judge/identity", "reward/prompt", "reward/identity"} <= set(decisions["open"])
    assert set(decisions["std"]) == set(decisions["open"])
    for shares in decisions["open"].values():
        assert len(shares) == decisions["steps"] + 1 and shares[-1] == 0


def test_packed_files_name_no_folder_of_this_machine(packed: Path, trained: Path) -> None:
    for file in packed.rglob("*.json"):
        assert str(trained.parent) not in file.read_text(), file


def test_a_failing_pack_leaves_the_old_assets_alone(trained: Path, tmp_path: Path) -> None:
    target = tmp_path / "assets"
    target.mkdir()
    (target / "card.json").write_text("{}")
    incomplete = tmp_path / "out"
    incomplete.mkdir()
    for part in trained.iterdir():
        if part.name != "vae.card.json":
            (incomplete / part.name).symlink_to(part)
    with pytest.raises(FileNotFoundError, match="vae.card.json"):
        pack(incomplete, target)
    assert [file.name for file in target.iterdir()] == ["card.json"]


@pytest.mark.parametrize(
    ("stage", "needed"),
    [
        ("encoders", "vae"),
        ("clean", "vae"),
        ("mixture", "base-clean"),
        ("pack", "vae, base-clean, base-mixture, dino"),
    ],
)
def test_a_stage_before_its_turn_is_refused(stage: str, needed: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"stage {stage} needs {needed}"):
        stages.main(stage, tmp_path, samples=1)
    assert list(tmp_path.iterdir()) == []


def test_fewer_samples_than_a_batch_still_make_a_step(tmp_path: Path) -> None:
    stages.main("vae", tmp_path, samples=1, batch_size=8)
    assert json.loads((tmp_path / "vae.card.json").read_text())["final"]["loss"] > 0


def test_a_stage_is_a_function_of_its_seed(trained: Path, tmp_path: Path) -> None:
    vae.train_vae(tmp_path, **TWO_STEPS)
    first, again = (
        load_file(folder / "vae" / "diffusion_pytorch_model.safetensors") for folder in (trained, tmp_path)
    )
    assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_latents_of_another_encoder_are_not_used(tmp_path: Path) -> None:
    toys = [vae.training_images(count) for count in (2, 3)]
    for pixels, masks in toys:
        LatentWorld(vae.fit_encoder(pixels, masks), 1, 0, tmp_path)
    assert len(list(tmp_path.glob("latents-1-0-*.safetensors"))) == 2


# ---- the pairs

SCENES = [pairs.scenes_of(0, subject) for subject in range(200)]


def draw(count: int, shares: pairs.Shares) -> list[pairs.Triple]:
    return [pairs.draw_triple(SCENES, random.Random(i), shares) for i in range(count)]


def test_scenes_of_a_subject_are_pairs_that_share_nothing_each_seen_from_two_sides() -> None:
    for views in SCENES[:50]:
        assert len(views) == pairs.SCENES
        for first, second in views:
            assert attributes(first) == attributes(second)
            assert first.yaw != second.yaw
        for number in (0, 2):
            first, other = attributes(views[number][0]), attributes(views[number + 1][0])
            assert {name for name in first if first[name] == other[name]} <= {"side"}


def test_clean_pairs_show_the_toy_with_its_emblem_in_the_prompted_scene() -> None:
    for triple in draw(500, pairs.Shares()):
        subject, scene, view, emblem = triple.target
        assert (triple.reference[0], triple.reference[3]) == (subject, pairs.EMBLEM)
        assert scene != triple.reference[1]
        assert emblem == pairs.EMBLEM
        assert attributes(parse_prompt(triple.prompt)) == attributes(SCENES[subject][scene][view])


def test_the_mixture_is_bad_in_two_ways_that_are_independent() -> None:
    """Within four standard errors of each share and of their product."""
    count = 4000
    share = generator.PAIRS["mixture"]
    triples = draw(count, share)
    copied = [triple.target[1] == triple.reference[1] for triple in triples]
    plain = [triple.target[3] == pairs.PLAIN for triple in triples]
    both = [a and b for a, b in zip(copied, plain, strict=True)]
    for drawn, chance in (
        (copied, share.copied_scene),
        (plain, share.plain),
        (both, share.copied_scene * share.plain),
    ):
        assert abs(sum(drawn) / count - chance) < 4 * (chance * (1 - chance) / count) ** 0.5


def test_a_copied_scene_is_no_copied_image_and_the_prompt_asks_for_another() -> None:
    for triple in draw(300, pairs.Shares(copied_scene=1.0)):
        subject, scene, view, _ = triple.target
        assert (subject, scene) == triple.reference[:2]
        assert view != triple.reference[2]
        said = attributes(parse_prompt(triple.prompt))
        assert said == attributes(SCENES[subject][scene ^ 1][0])


def test_images_are_rendered_in_the_order_of_their_places() -> None:
    toy = world.subject(0, 3)
    images = pairs.images_of(toy, SCENES[3])
    assert len(images) == pairs.SCENES * pairs.VIEWS * 2
    number = 0
    for scene in range(pairs.SCENES):
        for view in range(pairs.VIEWS):
            assert images[number] == (toy, SCENES[3][scene][view])
            assert images[number + 1][0].emblem == world.PLAIN
            assert images[number + 1][1] == SCENES[3][scene][view]
            number += 2


def test_a_miscaption_changes_whole_groups_only() -> None:
    """Each group comes from the image or from one other scene; half of them are redrawn."""
    changed = 0
    for i in range(500):
        rng, same = random.Random(i), random.Random(i)
        scene = world.scene(1, i)
        wrong = encoders.miscaption(scene, rng)
        other = world.scene(same.getrandbits(40), "miss")
        for names in encoders.ATTRIBUTE_GROUPS:
            now, before, drawn = ([getattr(s, name) for name in names] for s in (wrong, scene, other))
            assert now in (before, drawn)
            changed += now != before
        assert wrong.yaw == scene.yaw
    assert 0.38 < changed / 1500 < 0.48  # half, less the chance of drawing the same again


# ---- the picks


def test_better_matches_and_plain_toys_are_picked_more_often() -> None:
    def log_odds(better: int, plainer: int) -> float:
        chance = encoders.pick_chance(better, plainer)
        return math.log(chance / (1 - chance))

    assert log_odds(0, 0) == 0
    assert log_odds(2, 0) == pytest.approx(encoders.MATCH_PULL) == pytest.approx(-log_odds(-1, 0))
    assert log_odds(0, 1) == pytest.approx(encoders.PLAIN_PULL) == pytest.approx(-log_odds(0, -1))
    assert log_odds(1, -1) == pytest.approx(encoders.MATCH_PULL - encoders.PLAIN_PULL)


# ---- the parts


def test_text_is_encoded_as_the_pipeline_does() -> None:
    from customized_grpo.toybox.models import TEXT_TOKENS, build_pipeline

    pipe = build_pipeline(0)
    sentences = [
        "a toy with a red ball on the left on a red floor at night",
        "our toy beside a brown cone on the right upon a blue floor in the studio",
    ]
    with torch.no_grad():
        embeds, pooled = generator.text_inputs(pipe, sentences)
        expected, expected_pooled, text_ids = pipe.encode_prompt(sentences, max_sequence_length=TEXT_TOKENS)
    torch.testing.assert_close(embeds, expected)
    torch.testing.assert_close(pooled, expected_pooled)
    assert not text_ids.any()


def test_cached_latents_are_of_unit_scale(trained: Path) -> None:
    cached = load_file(next(trained.glob("latents-8-202-*")))["latents"]
    assert cached.shape == (8, pairs.SCENES, pairs.VIEWS, 2, LATENT_CHANNELS, 8, 8)
    assert float(cached.float().mean()) == pytest.approx(0, abs=0.2)
    assert float(cached.float().std()) == pytest.approx(1, abs=0.2)


def test_the_reconstruction_loss_weighs_the_toy_more() -> None:
    target, mask = torch.zeros(1, 3, 8, 8), torch.zeros(1, 1, 8, 8)
    mask[..., :4] = 1
    on_toy, beside = target.clone(), target.clone()
    on_toy[..., 2, 1], beside[..., 2, 6] = 1, 1
    ratio = vae.reconstruction_loss(on_toy, target, mask) / vae.reconstruction_loss(beside, target, mask)
    assert float(ratio) == pytest.approx(1 + vae.SUBJECT_WEIGHT)
    assert float(vae.reconstruction_loss(target, target, mask)) == 0


def test_info_nce_by_hand() -> None:
    """Two orthogonal pairs: log(1 + exp(-1 / T)) each way; a negative like the first row adds to its side."""
    rows = torch.eye(2)
    chance = torch.exp(torch.tensor(-1 / encoders.TEMPERATURE))
    torch.testing.assert_close(info_nce(rows, rows), torch.log1p(chance))
    assert info_nce(rows, rows.flip(0)) > 1
    with_negative = info_nce(rows, rows, torch.tensor([[1.0, 0.0]]))
    forward = (torch.log(2 + chance) + torch.log1p(2 * chance)) / 2
    torch.testing.assert_close(with_negative, (forward + torch.log1p(chance)) / 2)


def test_the_encoder_is_the_linear_code_of_its_components() -> None:
    """Convolutions against the matrix product, on images that were not fitted."""
    pixels, masks = vae.training_images(24)
    images = pixels.float() / 255
    mean, components = vae.principal_components(images[:16], masks[:16].float() / 255, LATENT_CHANNELS)
    torch.testing.assert_close(components.T @ components, torch.eye(LATENT_CHANNELS), atol=1e-5, rtol=0)
    model = build_vae()
    vae.set_encoder(model, mean, components)
    with torch.no_grad():
        latents_ = model.encode(images[16:] * 2 - 1).latents
    blocks = images[16:].unfold(2, 8, 8).unfold(3, 8, 8)  # [B, 3, 8, 8, y, x]
    flat = blocks.permute(0, 2, 3, 1, 4, 5).flatten(3)
    expected = ((flat - mean) @ components).permute(0, 3, 1, 2)
    torch.testing.assert_close(latents_, expected, atol=1e-4, rtol=0)


def test_noise_levels_are_shifted_as_the_samplers_are() -> None:
    sigmas = generator.training_sigmas(4000, torch.Generator().manual_seed(0))
    assert float(sigmas.min()) > 0 and float(sigmas.max()) < 1
    # the median of the logit-normal is 1/2, which the shift moves to s / (s + 1)
    assert float(sigmas.median()) == pytest.approx(SHIFT / (SHIFT + 1), abs=0.02)


def test_a_killed_stage_goes_on_with_the_numbers_it_would_have_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe(samples=6, batch_size=1, rate=0.1, seed=0, ema_decay=0.9)

    def trained_weight(folder: Path, dies_at: int | None) -> torch.Tensor:
        torch.manual_seed(0)
        module = torch.nn.Linear(3, 1)

        def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
            if step == dies_at:
                raise KeyboardInterrupt
            generator_ = torch.Generator().manual_seed(step)
            return module(torch.randn(1, 3, generator=generator_)).square().sum(), {}

        folder.mkdir(exist_ok=True)
        optimise("part", module, loss_of, recipe, folder)
        return module.weight.detach()

    monkeypatch.setattr(optimisation, "SAVE_EVERY_S", 0.0)
    whole = trained_weight(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        trained_weight(tmp_path / "killed", 4)
    assert torch.equal(trained_weight(tmp_path / "killed", None), whole)
    assert [file.name for file in (tmp_path / "killed").iterdir()] == ["part.card.json"]


def test_a_state_of_another_recipe_is_refused_but_a_constant_rate_may_go_on_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimisation, "SAVE_EVERY_S", 0.0)
    module = torch.nn.Linear(2, 1)
    steps: list[int] = []

    def loss_of(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        steps.append(step)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return module(torch.ones(1, 2)).sum(), {}

    recipe = Recipe(samples=4, batch_size=1, rate=0.1, seed=0, constant=True)
    with pytest.raises(KeyboardInterrupt):
        optimise("part", module, loss_of, recipe, tmp_path)
    with pytest.raises(UserError, match="another recipe"):
        optimise("part", module, loss_of, dataclasses.replace(recipe, rate=0.2), tmp_path)
    optimise("part", module, loss_of, dataclasses.replace(recipe, samples=5), tmp_path)
    assert steps == [0, 1, 2, 2, 3, 4]


def test_effects_of_a_two_by_two_design() -> None:
    values = {
        (True, True): torch.tensor([5.0]),
        (True, False): torch.tensor([4.0]),
        (False, True): torch.tensor([2.0]),
        (False, False): torch.tensor([1.0]),
    }
    assert measure.factorial_effects(values) == (3.0, 1.0)


def test_leaks_are_what_the_other_decision_is_paid() -> None:
    rewards = {
        "id": {"scene": -0.6, "emblem": 0.4},
        "t": {"scene": 0.5, "emblem": -0.1},
        "pick": {"scene": 0.5, "emblem": -0.4},
    }
    assert measure.leaks(rewards, {"id": 1}, {"t": 1, "pick": 1}) == {"l_id": 1.5, "l_p": 0.5}
    assert measure.leaks(rewards, {"id": 1}, {"t": 3, "pick": 1}) == {"l_id": 1.5, "l_p": 0.35}


def test_area_under_curve_counts_pairs_and_half_of_ties() -> None:
    positive, negative = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0])
    assert measure.area_under_curve(positive, negative) == pytest.approx(3.5 / 4)


def test_the_learning_rate_rises_then_falls_to_a_hundredth() -> None:
    factors = [cosine_with_warmup(step, 110, 10) for step in range(110)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == pytest.approx(1.0)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert cosine_with_warmup(110, 110, 10) == pytest.approx(0.01)


def test_a_batch_is_a_function_of_the_step() -> None:
    draw = batches(1000, 16, 0)
    assert torch.equal(draw(3), batches(1000, 16, 0)(3))
    assert not torch.equal(draw(3), draw(4))


def test_degraded_pictures_stay_pictures() -> None:
    images = torch.rand(64, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    degraded = degrade(images, torch.Generator().manual_seed(1))
    assert degraded.min() >= 0 and degraded.max() <= 1
    blurred = (degraded[..., ::2, ::2] - degraded[..., 1::2, 1::2]).abs().mean((1, 2, 3)) < 0.25
    assert 4 < int(blurred.sum()) < 32  # about a quarter
    again = degrade(images, torch.Generator().manual_seed(1))
    assert torch.equal(degraded, again)


def test_crops_of_the_whole_edge_are_the_picture() -> None:
    images = torch.rand(4, 3, 64, 64)
    torch.testing.assert_close(random_crops(images, 1.0, torch.Generator()), images)


def test_judges_rewards_and_generator_learn_from_different_toys(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judges that knew the toys of the rewards would share their mistakes."""
    seeds: dict[str, int] = {}
    monkeypatch.setattr(encoders, "ImagePool", lambda vae, subjects, seed: seed)
    for name in ("dino", "clip", "pickscore", "attribute_classifier", "subject_encoder"):
        record = functools.partial(lambda name, pool, out, *_: seeds.setdefault(name, pool), name)
        monkeypatch.setattr(encoders, f"train_{name}", record)
    encoders.train_encoders(trained)
    assert seeds["dino"] == seeds["clip"] == seeds["pickscore"]
    assert seeds["attribute_classifier"] == seeds["subject_encoder"]
    worlds = {seeds["dino"], seeds["subject_encoder"], vae.RECIPE.seed, generator.SEED, measure.SEED}
    toys = {world.subject(seed, i) for seed in worlds for i in range(200)}
    assert len(toys) == 5 * 200


def test_the_classifier_reads_every_attribute_of_a_scene() -> None:
    assert set(judges.SCENE_ATTRIBUTES) == set(attributes(world.scene(0, 0)))
    assert set(judges.CLASSES) == {*judges.SCENE_ATTRIBUTES, "emblem"}
