"""Faces with tiny models whose outputs are known: red cells are faces, features are linear."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

import tiny_onnx
import tiny_rewards as tiny
from customized_grpo.config.schema import RewardConfig
from customized_grpo.errors import UserError
from customized_grpo.rewards import Reward, ScoringBatch, build_reward
from customized_grpo.rewards.face import match
from customized_grpo.rewards.faces import (
    TEMPLATE,
    FaceDetector,
    FaceRecogniser,
    Faces,
    similarity,
    suppress,
    warp,
)


@pytest.fixture
def models(tmp_path: Path) -> dict[str, str]:
    return {
        "detector": str(tiny_onnx.save_detector(tmp_path / "yunet.onnx")),
        "recogniser": str(tiny_onnx.save_recogniser(tmp_path / "arcface.onnx")),
    }


@pytest.fixture
def reward(models: dict[str, str]) -> Reward:
    return build_reward(RewardConfig(name="face", options=models))


def image_of(*cells: tuple[int, int], seed: int = 0, side: int = 64) -> torch.Tensor:
    """Greenish texture with faces: red cells of 8 x 8 pixels at these columns and rows."""
    image = torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed))
    image[0] *= 0.3
    for column, row in cells:
        image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = torch.tensor([0.9, 0.0, 0.5])[
            :, None, None
        ]
    return image


def batch(images: list[torch.Tensor], references: list[list[torch.Tensor]]) -> ScoringBatch:
    n = len(images)
    return ScoringBatch(torch.stack(images), ["a man"] * n, references, None, None, [{"id": "x"}] * n)


def pixels(image: torch.Tensor) -> NDArray[np.uint8]:
    return (image * 255).round().byte().permute(1, 2, 0).numpy()


def umeyama(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Umeyama (1991), equations 34 to 43, independent of the code under test."""
    mean_x, mean_y = source.mean(0), target.mean(0)
    x, y = source - mean_x, target - mean_y
    u, d, vt = np.linalg.svd(y.T @ x / len(x))
    s = np.diag([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ s @ vt
    scale = np.trace(np.diag(d) @ s) / (x**2).sum(1).mean()
    return np.column_stack([scale * rotation, mean_y - scale * rotation @ mean_x])


def sample(image: NDArray[np.uint8], landmarks: NDArray[np.float64]) -> NDArray[np.float64]:
    """The face by Umeyama's transform and scipy's bilinear interpolation, [112, 112, 3]."""
    y, x = np.mgrid[:112, :112]
    forward = umeyama(landmarks, TEMPLATE)
    turn = np.linalg.inv(forward[:, :2])
    matrix = np.column_stack([turn, -turn @ forward[:, 2]])
    at_x, at_y = (matrix[:, :2] @ np.stack([x.ravel(), y.ravel()]).astype(float) + matrix[:, 2:]).reshape(
        2, 112, 112
    )
    channels = [map_coordinates(image[..., c].astype(float), [at_y, at_x], order=1) for c in range(3)]
    return np.stack(channels, axis=-1)


points = st.lists(st.floats(-100, 100), min_size=10, max_size=10).map(lambda v: np.array(v).reshape(5, 2))


@given(points, points)
def test_the_transform_is_umeyamas(source: NDArray[np.float64], target: NDArray[np.float64]) -> None:
    source, target = source + TEMPLATE, target + TEMPLATE
    found = similarity(source, target)
    assume(np.linalg.det(found[:, :2]) > 1e-4)  # else points hardly correspond and every turn is as good
    assert np.allclose(found, umeyama(source, target), atol=1e-6)


def test_a_turned_enlarged_and_moved_template_is_found_exactly() -> None:
    turn = 1.7 * np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    found = similarity(TEMPLATE, TEMPLATE @ turn.T + (30, -4))
    assert np.allclose(found, np.column_stack([turn, (30, -4)]))


@pytest.mark.parametrize("width", [1.0, 0.6])  # of the landmarks: a half profile is narrow
def test_the_warp_is_a_bilinear_sample_of_the_transform(width: float) -> None:
    image = pixels(tiny.random_image(3, 300, 200))
    turn = 0.6 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    noise = np.random.default_rng(0).normal(size=(5, 2))
    landmarks = (TEMPLATE * (width, 1)) @ turn.T + (90, 120) + noise
    got, wanted = warp(image, landmarks).astype(float), sample(image, landmarks)
    assert np.abs(got - wanted).max() <= 1
    shifted = sample(image, landmarks + 0.5)
    assert np.abs(shifted - wanted).max() > 1.5, "the image is too flat to show half a pixel's shift"


def test_a_face_of_no_extent_is_black() -> None:
    assert not warp(np.full((40, 40, 3), 255, np.uint8), np.full((5, 2), 20.0)).any()


def test_outside_the_image_is_black() -> None:
    face = warp(np.full((40, 40, 3), 255, np.uint8), TEMPLATE - 20)
    assert face[0, 0].sum() == 0 and face[30, 30].sum() == 3 * 255 and face[-1, -1].sum() == 0


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 128), (128, 64), (48, 96)])
def test_faces_are_found_where_they_are(tmp_path: Path, height: int, width: int) -> None:
    detector = FaceDetector(tiny_onnx.save_detector(tmp_path / "d.onnx"), 0.7)
    scale = max(height, width) / 64  # pixels of the image for one of the detector
    cell = int(8 * scale)
    image = np.zeros((height, width, 3), np.uint8)
    corners = [(1, 1), (int(width / cell) - 1, int(height / cell) - 1)]
    for column, row in corners:
        image[cell * row : cell * (row + 1), cell * column : cell * (column + 1)] = (255, 0, 0)
    faces = detector(image)
    assert len(faces) == 2 and (faces.scores > 0.7).all()
    for column, row in corners:
        centre = (np.array([column, row]) + 0.5) * cell
        number = np.abs(faces.boxes[:, :2] + faces.boxes[:, 2:] - 2 * centre).sum(1).argmin()
        assert np.allclose(
            faces.boxes[number], [*(centre - (cell, 1.5 * cell)), *(centre + (cell, 1.5 * cell))], atol=1e-4
        )
        assert np.allclose(
            faces.landmarks[number], (np.array([column, row]) + tiny_onnx.LANDMARKS) * cell, atol=1e-4
        )


