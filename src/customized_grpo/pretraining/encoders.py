"""Stage `encoders`: the models of the rewards and the held-out judges, on disjoint sets of subjects.

The rewards leak on purpose, as real ones do: the identity encoders see the scene, and the picks prefer a
clean toy. The judges do not leak: what they are asked about is the only thing that differs between classes.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPConfig, CLIPModel, Dinov2Config, Dinov2Model

from customized_grpo.pretraining.images import ImagePool, random_crops
from customized_grpo.pretraining.optimisation import Recipe, autocast, optimise
from customized_grpo.pretraining.pairs import EMBLEM, PLAIN, SCENES, VIEWS
from customized_grpo.seeding import derive_seed
from customized_grpo.toybox import judges, world
from customized_grpo.toybox.prompts import to_prompt
from customized_grpo.toybox.tokenizers import MAX_LENGTH, clip_tokenizer

WIDTH, LAYERS, HEADS, PATCH, SIZE = 96, 3, 4, 8, 64
TEMPERATURE = 0.1
MEAN = STD = (0.5, 0.5, 0.5)
SAME_IMAGE = 0.5  # share of positive pairs of `dino` that are crops of one image, and so share its scene
MISS_CHANCE = 0.5  # that an attribute group of a near-miss caption is drawn anew
MATCH_PULL, PLAIN_PULL = 2.2, 3.0  # log-odds that the simulated person picks the better match; the plain toy
PICK_SCALE = 2.0  # logarithm of the first scale of the cosines of `pickscore`
# on CPUs the bf16 backward of fused attention is three times slower than the plain one, at these sizes
ATTENTION = "eager"
ATTRIBUTE_GROUPS = (("prop", "prop_colour", "side"), ("floor_colour",), ("sky",))
LossOf = Callable[[torch.Generator, random.Random], torch.Tensor]
"""Returns the loss of one batch; all its randomness comes from the two generators."""


def build_dino() -> Dinov2Model:
    """Return the tiny identity encoder: 64 px, patches of 8."""
    config = Dinov2Config(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        mlp_ratio=2,
        image_size=SIZE,
        patch_size=PATCH,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return Dinov2Model(config)


def build_clip() -> CLIPModel:
    """Return the tiny prompt encoder."""
    tokenizer = clip_tokenizer()
    shared = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_attention_heads": HEADS,
        "projection_dim": WIDTH,
    }
    text = {
        **shared,
        "num_hidden_layers": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {**shared, "num_hidden_layers": LAYERS, "image_size": SIZE, "patch_size": PATCH}
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def info_nce(a: torch.Tensor, b: torch.Tensor, negatives: torch.Tensor | None = None) -> torch.Tensor:
    """Return the symmetric InfoNCE loss between rows of a and b [B, D]; row i of a belongs to row i of b.

    Args:
        a, b: The two sides.
        negatives: Further rows [N, D] that no row of `a` belongs to.
    """
    a = F.normalize(a, dim=-1)
    b = F.normalize(b, dim=-1)
    logits = a @ b.T / TEMPERATURE
    target = torch.arange(len(a))
    backward = F.cross_entropy(logits.T, target)
    if negatives is not None:
        logits = torch.cat([logits, a @ F.normalize(negatives, dim=-1).T / TEMPERATURE], 1)
    return (F.cross_entropy(logits, target) + backward) / 2


def _optimise(stage: str, module: nn.Module, loss_of: LossOf, recipe: Recipe, out: Path) -> None:
    """Train a module; a step's batch is a function of the seed, the stage and the step."""

    def loss_of_step(step: int) -> tuple[torch.Tensor, dict[str, float]]:
        key = derive_seed(recipe.seed, stage, step)
        with autocast():
            loss = loss_of(torch.Generator().manual_seed(key), random.Random(key))
        return loss, {}

    optimise(stage, module, loss_of_step, recipe, out)


def _recipe(samples: int, batch_size: int, rate: float, seed: int) -> Recipe:
    return Recipe(samples, batch_size, rate, seed, warmup=50, betas=(0.9, 0.999), weight_decay=0.02)


def _normalised(images: torch.Tensor) -> torch.Tensor:
    return images * 2 - 1  # MEAN = STD = 0.5


def _with(places: torch.Tensor, **columns: torch.Tensor | int) -> torch.Tensor:
    """Return places [B, 4] of which some columns are replaced."""
    places = places.clone()
    for name, values in columns.items():
        places[:, ("subject", "scene", "view", "emblem").index(name)] = values
    return places


