from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from customized_grpo.toybox import assets, judges
from customized_grpo.toybox.judging import GROUPS, ToyBoxJudges
from customized_grpo.toybox.source import ToyBoxSource
from customized_grpo.toybox.world import Scene

NAN = math.nan
FULL = Scene("party hat", "red", "ball", "blue", "left", "plain", "green", "night")
BARE = Scene("none", None, "none", None, None, "striped", "pink", "studio")

trained = pytest.mark.skipif(
    "base" not in assets.card(), reason="the embedded weights are random: their card has no measured base"
)


def test_labels_are_class_numbers_and_ignore_what_is_not_there() -> None:
    labels = judges.attribute_labels([FULL, BARE])
    assert {name: values.tolist() for name, values in labels.items()} == {
        "hat": [1, 0],
        "hat_colour": [0, judges.IGNORE],
        "prop": [1, 0],
        "prop_colour": [2, judges.IGNORE],
        "side": [0, judges.IGNORE],
        "floor": [0, 2],
        "floor_colour": [1, 7],
        "sky": [1, 3],
    }


def test_hits_are_one_zero_or_nan_where_nothing_was_asked() -> None:
    wanted = judges.attribute_labels([FULL, BARE])
    predicted = {name: values.clone() for name, values in wanted.items()}
    predicted["hat_colour"][0] = 5  # wrong
    predicted["hat"][1] = 2  # a hat where none was asked is a miss
    predicted["prop_colour"][1] = 3  # no prop was asked: its colour does not count
    hits = judges.attribute_hits(predicted, wanted)
    expected = torch.tensor([[1, 0, 1, 1, 1, 1, 1, 1], [0, NAN, 1, NAN, NAN, 1, 1, 1]])
    torch.testing.assert_close(hits, expected, equal_nan=True)


def test_each_group_of_attributes_is_judged_once() -> None:
    assert sorted(name for names in GROUPS.values() for name in names) == sorted(judges.CLASSES)


def test_the_encoder_returns_unit_vectors() -> None:
    norms = judges.SubjectEncoder()(torch.rand(3, 3, 64, 64)).norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(3))


class Oracle(judges.AttributeClassifier):
    """Sees the class numbers it is told, whatever the pictures."""

    def __init__(self, seen: list[Scene]) -> None:
        super().__init__()
        self.seen = judges.attribute_labels(seen)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {
            name: torch.nn.functional.one_hot(self.seen[name].clamp_min(0), len(classes)).float()
            for name, classes in judges.CLASSES.items()
        }


class Known(judges.SubjectEncoder):
    """Embeds a picture on the unit circle at the angle its first pixel says."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        angles = images[:, 0, 0, 0]
        return torch.stack([angles.cos(), angles.sin()], 1)


def test_modes_by_hand() -> None:
    """good: prompted scene, same toy; drift: another toy; copied: the reference's scene; other: neither."""
    source = ToyBoxSource(4, 1, 0, "judged")
    examples = [source[i] for i in range(4)]
    scenes = [e.meta["scene"] for e in examples]
    judge = ToyBoxJudges()
    judge.identity_threshold = 0.5
    judge.encoder = Known()
    nothing = Scene("halo", "red", "box", "pink", "left", "plain", "white", "night")
    judge.classifier = Oracle([scenes[0], scenes[1], examples[2].meta["reference_scene"], nothing])
    images = torch.stack([e.target for e in examples if e.target is not None])
    images[1, 0, 0, 0] += 2.0  # radians: cosine -.42
    columns = judge.columns(images, examples)
    modes = torch.stack([columns[f"mode/{name}"] for name in ("good", "drift", "copied", "other")])
    assert modes.tolist() == torch.eye(4).tolist()
    assert columns["judge/prompt"][:2].tolist() == [1.0, 1.0]
    assert columns["judge/identity"].tolist() == pytest.approx([1.0, math.cos(2.0), 1.0, 1.0], abs=1e-5)
    for group, names in GROUPS.items():
        asked = [getattr(scenes[3], name) == getattr(nothing, name) for name in names
                 if getattr(scenes[3], name) is not None]  # fmt: skip
        assert columns[f"judge/{group}"].tolist()[3] == float(all(asked))


def test_a_scene_close_to_the_reference_is_copied_only_if_it_fits_the_reference_better() -> None:
    source = ToyBoxSource(2, 1, 0, "judged")
    examples = [source[0], source[1]]
    for example in examples:
        sky = "night" if example.meta["scene"].sky != "night" else "studio"
        example.meta["reference_scene"] = dataclasses.replace(example.meta["scene"], sky=sky)
    judge = ToyBoxJudges()
    judge.encoder = Known()
    judge.classifier = Oracle([examples[0].meta["scene"], examples[1].meta["reference_scene"]])
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
            "judge/identity", "judge/prompt", "judge/hat", "judge/prop", "judge/floor", "judge/sky",
            "monitor/copy_score", "monitor/background_similarity",
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
