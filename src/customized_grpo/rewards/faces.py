"""Find faces (YuNet), cut them out upright at 112 x 112, and compute their features (ArcFace).

The detector is YuNet's ONNX of 2023 (OpenCV's model zoo, face_detection_yunet_2023mar.onnx; MIT): for each
stride s of 8, 16 and 32 the outputs cls_s, obj_s [1, N, 1], bbox_s [1, N, 4] and kps_s [1, N, 10], N cells
row by row, decoded as OpenCV's FaceDetectorYN does. Landmarks are the two eyes, the nose, the corners of the
mouth, each pair from left to right as seen in the image. The recogniser is any ArcFace-like model
[1, 3, 112, 112] -> [1, D].

OpenCV has a detector of its own for this file. It is not used, because it would be a second image library for
some 60 lines of arithmetic, and its recogniser takes SFace's models only; onnxruntime is needed anyway.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from customized_grpo.errors import UserError
from customized_grpo.onnx_model import Array, OnnxModel

Pixels = NDArray[np.uint8]
"""An image, [H, W, 3], RGB."""

STRIDES = (8, 16, 32)
DETECTOR_SIZE = 640  # where the model leaves it open
MAX_OVERLAP = 0.3  # intersection over union beyond which two boxes are one face; OpenCV's default
MAX_CANDIDATES = 5000  # OpenCV's default
FACE_SIZE = 112
# Where ArcFace's training data has the landmarks: (x, y) in pixels of a 112 x 112 image (insightface).
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)


@dataclass(frozen=True)
class Faces:
    """The F faces of one image, by falling score; coordinates are (x, y) in pixels.

    Attributes:
        boxes: [F, 4], left, top, right, bottom.
        landmarks: [F, 5, 2].
        scores: [F], in [0, 1].
    """

    boxes: NDArray[np.float64]
    landmarks: NDArray[np.float64]
    scores: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, rows: Any) -> Faces:
        """Return the faces with these numbers, in this order."""
        return Faces(self.boxes[rows], self.landmarks[rows], self.scores[rows])


class FaceDetector:
    """YuNet: the faces of an image.

    Args:
        path: YuNet's ONNX.
        min_score: Score below which a candidate is no face.

    Raises:
        UserError: It is no such model.
    """

    def __init__(self, path: Path, min_score: float) -> None:
        self.model = OnnxModel(path, "face detector", size=DETECTOR_SIZE)
        self.min_score = min_score
        _check_detector(self.model)

    def __call__(self, image: Pixels) -> Faces:
        """Return the faces of an image of any size."""
        height, width = image.shape[:2]
        scale = min(self.model.height / height, self.model.width / width)
        # (width, height), as Pillow has it; rounding makes the two axes scale a little differently
        size = max(1, round(width * scale)), max(1, round(height * scale))
        resized = Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)
        canvas = np.zeros((self.model.height, self.model.width, 3), np.float32)
        # In the top left corner, black beside and below: places need no shift on the way back.
        canvas[: size[1], : size[0]] = np.asarray(resized)
        outputs = self.model(np.ascontiguousarray(canvas[:, :, ::-1].transpose(2, 0, 1)))  # BGR, 0 to 255
        faces = suppress(decode(outputs, self.model.height, self.model.width, self.min_score))
        # Each axis with its own factor, that of the rounded size.
        back = np.array([width / size[0], height / size[1]])
        # Boxes are (x, y, x, y), so the two factors come twice.
        return Faces(faces.boxes * np.tile(back, 2), faces.landmarks * back, faces.scores)


class FaceRecogniser:
    """ArcFace: the features of a face, close together for one person.

    Args:
        path: An ArcFace-like ONNX for RGB (x - 127.5) / 127.5.

    Raises:
        UserError: It is no such model.
    """

    def __init__(self, path: Path) -> None:
        self.model = OnnxModel(path, "face recogniser", size=FACE_SIZE)
        if (self.model.height, self.model.width) != (FACE_SIZE, FACE_SIZE):
            raise UserError(f"{path}: a face recogniser takes 112 x 112 pixels, not {self._size()}")
        shapes = [list(output.shape) for output in self.model.blank().values()]
        if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][0] != 1:
            raise UserError(f"{path}: a face recogniser returns one array [1, D], not {shapes}")
        if {"Sub", "Mul"} <= set(self.model.first_operations):
            raise UserError(
                f"{path}: this face recogniser scales its image itself, as those of mxnet do",
                hint="Take one for RGB (x - 127.5) / 127.5, such as w600k_r50.onnx of insightface.",
            )

    def __call__(self, image: Pixels, landmarks: NDArray[np.float64]) -> Array:
        """Return unit features [D] of the face with these landmarks [5, 2]."""
        face = warp(image, landmarks).astype(np.float32)
        (features,) = self.model(((face - 127.5) / 127.5).transpose(2, 0, 1)).values()
        norm = np.linalg.norm(features)
        if not np.isfinite(norm) or norm == 0:
            raise UserError(f"{self.model.path}: the face recogniser returned features of norm {norm}")
        unit: Array = features[0] / norm
        return unit

    def _size(self) -> str:
        return f"{self.model.width} x {self.model.height}"


def decode(outputs: dict[str, Array], height: int, width: int, min_score: float) -> Faces:
    """Return YuNet's candidates of at least `min_score`, by falling score, for an image height x width.

    A cell at column c, row r of stride s has the score sqrt(cls * obj), its box the centre
    ((c, r) + bbox[:2]) * s and the size exp(bbox[2:]) * s, and its landmarks are ((c, r) + kps) * s.
    """
    parts = []
    for stride in STRIDES:
        # Cells are numbered row by row: cell -> (row, column) -> pixels by the stride.
        rows, columns = np.divmod(np.arange((height // stride) * (width // stride)), width // stride)
        cells = np.stack([columns, rows], axis=1).astype(np.float64)
        cls = _cells(outputs, "cls", stride)
        obj = _cells(outputs, "obj", stride)
        bbox = _cells(outputs, "bbox", stride)
        kps = _cells(outputs, "kps", stride)
        scores = np.sqrt(cls.clip(0, 1) * obj.clip(0, 1))[:, 0]
        is_face = scores >= min_score
        centres = (cells + bbox[:, :2])[is_face] * stride
        half = np.exp(bbox[is_face, 2:]) * stride / 2
        landmarks = (cells[is_face, None] + kps[is_face].reshape(-1, 5, 2)) * stride
        boxes = np.concatenate([centres - half, centres + half], axis=1)
        parts.append(Faces(boxes, landmarks, scores[is_face]))
    faces = Faces(
        boxes=np.concatenate([part.boxes for part in parts]),
        landmarks=np.concatenate([part.landmarks for part in parts]),
        scores=np.concatenate([part.scores for part in parts]),
    )
    # Stable: equal scores stay in the order of strides and cells, on every machine.
    return faces.select(np.argsort(-faces.scores, kind="stable")[:MAX_CANDIDATES])


def _cells(outputs: dict[str, Array], name: str, stride: int) -> NDArray[np.float64]:
    """Return an output of one stride in float64, [cells, values]."""
    return outputs[f"{name}_{stride}"][0].astype(np.float64)


def suppress(faces: Faces) -> Faces:
    """Return the faces whose box overlaps no box of a higher score by more than `MAX_OVERLAP`."""
    best: list[int] = []
    remaining = np.arange(len(faces))  # numbers of faces, by falling score
    while len(remaining):
        first = remaining[0]
        others = remaining[1:]
        best.append(int(first))
        remaining = others[_overlap(faces.boxes[first], faces.boxes[others]) <= MAX_OVERLAP]
    return faces.select(best)


def similarity(source: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rotation, scale and shift [2, 3] that maps points [N, 2] onto others in least squares.

    As complex numbers, points are mapped by z -> a z + b, and a is a regression coefficient.
    """
    z = source[:, 0] + 1j * source[:, 1]
    w = target[:, 0] + 1j * target[:, 1]
    centred = z - z.mean()
    # vdot conjugates its first argument, as a regression in complex numbers needs.
    a = np.vdot(centred, w - w.mean()) / np.vdot(centred, centred)
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def warp(image: Pixels, landmarks: NDArray[np.float64]) -> Pixels:
    """Return the face upright, [112, 112, 3], its landmarks as near ArcFace's as possible; black outside.

    As in insightface's face_align.py the image is fitted to the template, and then inverted: distances count
    in pixels of the face. The other way round a crop with noisy landmarks, or of a half profile, is smaller.
    """
    if np.ptp(landmarks, axis=0).max() == 0:  # all at one point: a face of no extent
        return np.zeros((FACE_SIZE, FACE_SIZE, 3), np.uint8)
    forward = similarity(landmarks, TEMPLATE)
    turn = np.linalg.inv(forward[:, :2])
    # From the upright face to the image: Pillow asks, for each pixel of the result, where it comes from.
    matrix = np.column_stack([turn, -turn @ forward[:, 2]])
    # Landmarks count from the centre of the first pixel, Pillow from its corner.
    matrix[:, 2] += 0.5 - matrix[:, :2] @ (0.5, 0.5)
    warped = Image.fromarray(image).transform(
        (FACE_SIZE, FACE_SIZE), Image.Transform.AFFINE, tuple(matrix.ravel()), Image.Resampling.BILINEAR
    )
    return np.asarray(warped)


def _overlap(box: NDArray[np.float64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the intersection over union of one box with each of others, [N, 4]."""
    corner = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    # A negative edge is a gap; two gaps would multiply to an area.
    shared = (corner[1] - corner[0]).clip(0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    ratios: NDArray[np.float64] = shared / ((box[2:] - box[:2]).prod() + areas - shared)
    return ratios


def _check_detector(model: OnnxModel) -> None:
    if model.height % STRIDES[-1] or model.width % STRIDES[-1]:
        raise UserError(f"{model.path}: {model.height} x {model.width} pixels are no multiples of 32")
    shapes = {name: list(output.shape) for name, output in model.blank().items()}
    for stride in STRIDES:
        cells = (model.height // stride) * (model.width // stride)
        for name, values in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
            key = f"{name}_{stride}"
            expected = [1, cells, values]
            if shapes.get(key) != expected:
                raise UserError(
                    f"{model.path}: output {key} should be {expected}, it is {shapes.get(key, 'missing')}",
                    hint="The detector must be YuNet as of 2023, such as face_detection_yunet_2023mar.onnx.",
                )