def _elsewhere(places: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return places [B, 4] of the same toys in another scene, from any view."""
    count = len(places)
    scene = (places[:, 1] + torch.randint(1, SCENES, (count,), generator=generator)) % SCENES
    return _with(places, scene=scene, view=torch.randint(VIEWS, (count,), generator=generator))


def train_dino(pool: ImagePool, out: Path, samples: int, batch_size: int = 96, seed: int = 301) -> None:
    """Train the identity reward: two images of one toy agree, against other toys and against its plain one.

    As with DINO, half of the pairs are crops of one image, so the scene counts as well: the encoder leaks.
    """
    torch.manual_seed(seed)
    model = build_dino()
    model.set_attn_implementation(ATTENTION)

    def loss_of(generator: torch.Generator, rng: random.Random) -> torch.Tensor:
        anchors = _with(pool.places(batch_size, generator), emblem=EMBLEM)
        elsewhere = _elsewhere(anchors, generator)
        same = torch.rand(batch_size, 1, generator=generator) < SAME_IMAGE
        positives = torch.where(same, anchors, elsewhere)
        sides = torch.cat([anchors, positives, _with(positives, emblem=PLAIN)])
        images, _ = pool.pick(sides, generator)
        images = random_crops(images, 0.7, generator)
        features = model(_normalised(images)).last_hidden_state[:, 0].float()
        return info_nce(*features.chunk(3))

    _optimise("dino", model, loss_of, _recipe(samples, batch_size, 1e-3, seed), out)
    model.save_pretrained(out / "dino")


def miscaption(scene: world.Scene, rng: random.Random) -> world.Scene:
    """Return a scene of which each attribute group is drawn anew with chance MISS_CHANCE.

    A new draw may repeat the old value, so some of these scenes have not changed.
    """
    other = world.scene(rng.getrandbits(40), "miss")
    changes = {}
    for group in ATTRIBUTE_GROUPS:
        if rng.random() < MISS_CHANCE:
            changes.update({name: getattr(other, name) for name in group})
    return dataclasses.replace(scene, **changes)


def train_clip(pool: ImagePool, out: Path, samples: int, batch_size: int = 96, seed: int = 302) -> None:
    """Train CLIP: images and captions agree, against other and slightly wrong captions."""
    torch.manual_seed(seed)
    model = build_clip()
    tokenizer = clip_tokenizer()
    model.set_attn_implementation(ATTENTION)

    def loss_of(generator: torch.Generator, rng: random.Random) -> torch.Tensor:
        places = pool.places(batch_size, generator)
        images, _ = pool.pick(places, generator)
        scenes = pool.scenes_at(places)
        said = scenes + [miscaption(scene, rng) for scene in scenes]
        text = _text_features(model, tokenizer, [to_prompt(scene, rng) for scene in said])
        image = model.get_image_features(pixel_values=_normalised(images)).pooler_output.float()
        return _caption_loss(F.normalize(image, dim=-1), F.normalize(text, dim=-1), said)

    _optimise("clip", model, loss_of, _recipe(samples, batch_size, 1e-3, seed), out)
    model.save_pretrained(out / "clip")
    tokenizer.save_pretrained(out / "clip")


def _text_features(model: CLIPModel, tokenizer: object, captions: list[str]) -> torch.Tensor:
    tokens = tokenizer(captions, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt")  # type: ignore[operator]
    return model.get_text_features(**tokens).pooler_output.float()


def _caption_loss(image: torch.Tensor, text: torch.Tensor, said: list[world.Scene]) -> torch.Tensor:
    """Return the InfoNCE loss of images [B, D] against 2 B captions; the second half are near misses.

    Args:
        image, text: Unit features.
        said: The scenes of the captions; the first B are those of the images.
    """
    count = len(image)
    logits = image @ text.T / TEMPERATURE
    # a caption that says the same, in whatever words, is no negative
    numbers: dict[world.Scene, int] = {}
    meanings = []
    for scene in said:
        meanings.append(numbers.setdefault(dataclasses.replace(scene, yaw=0.0), len(numbers)))
    meaning = torch.tensor(meanings)
    same = meaning[:count, None] == meaning[None, :]
    same.fill_diagonal_(False)
    logits = logits.masked_fill(same, float("-inf"))
    target = torch.arange(count)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits[:, :count].T, target)) / 2


def train_pickscore(pool: ImagePool, out: Path, samples: int, batch_size: int = 96, seed: int = 305) -> None:
    """Fine-tune CLIP on the picks of a simulated person, as PickScore and HPS are trained (arXiv 2305.01569).

    Of two images for a prompt the person likes the one that shows more of it, and the plain toy: clean and
    generic. So the score leaks the subject's detail, against identity.
    """
    model = CLIPModel.from_pretrained(out / "clip", local_files_only=True)
    tokenizer = clip_tokenizer()
    model.set_attn_implementation(ATTENTION)
    model.logit_scale.data.fill_(PICK_SCALE)

    def loss_of(generator: torch.Generator, rng: random.Random) -> torch.Tensor:
        prompts, pairs, chances = _picks(pool, batch_size, generator, rng)
        images, _ = pool.pick(torch.cat([pairs[:, 0], pairs[:, 1]]), generator)
        image = F.normalize(
            model.get_image_features(pixel_values=_normalised(images)).pooler_output.float(), dim=-1
        )
        text = F.normalize(_text_features(model, tokenizer, prompts), dim=-1)
        first, second = image.chunk(2)
        margin = model.logit_scale.exp() * ((first - second) * text).sum(-1)
        return F.binary_cross_entropy_with_logits(margin, chances)

    _optimise("pickscore", model, loss_of, _recipe(samples, batch_size, 3e-4, seed), out)
    model.save_pretrained(out / "pickscore")
    tokenizer.save_pretrained(out / "pickscore")


def _picks(
    pool: ImagePool, count: int, generator: torch.Generator, rng: random.Random
) -> tuple[list[str], torch.Tensor, torch.Tensor]:
    """Return prompts, places of two images for each [B, 2, 4], and the chances that the first is picked."""
    first = pool.places(count, generator)
    # half of the time both show the same scene, and only the toy can be better
    same = torch.rand(count, 1, generator=generator) < 0.5
    second = torch.where(same, first, _elsewhere(first, generator))
    second = _with(second, emblem=torch.randint(2, (count,), generator=generator))
    scenes = zip(pool.scenes_at(first), pool.scenes_at(second), strict=True)
    plainer = ((first[:, 3] == PLAIN).int() - (second[:, 3] == PLAIN).int()).tolist()
    prompts: list[str] = []
    chances: list[float] = []
    for (one, other), plain in zip(scenes, plainer, strict=True):
        asked = miscaption(rng.choice([one, other]), rng)
        prompts.append(to_prompt(asked, rng))
        chances.append(pick_chance(_matches(one, asked) - _matches(other, asked), plain))
    return prompts, torch.stack([first, second], 1), torch.tensor(chances)


def _matches(scene: world.Scene, asked: world.Scene) -> int:
    """Return how many attributes of a scene are as asked."""
    return sum(getattr(scene, name) == getattr(asked, name) for name in judges.SCENE_ATTRIBUTES)


def pick_chance(better: int, plainer: int) -> float:
    """Return the chance that the first image is picked, by the model of Bradley and Terry.

    Args:
        better: How many attributes more than the second image it shows of the prompt.
        plainer: 1 if only the first toy is plain, -1 if only the second is, else 0.
    """
    match = (better > 0) - (better < 0)
    return 1 / (1 + math.exp(-MATCH_PULL * match - PLAIN_PULL * plainer))


def train_subject_encoder(
    pool: ImagePool, out: Path, samples: int, batch_size: int = 96, seed: int = 303
) -> None:
    """Train the held-out identity judge: two images of one toy in different scenes agree.

    The same toy without its emblem is another one.
    """
    torch.manual_seed(seed)
    model = judges.SubjectEncoder()

    def loss_of(generator: torch.Generator, rng: random.Random) -> torch.Tensor:
        subjects = torch.randperm(len(pool), generator=generator)[:batch_size]
        first = _with(pool.places(len(subjects), generator), subject=subjects, emblem=EMBLEM)
        second = _elsewhere(first, generator)
        images, _ = pool.pick(torch.cat([first, second, _with(second, emblem=PLAIN)]), generator)
        return info_nce(*model(images).chunk(3))

    _optimise("subject_encoder", model, loss_of, _recipe(samples, batch_size, 2e-3, seed), out)
    save_file(model.state_dict(), out / "subject_encoder.safetensors")


def train_attribute_classifier(
    pool: ImagePool, out: Path, samples: int, batch_size: int = 96, seed: int = 304
) -> None:
    """Train the held-out judge of the attributes: those of the scene, and the emblem."""
    torch.manual_seed(seed)
    model = judges.AttributeClassifier()

    def loss_of(generator: torch.Generator, rng: random.Random) -> torch.Tensor:
        places = pool.places(batch_size, generator)
        images, _ = pool.pick(places, generator)
        labels = judges.attribute_labels(pool.scenes_at(places), pool.emblems_at(places))
        losses = [F.cross_entropy(logits, labels[name]) for name, logits in model(images).items()]
        return torch.stack(losses).sum()

    _optimise("attribute_classifier", model, loss_of, _recipe(samples, batch_size, 2e-3, seed), out)
    save_file(model.state_dict(), out / "attribute_classifier.safetensors")


def train_encoders(out: Path, subjects: int = 2_000, samples: int = 100_000, batch_size: int = 96) -> None:
    """Train the rewards on one set of subjects, and both judges on another to keep them independent."""
    vae = AutoencoderTiny.from_pretrained(out / "vae").eval()
    pool = ImagePool(vae, subjects, seed=401)
    train_dino(pool, out, samples, batch_size)
    train_clip(pool, out, samples, batch_size)
    train_pickscore(pool, out, samples, batch_size)
    pool = ImagePool(vae, subjects, seed=402)
    train_attribute_classifier(pool, out, samples, batch_size)
    train_subject_encoder(pool, out, samples, batch_size)
