"""Tiny ONNX models whose outputs are known: a detector of red cells, and a linear recogniser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

SIDE = 64
# of the only kind of face there is, relative to its cell's corner, in cells of 8 pixels
BOX = (0.5, 0.5, np.log(2.0), np.log(3.0))
LANDMARKS = np.array([[0.0, 0.1], [1.0, 0.0], [0.5, 0.5], [0.2, 0.9], [0.8, 1.0]])
FEATURES = 8


def save(path: Path, nodes: list[Any], outputs: dict[str, Any], constants: dict[str, Any], side: Any) -> Path:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, side, side])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


def save_detector(path: Path, *, everywhere: bool = False, side: int = SIDE) -> Path:
    """Write a detector in YuNet's layout.

    A cell of 8 x 8 pixels is a face as far as it is red (of BGR, 0 to 255); with `everywhere`, the cell at
    column 2, row 3 is one, whatever the image.
    """
    kernel = np.zeros((1, 3, 8, 8), np.float32)
    if not everywhere:
        kernel[0, 2], kernel[0, 1] = 1 / (64 * 255), -1 / (64 * 255)
    constants: dict[str, Any] = {"kernel": kernel}
    cells = (side // 8) ** 2
    constants["shape"] = np.array([1, cells, 1], np.int64)
    constants["sure"] = np.zeros((1, cells, 1), np.float32)
    constants["sure"][0, 3 * (side // 8) + 2] = float(everywhere)
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["pooled"], strides=[8, 8]),
        helper.make_node("Reshape", ["pooled", "shape"], ["red"]),
        helper.make_node("Add", ["red", "sure"], ["cls_8"]),
    ]
    outputs: dict[str, Any] = {"cls_8": [1, cells, 1]}
    for stride in (8, 16, 32):
        cells = (side // stride) ** 2
        one = np.ones((1, cells, 1), np.float32)
        values = {
            "cls": 0 * one,
            "obj": one,
            "bbox": one * np.array(BOX, np.float32),
            "kps": one * LANDMARKS.ravel().astype(np.float32),
        }
        for name, value in values.items():
            if (output := f"{name}_{stride}") != "cls_8":
                constants[f"{output}_value"] = value
                outputs[output] = list(value.shape)
                nodes.append(helper.make_node("Identity", [f"{output}_value"], [output]))
    return save(path, nodes, outputs, constants, side)


def weights(seed: int = 0) -> NDArray[np.float32]:
    """The recogniser's linear map, [3 * 112 * 112, D]."""
    return np.random.default_rng(seed).normal(size=(3 * 112 * 112, FEATURES)).astype(np.float32)


def bias() -> NDArray[np.float32]:
    """What the recogniser adds, [D]: large enough for the scale of its input to matter."""
    return np.linspace(-100, 100, FEATURES, dtype=np.float32)


def save_recogniser(path: Path, seed: int = 0, *, scales: bool = False) -> Path:
    """Write a linear recogniser; with `scales` it takes values to 255 and scales them, as mxnet's do."""
    scaling = [
        helper.make_node("Sub", ["input", "half"], ["centred"]),
        helper.make_node("Mul", ["centred", "share"], ["scaled"]),
    ]
    nodes = [
        *(scaling if scales else []),
        helper.make_node("Flatten", ["scaled" if scales else "input"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weights"], ["mapped"]),
        helper.make_node("Add", ["mapped", "bias"], ["features"]),
    ]
    constants = {"weights": weights(seed), "bias": bias()}
    if scales:
        constants |= {"half": np.float32([127.5]), "share": np.float32([1 / 127.5])}
    return save(path, nodes, {"features": [1, FEATURES]}, constants, 112)


def save_segmenter(path: Path, *, size: int | str = 32, scale: float = 1.0, shift: float = 0.0) -> Path:
    """Write a model that finds bright what is bright: scale * (mean of the channels) + shift, and a decoy."""
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["grey"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["grey", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["mask"]),
        helper.make_node("Neg", ["mask"], ["decoy"]),
    ]
    outputs: dict[str, Any] = {name: [1, 1, size, size] for name in ("mask", "decoy")}
    return save(path, nodes, outputs, {"scale": np.float32(scale), "shift": np.float32(shift)}, size)