def test_an_image_that_fits_the_detector_only_roughly_is_mapped_back_by_each_axis(tmp_path: Path) -> None:
    detector = FaceDetector(tiny_onnx.save_detector(tmp_path / "d.onnx", everywhere=True), 0.7)
    faces = detector(np.zeros((32, 96, 3), np.uint8))  # 21.33 rows become 21
    pixel = np.array([96 / 64, 32 / 21])
    assert np.allclose(faces.landmarks[0], ((2, 3) + tiny_onnx.LANDMARKS) * 8 * pixel, atol=1e-4)
    corners = np.array([[1.5, 2.0], [3.5, 5.0]]) * 8 * pixel
    assert np.allclose(faces.boxes[0], corners.ravel(), atol=1e-4)


def test_a_blue_cell_is_no_face_and_a_pale_one_depends_on_the_threshold(tmp_path: Path) -> None:
    path = tiny_onnx.save_detector(tmp_path / "d.onnx")
    image = np.zeros((64, 64, 3), np.uint8)
    image[8:16, 8:16] = (0, 0, 255)
    image[32:40, 32:40] = (int(255 * 0.36), 0, 0)  # a score of .6
    assert len(FaceDetector(path, 0.7)(image)) == 0
    assert len(FaceDetector(path, 0.5)(image)) == 1


def test_a_recogniser_that_scales_its_image_itself_is_refused(tmp_path: Path) -> None:
    path = tiny_onnx.save_recogniser(tmp_path / "mxnet.onnx", scales=True)
    with pytest.raises(UserError, match="scales its image itself"):
        FaceRecogniser(path)


def test_of_overlapping_boxes_the_surest_stays() -> None:
    boxes = np.array([[0, 0, 10, 10], [1, 1, 11, 11], [9, 9, 20, 20], [0, 5, 10, 15.0]])
    faces = Faces(boxes, np.zeros((4, 5, 2)), np.array([0.9, 0.8, 0.7, 0.6]))
    # overlaps with the first: 81 / 119, 1 / 220, 50 / 150
    assert suppress(faces).scores.tolist() == [0.9, 0.7]


def test_a_score_is_the_cosine_of_the_features_of_both_warps(reward: Reward) -> None:
    image, reference = image_of((2, 3), seed=1), image_of((4, 4), seed=2)

    def features(photo: torch.Tensor, column: int, row: int) -> NDArray[np.float64]:
        face = sample(pixels(photo), 8.0 * (np.array([column, row]) + tiny_onnx.LANDMARKS)).round()
        return np.asarray(
            ((face - 127.5) / 127.5).transpose(2, 0, 1).ravel() @ tiny_onnx.weights() + tiny_onnx.bias()
        )

    a, b = features(image, 2, 3), features(reference, 4, 4)
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    score = reward.score(batch([image], [[reference]])).item()
    assert abs(cosine) > 0.05 and score == pytest.approx(cosine, abs=0.02)


def test_the_same_face_scores_one(reward: Reward) -> None:
    image = image_of((2, 3))
    assert reward.score(batch([image], [[image]])).item() == pytest.approx(1.0)


def test_no_face_in_an_image_is_nan_and_leaves_the_others_alone(reward: Reward) -> None:
    face, none = image_of((2, 3)), image_of()
    scores = reward.score(batch([none, face], [[face], [face]]))
    assert scores[0].isnan() and scores[1] == pytest.approx(1.0)


