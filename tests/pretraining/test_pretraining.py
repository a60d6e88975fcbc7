"""The recipe of the embedded weights, run for a few optimizer steps, and what it promises about its data."""

from __future__ import annotations

import functools
import inspect
import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from customized_grpo.errors import UserError
from customized_grpo.policies.loading import load_pipeline
from customized_grpo.pretraining import encoders, generator, measure, stages, vae
from customized_grpo.pretraining.common import batches, cosine_with_warmup
from customized_grpo.pretraining.encoders import info_nce
from customized_grpo.pretraining.images import NEUTRAL, degrade, random_crops, segment
from customized_grpo.pretraining.pack import STAGES, pack
from customized_grpo.toybox import assets, judges, world
from customized_grpo.toybox.judging import GROUPS, ToyBoxJudges
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
        pack(trained, target, prompts=4)
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
    assert set(card) == {"recipe", "stages", "judges", "vae", "rewards", "base"}
    assert set(card["stages"]) == set(STAGES)
    assert card["vae"]["psnr_db"] < 15  # two steps: the shipped autoencoder would show far more
    assert {"judge/prompt", "judge/identity", "mode/copied"} <= set(card["base"])
    assert {"dino_auc", "clip_t_copy"} <= set(card["rewards"])


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
    [("encoders", "vae"), ("clean", "vae"), ("mixture", "base-clean"), ("pack", "base-mixture, dino, clip")],
)
def test_a_stage_before_its_turn_is_refused(stage: str, needed: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"stage {stage} needs {needed}"):
        stages.main(stage, tmp_path, samples=1)
    assert list(tmp_path.iterdir()) == []


def test_fewer_samples_than_a_batch_still_make_a_step(tmp_path: Path) -> None:
    stages.main("vae", tmp_path, samples=1, batch_size=8)
    assert json.loads((tmp_path / "vae.card.json").read_text())["final"]["loss"] > 0


def test_a_stage_is_a_function_of_its_seed_and_drops_latents_of_another_autoencoder(
    trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "latents-8-202.safetensors").write_bytes(b"stale")
    vae.train_vae(tmp_path, **TWO_STEPS)
    assert not list(tmp_path.glob("latents-*"))
    first, again = (
        load_file(folder / "vae" / "diffusion_pytorch_model.safetensors") for folder in (trained, tmp_path)
    )
    assert all(torch.equal(value, again[name]) for name, value in first.items())


# ---- the triples


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> generator.LatentWorld:
    """A world of 200 subjects without pictures: the cache of latents is what it reads first."""
    cache = tmp_path_factory.mktemp("latents")
    save_file({"latents": torch.zeros(200, generator.VIEWS, 1)}, cache / "latents-200-0.safetensors")
    return generator.LatentWorld(None, 200, 0, cache)  # type: ignore[arg-type]


def kind(latents: generator.LatentWorld, triple: generator.Triple) -> str:
    """Say which kind of pair it is by looking at it."""
    if triple.target == triple.reference:
        return "copy"
    if triple.target[0] != triple.reference[0]:
        return "drift"
    shown = latents.scenes[triple.target[0]][triple.target[1]]
    said = parse_prompt(triple.prompt)
    return "good" if attributes(said) == attributes(shown) else "miss"


def test_clean_pairs_are_all_good_and_show_two_views(latents: generator.LatentWorld) -> None:
    triples = [latents.triple(random.Random(i), generator.CLEAN) for i in range(500)]
    assert {kind(latents, triple) for triple in triples} == {"good"}


def test_the_mixture_has_the_promised_shares(latents: generator.LatentWorld) -> None:
    """Within four standard errors, given that a miscaption redraws the same scene with chance .095."""
    count = 4000
    kinds = [kind(latents, latents.triple(random.Random(i), generator.MIXTURE)) for i in range(count)]
    share = generator.MIXTURE
    colours, keep = len(world.COLOURS), 1 - generator.MISS_CHANCE
    same_hat = (1 + 3 / colours) / 16  # none is none; three hats have to agree in colour
    same_prop = (1 + 3 / (2 * colours)) / 16
    unchanged = 1.0
    for same in (same_hat, same_prop, 1 / (3 * colours), 1 / 4):
        unchanged *= keep + generator.MISS_CHANCE * same
    assert unchanged == pytest.approx(0.095, abs=0.001)
    expected = {
        "copy": share.copy,
        "drift": share.drift * (1 - 1 / 200),
        "miss": share.miss * (1 - unchanged),
    }
    expected["good"] = 1 - sum(expected.values())
    for name, chance in expected.items():
        error = (chance * (1 - chance) / count) ** 0.5
        assert abs(kinds.count(name) / count - chance) < 4 * error, name


