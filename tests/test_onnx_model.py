"""ONNX files from anywhere: what would read other files, exhaust memory or is something else is refused."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from customized_grpo import onnx_model
from customized_grpo.errors import UserError
from customized_grpo.onnx_model import OnnxModel


def build(
    *, shape: Any = (1, 3, 8, 8), kind: int = TensorProto.FLOAT, inputs: int = 1, weight: Any = 2.0
) -> onnx.ModelProto:
    infos = [helper.make_tensor_value_info(f"in{n}", kind, shape) for n in range(inputs)]
    nodes = [helper.make_node("Mul", ["in0", "weight"], ["out"])]
    outputs = [helper.make_tensor_value_info("out", kind, None)]
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weights = [numpy_helper.from_array(np.asarray(weight, dtype), "weight")]
    graph = helper.make_graph(nodes, "tiny", infos, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def load(path: Path, size: int = 8) -> OnnxModel:
    return OnnxModel(path, "segmenter", size=size)


def test_outputs_come_by_name(tmp_path: Path) -> None:
    model = load(write(tmp_path / "m.onnx", build()))
    image = np.random.default_rng(0).random((3, 8, 8), np.float32)
    assert np.allclose(model(image)["out"], 2 * image[None])
    assert list(model.blank()) == ["out"] and (model.height, model.width) == (8, 8)


def test_damaged_weights_are_told_by_what_they_return(tmp_path: Path) -> None:
    model = load(write(tmp_path / "m.onnx", build(weight=np.inf)))
    with pytest.raises(UserError, match=r"m\.onnx: the segmenter returns values that are not finite in out"):
        model.blank()


@pytest.mark.parametrize("shape", [("n", 3, "h", "w"), (None, None, None, None)])
def test_sizes_left_open_are_those_asked_for(tmp_path: Path, shape: Any) -> None:
    model = load(write(tmp_path / "m.onnx", build(shape=shape)), size=24)
    assert (model.height, model.width) == (24, 24)


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": (1, 8, 8, 3)},
        {"shape": (2, 3, 8, 8)},
        {"shape": (3, 8, 8)},
        {"shape": (1, 3, 5000, 8)},
        {"shape": (1, 3, 0, 8)},
        {"kind": TensorProto.FLOAT16},
        {"inputs": 2},
    ],
)
def test_what_takes_no_image_is_refused(tmp_path: Path, changes: Any) -> None:
    path = write(tmp_path / "m.onnx", build(**changes))
    with pytest.raises(UserError, match=r"m.onnx: a segmenter takes one tensor\(float\) \[1, 3, H, W\], not"):
        load(path)


def external(tensor: TensorProto, location: str = "secret.bin") -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location


def in_an_initializer(model: onnx.ModelProto) -> None:
    external(model.graph.initializer[0])


def in_a_constant(model: onnx.ModelProto) -> None:
    model.graph.node.add().CopyFrom(
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(1)))
    )
    external(model.graph.node[1].attribute[0].t)


def in_a_branch(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([], "then", [], [], [numpy_helper.from_array(np.ones(1), "b")])
    external(branch.initializer[0])
    model.graph.node.add().CopyFrom(
        helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    )


def in_a_function(model: onnx.ModelProto) -> None:
    node = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(1)))
    external(node.attribute[0].t)
    model.functions.add().CopyFrom(
        helper.make_function("d", "f", [], ["c"], [node], [helper.make_opsetid("", 17)])
    )


def in_a_sparse_tensor(model: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "v")
    external(values)
    model.graph.sparse_initializer.add().values.CopyFrom(values)


def in_a_sparse_constant(model: onnx.ModelProto) -> None:
    values = numpy_helper.from_array(np.ones(1, np.float32), "v")
    external(values)
    attribute = model.graph.node[0].attribute.add()
    attribute.name, attribute.type = "sparse_value", onnx.AttributeProto.SPARSE_TENSOR
    attribute.sparse_tensor.indices.CopyFrom(values)


def by_location_alone(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def by_entries_alone(model: onnx.ModelProto) -> None:
    external(model.graph.initializer[0])
    model.graph.initializer[0].ClearField("data_location")


@pytest.mark.parametrize(
    "hide",
    [
        in_an_initializer,
        in_a_constant,
        in_a_branch,
        in_a_function,
        in_a_sparse_tensor,
        in_a_sparse_constant,
        by_location_alone,
        by_entries_alone,
    ],
)
def test_weights_in_another_file_are_refused_wherever_they_hide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hide: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(np.full(1, 7.0, np.float32).tobytes())
    model = build()
    hide(model)
    with pytest.raises(UserError, match="its weights are in another file") as caught:
        load(write(tmp_path / "m.onnx", model))
    assert "onnx.save" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 100, b"<html>", b"\xff" * 50])
def test_what_is_no_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(UserError, match="m.onnx is no ONNX model that can be run"):
        load(tmp_path / "m.onnx")


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    content = write(tmp_path / "m.onnx", build(weight=np.ones((1, 3, 8, 8)))).read_bytes()
    for end in range(1, len(content) - 1, 37):
        (tmp_path / "m.onnx").write_bytes(content[:end])
        with pytest.raises(UserError, match="m.onnx"):
            load(tmp_path / "m.onnx")


@given(st.binary(max_size=200))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_refused_with_one_kind_of_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(UserError):
        load(tmp_path / "m.onnx")


def test_a_graph_in_a_graph_without_end_is_refused(tmp_path: Path) -> None:
    message = b""
    for _ in range(500):
        for number in (6, 5, 1):  # graph of an attribute of a node of a graph
            message = bytes([number << 3 | 2]) + _varint(len(message)) + message
    (tmp_path / "m.onnx").write_bytes(b"\x3a" + _varint(len(message)) + message)
    with pytest.raises(UserError, match="is no ONNX model that can be run"):
        load(tmp_path / "m.onnx")


def _varint(value: int) -> bytes:
    encoded = b""
    while value > 0x7F:
        encoded, value = encoded + bytes([value & 0x7F | 0x80]), value >> 7
    return encoded + bytes([value])


def test_a_file_that_is_missing_or_too_large_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UserError, match="nowhere.onnx: there is no such segmenter\nNo model comes .* ONNX file"
    ):
        load(tmp_path / "nowhere.onnx")
    path = write(tmp_path / "m.onnx", build())
    monkeypatch.setattr(onnx_model, "MAX_BYTES", 10)
    with pytest.raises(UserError, match="the limit is 10"):
        load(path)


def test_a_model_that_fails_on_its_image_says_so(tmp_path: Path) -> None:
    model = load(write(tmp_path / "m.onnx", build(shape=("n", 3, "h", "w"), weight=np.ones((1, 3, 5, 5)))))
    with pytest.raises(UserError, match="m.onnx: the segmenter failed"):
        model.blank()


def test_a_missing_runtime_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "m.onnx", build())
    real = builtins.__import__

    def refuse(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "onnx":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match=r"pip install 'customized-grpo\[onnx\]'"):
        load(path)