def test_no_face_in_a_reference_is_an_error_that_names_it(reward: Reward) -> None:
    face, none = image_of((2, 3)), image_of()
    with pytest.raises(UserError, match=r"reference 2 of sample 0 \(row 'x'\) shows no face"):
        reward.score(batch([face], [[face, none]]))
    with pytest.raises(UserError, match=r"sample 0 .* has no reference\nName an image"):
        reward.score(batch([face], [[]]))


def test_several_people_and_several_references(reward: Reward) -> None:
    two, one = image_of((1, 1), (5, 4)), image_of((1, 1))
    left_out = reward.score(batch([one], [[two]])).item()
    assert reward.score(batch([two], [[two]])).item() == pytest.approx(1.0)
    assert left_out == pytest.approx(0.5, abs=0.01)  # the texture around the face is the same
    assert reward.score(batch([two], [[one]])).item() == pytest.approx(
        1.0, abs=0.01
    )  # strangers cost nothing
    mean = reward.score(batch([one], [[one, two]])).item()
    assert mean == pytest.approx((1 + left_out) / 2, abs=0.01)


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 1000))
def test_the_matching_is_the_best_of_all(people: int, faces: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    known, found = (random.normal(size=(n, 4)).astype(np.float32) for n in (people, faces))
    cosines = known @ found.T
    few, many = sorted((people, faces))
    small = cosines if people <= faces else cosines.T
    best = max(
        sum(small[row, column] for row, column in enumerate(columns))
        for columns in itertools.permutations(range(many), few)
    )
    assert match(found, known) == pytest.approx(best / people, abs=1e-5)


def test_references_are_looked_at_once(reward: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    face = image_of((2, 3))
    seen: list[int] = []
    features = reward._features
    monkeypatch.setattr(reward, "_features", lambda image: (seen.append(1), features(image))[1])
    reward.score(batch([face] * 3, [[face]] * 3))
    assert len(seen) == 4


def test_the_fingerprint_follows_both_models_and_the_threshold(
    models: dict[str, str], tmp_path: Path
) -> None:
    def fingerprint(**changes: Any) -> dict[str, Any]:
        return build_reward(RewardConfig(name="face", options={**models, **changes})).fingerprint()

    other_detector = str(tiny_onnx.save_detector(tmp_path / "2.onnx", everywhere=True))
    other_recogniser = str(tiny_onnx.save_recogniser(tmp_path / "3.onnx", seed=1))
    changes = ({"min_score": 0.5}, {"detector": other_detector}, {"recogniser": other_recogniser})
    prints = [fingerprint(), *(fingerprint(**change) for change in changes)]
    assert fingerprint() == prints[0] and all(a != b for a, b in itertools.combinations(prints, 2))


def test_models_in_each_others_place_are_refused(models: dict[str, str]) -> None:
    swapped = {"detector": models["recogniser"], "recogniser": models["detector"]}
    with pytest.raises(UserError, match=r"112 x 112 pixels are no multiples of 32"):
        build_reward(RewardConfig(name="face", options=swapped))
    with pytest.raises(UserError, match="takes 112 x 112 pixels, not 64 x 64"):
        build_reward(RewardConfig(name="face", options={**models, "recogniser": models["detector"]}))


def test_a_detector_of_another_layout_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    models["detector"] = str(tiny_onnx.save_segmenter(tmp_path / "s.onnx", size=64))
    with pytest.raises(UserError, match=r"output cls_8 should be \[1, 64, 1\], it is missing"):
        build_reward(RewardConfig(name="face", options=models))


def test_a_recogniser_of_another_layout_is_refused(models: dict[str, str], tmp_path: Path) -> None:
    models["recogniser"] = str(tiny_onnx.save_segmenter(tmp_path / "s.onnx", size=112))
    with pytest.raises(UserError, match=r"returns one array \[1, D\]"):
        build_reward(RewardConfig(name="face", options=models))


def test_features_without_direction_are_no_score(
    models: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_onnx, "weights", lambda seed: np.zeros((3 * 112 * 112, 8), np.float32))
    monkeypatch.setattr(tiny_onnx, "bias", lambda: np.zeros(8, np.float32))
    models["recogniser"] = str(tiny_onnx.save_recogniser(tmp_path / "zero.onnx"))
    reward = build_reward(RewardConfig(name="face", options=models))
    face = image_of((2, 3))
    with pytest.raises(UserError, match="features of norm 0"):
        reward.score(batch([face], [[face]]))


def test_prompts_do_not_matter(reward: Reward) -> None:
    first = batch([image_of((2, 3), seed=1)], [[image_of((3, 3), seed=2)]])
    other = dataclasses.replace(first, prompts=["another"])
    assert torch.equal(reward.score(first), reward.score(other))