def test_bad_pairs_are_bad_in_one_way_only(latents: generator.LatentWorld) -> None:
    """A copy's caption asks for another scene of the toy; a drift's caption is true of what is shown."""
    for i in range(300):
        triple = latents.triple(random.Random(i), generator.Shares(copy=1.0))
        assert triple.target == triple.reference
        said = attributes(parse_prompt(triple.prompt))
        views = [attributes(scene) for scene in latents.scenes[triple.reference[0]]]
        assert said in [view for n, view in enumerate(views) if n != triple.reference[1]]
        triple = latents.triple(random.Random(i), generator.Shares(drift=1.0))
        shown = latents.scenes[triple.target[0]][triple.target[1]]
        assert attributes(parse_prompt(triple.prompt)) == attributes(shown)


def test_a_miscaption_changes_whole_groups_only() -> None:
    """Each group comes from the picture or from one other scene; half of them are redrawn."""
    redrawn = 0
    for i in range(500):
        rng, same = random.Random(i), random.Random(i)
        scene = world.scene(1, i)
        wrong = generator.miscaption(scene, rng)
        other = world.scene(same.getrandbits(40), "miss")
        for names in GROUPS.values():
            now, before, drawn = ([getattr(s, name) for name in names] for s in (wrong, scene, other))
            assert now in (before, drawn)
            redrawn += now != before
        assert (wrong.hat_colour is None) == (wrong.hat == "none")
        assert (wrong.prop_colour is None) == (wrong.prop == "none") == (wrong.side is None)
        assert wrong.yaw == scene.yaw
    assert 0.40 < redrawn / 2000 < 0.50  # half, less the chance of drawing the same again


# ---- the parts


def test_text_is_encoded_as_the_pipeline_does() -> None:
    from customized_grpo.toybox.models import TEXT_TOKENS, build_pipeline

    pipe = build_pipeline(0)
    sentences = [
        "a toy on a plain red floor at night",
        "our toy in a pink halo upon a striped blue floor at dusk",
    ]
    with torch.no_grad():
        embeds, pooled = generator.text_inputs(pipe, sentences)
        expected, expected_pooled, text_ids = pipe.encode_prompt(sentences, max_sequence_length=TEXT_TOKENS)
    torch.testing.assert_close(embeds, expected)
    torch.testing.assert_close(pooled, expected_pooled)
    assert not text_ids.any()


def test_cached_latents_are_of_unit_scale(trained: Path) -> None:
    cached = load_file(trained / "latents-8-202.safetensors")["latents"]
    assert cached.shape == (8, generator.VIEWS, 32, 8, 8)
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
    """Two orthogonal pairs: log(1 + exp(-1 / T)) each way."""
    rows = torch.eye(2)
    expected = torch.log1p(torch.exp(torch.tensor(-1 / 0.5)))
    torch.testing.assert_close(info_nce(rows, rows, temperature=0.5), expected)
    assert info_nce(rows, rows.flip(0), temperature=0.5) > expected


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


def test_segmenting_keeps_the_toy_on_neutral_grey() -> None:
    images, mask = torch.rand(1, 3, 4, 4), torch.zeros(1, 1, 4, 4)
    mask[..., :2] = 1
    alone = segment(images, mask)
    assert torch.equal(alone[..., :2], images[..., :2])
    assert (alone[..., 2:] == NEUTRAL).all()


def test_judges_rewards_and_generator_learn_from_different_toys(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Judges that knew the toys of the rewards would share their mistakes."""
    seeds: dict[str, int] = {}
    monkeypatch.setattr(encoders, "ImagePool", lambda vae, subjects, views, seed: seed)
    for name in ("dino", "clip", "attribute_classifier", "subject_encoder"):
        record = functools.partial(lambda name, pool, out, *_: seeds.setdefault(name, pool), name)
        monkeypatch.setattr(encoders, f"train_{name}", record)
    encoders.train_encoders(trained)
    assert seeds["dino"] == seeds["clip"]
    assert seeds["attribute_classifier"] == seeds["subject_encoder"]
    others = [
        inspect.signature(f).parameters["seed"].default for f in (vae.train_vae, generator.train_generator)
    ]
    worlds = {seeds["dino"], seeds["subject_encoder"], *others, measure.SEED}
    toys = {world.subject(seed, i) for seed in worlds for i in range(200)}
    assert len(toys) == 5 * 200


def test_the_classifier_reads_every_attribute_of_a_scene() -> None:
    assert set(judges.CLASSES) == set(attributes(world.scene(0, 0)))
