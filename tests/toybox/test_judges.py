from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from customized_grpo.data.examples import Example
from customized_grpo.toybox import assets, judges, world
from customized_grpo.toybox.judging import GROUPS, ToyBoxJudges
from customized_grpo.toybox.source import ToyBoxSource
from customized_grpo.toybox.world import Scene

BALL = Scene("ball", "blue", "left", "green", "night")
CONE = Scene("cone", "brown", "right", "brown", "studio")

trained = pytest.mark.skipif(
    "base" not in assets.card(), reason="the embedded weights are random: their card has no measured base"
)


def test_labels_are_class_numbers() -> None:
    labels = judges.attribute_labels([BALL, CONE], ["ring", world.PLAIN])
    assert {name: values.tolist() for name, values in labels.items()} == {
        "prop": [0, 2],
        "prop_colour": [2, 7],
        "side": [0, 1],
        "floor_colour": [1, 7],
        "sky": [1, 3],
        "emblem": [0, 6],
    }


def test_hits_are_one_or_zero_for_each_attribute_of_the_scene() -> None:
    wanted = judges.attribute_labels([BALL, CONE], ["ring", "ring"])
    predicted = {name: values.clone() for name, values in wanted.items()}
    predicted["prop_colour"][0] = 5
    predicted["sky"][1] = 0
    predicted["emblem"][:] = 3  # not of the scene
    assert judges.scene_hits(predicted, wanted).tolist() == [[1, 0, 1, 1, 1], [1, 1, 1, 1, 0]]


def test_each_attribute_of_a_scene_is_judged_once() -> None:
    groups = [name for names in GROUPS.values() for name in names]
    assert tuple(groups) == judges.SCENE_ATTRIBUTES


def test_the_encoder_returns_unit_vectors() -> None:
    norms = judges.SubjectEncoder()(torch.rand(3, 3, 64, 64)).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(3))


class Oracle(judges.AttributeClassifier):
    """Sees the class numbers it is told, whatever the pictures."""

    def __init__(self, scenes: list[Scene], emblems: list[str]) -> None:
        super().__init__()
        self.seen = judges.attribute_labels(scenes, emblems)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            name: torch.nn.functional.one_hot(self.seen[name], len(classes)).float()
            for name, classes in judges.CLASSES.items()
        }


class Known(judges.SubjectEncoder):
    """Embeds a picture on the unit circle at the angle its first pixel says."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        angles = images[:, 0, 0, 0]
        return torch.stack([angles.cos(), angles.sin()], 1)


def unlike(example: Example) -> Scene:
    """A scene that is neither the prompted one nor the reference's in any attribute but the side."""
    values = {}
    for name in ("prop", "prop_colour", "floor_colour", "sky"):
        used = {getattr(example.meta["scene"], name), getattr(example.meta["reference_scene"], name)}
        values[name] = next(value for value in judges.CLASSES[name] if value not in used)
    return dataclasses.replace(example.meta["scene"], **values)


def test_modes_by_hand() -> None:
    """good: prompted scene, same toy; drift: another toy; copied: the reference's scene; other: neither."""
    source = ToyBoxSource(4, 1, 0, "judged")
    examples = [source[i] for i in range(4)]
    scenes = [e.meta["scene"] for e in examples]
    judge = ToyBoxJudges()
    judge.identity_threshold = 0.5
    judge.encoder = Known()
    nothing = unlike(examples[3])
    emblems = [examples[0].meta["emblem"], world.PLAIN, examples[2].meta["emblem"], world.PLAIN]
    judge.classifier = Oracle([scenes[0], scenes[1], examples[2].meta["reference_scene"], nothing], emblems)
    images = torch.stack([e.target for e in examples if e.target is not None])
    images[1, 0, 0, 0] += 2.0  # radians: cosine -.42
    columns = judge.columns(images, examples)
    modes = torch.stack([columns[f"mode/{name}"] for name in ("good", "drift", "copied", "other")])
    assert modes.tolist() == torch.eye(4).tolist()
    assert columns["judge/prompt"][:2].tolist() == [1.0, 1.0]
    assert columns["judge/identity"].tolist() == pytest.approx([1.0, math.cos(2.0), 1.0, 1.0], abs=1e-5)
    assert columns["judge/emblem"].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert columns["monitor/plain"].tolist() == [0.0, 1.0, 0.0, 1.0]
    for group in GROUPS:
        assert columns[f"judge/{group}"].tolist() == [1.0, 1.0, 0.0, 0.0]


def test_a_scene_close_to_the_reference_is_copied_only_if_it_fits_the_reference_better() -> None:
    source = ToyBoxSource(2, 1, 0, "judged")
    examples = [source[0], source[1]]
    for example in examples:
        sky = "night" if example.meta["scene"].sky != "night" else "studio"
        example.meta["reference_scene"] = dataclasses.replace(example.meta["scene"], sky=sky)
    judge = ToyBoxJudges()
    judge.encoder = Known()
    emblems = [example.meta["emblem"] for example in examples]
    judge.classifier = Oracle([examples[0].meta["scene"], examples[1].meta["reference_scene"]], emblems)
    columns = judge.columns(torch.stack([e.target for e in examples if e.target is not None]), examples)
    assert columns["mode/good"].tolist() == [1.0, 0.0]
    assert columns["mode/copied"].tolist() == [0.0, 1.0]


@pytest.fixture(scope="module")
def judged() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Columns of true targets, and of literal copies of the references."""
    source = ToyBoxSource(32, 1, 900, "judged")
    examples = [source[i] for i in range(len(source))]
    targets = torch.stack([e.target for e in examples if e.target is not None])
    copies = torch.stack([e.references[0] for e in examples])
    judge = ToyBoxJudges()
    return judge.columns(targets, examples), judge.columns(copies, examples)


def test_every_column_is_a_number_a_picture(judged: tuple[dict[str, torch.Tensor], ...]) -> None:
    for columns in judged:
        assert set(columns) == {
            "judge/identity", "judge/prompt", "judge/prop", "judge/floor", "judge/sky", "judge/emblem",
            "monitor/copy_score", "monitor/background_similarity", "monitor/plain",
            "mode/good", "mode/copied", "mode/drift", "mode/other",
        }  # fmt: skip
        for values in columns.values():
            assert values.shape == (32,) and values.dtype == torch.float32
            assert values.isfinite().all()


def test_modes_sum_to_one(judged: tuple[dict[str, torch.Tensor], ...]) -> None:
    for columns in judged:
        total = sum(values for name, values in columns.items() if name.startswith("mode/"))
        assert torch.equal(total, torch.ones(32))


def test_what_holds_of_pictures_whatever_the_weights(judged: tuple[dict[str, torch.Tensor], ...]) -> None:
    targets, copies = judged
    torch.testing.assert_close(targets["judge/identity"], torch.ones(32))  # the target against itself
    torch.testing.assert_close(copies["monitor/copy_score"], torch.ones(32))
    torch.testing.assert_close(copies["monitor/background_similarity"], torch.ones(32))
    assert targets["monitor/background_similarity"].max() < 1


@trained
def test_the_judges_tell_true_pictures_from_copies(judged: tuple[dict[str, torch.Tensor], ...]) -> None:
    targets, copies = judged
    assert targets["judge/prompt"].mean() > 0.85
    assert targets["mode/good"].mean() > 0.8
    assert copies["mode/copied"].mean() > 0.7 > 0.1 > targets["mode/copied"].mean()
    assert copies["monitor/copy_score"].mean() > targets["monitor/copy_score"].mean() + 0.5


@trained
def test_the_identity_judge_knows_a_toy_in_another_scene() -> None:
    source = ToyBoxSource(48, 1, 901, "judged")
    examples = [source[i] for i in range(len(source))]
    encoder, _ = assets.load_judges()
    with torch.no_grad():
        a = encoder(torch.stack([e.references[0] for e in examples]))
        b = encoder(torch.stack([e.target for e in examples if e.target is not None]))
    similarity = a @ b.T
    own = similarity.diagonal()
    others = similarity[~torch.eye(48, dtype=torch.bool)]
    assert (own[:, None] > others[None, :]).float().mean() > 0.9
