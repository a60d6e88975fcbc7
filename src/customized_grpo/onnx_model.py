"""ONNX models that users bring: one picture in, some arrays out, on the CPU.

Such a file comes from anywhere. It may name other files to read its weights from, which is refused before
the runtime sees it, as is what is too large; whatever else is wrong with it becomes one message.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from customized_grpo.errors import UserError

Array = NDArray[np.float32]

MAX_BYTES = 1 << 30  # BiRefNet, the largest of the known segmenters, has 0.93 GB
MAX_SIDE = 4096
MAX_DEPTH = 64  # of messages in the file; a graph in a graph takes three

# Which fields of which message of onnx.proto hold messages that may hold a tensor:
# https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_PARTS = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}  # fmt: skip
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14  # of a tensor
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class OnnxModel:
    """A model with one picture [1, 3, H, W] as its only input.

    Args:
        path: The file.
        what: What it is for, in messages, such as "face detector".
        size: Height and width in pixels where the model leaves them open.

    Attributes:
        height: Height of the picture it takes, in pixels.
        width: Width of the picture it takes, in pixels.
        sha256: Hash of the file.

    Raises:
        UserError: onnxruntime is missing, or the file is missing, too large, no ONNX model, reads other
            files, or takes something other than a picture.
    """

    def __init__(self, path: Path, what: str, *, size: int) -> None:
        self.path, self.what = path, what
        content = _read(path, what)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._session = _open(content, path, what)
        self._input, (self.height, self.width) = self._check_input(size)

    def __call__(self, picture_3HW: Array) -> dict[str, Array]:
        """Return the outputs by name for one picture, fp32 [3, height, width].

        Raises:
            UserError: The model cannot be run on it.
        """
        # onnxruntime's errors share no base class but Exception.
        try:
            outputs = self._session.run(None, {self._input: picture_3HW[None].astype(np.float32)})
        except Exception as error:
            raise UserError(f"{self.path}: the {self.what} failed: {error}") from error
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, outputs, strict=True))

    def blank(self) -> dict[str, Array]:
        """Return the outputs for a black picture: a test that costs little before much is spent."""
        return self(np.zeros((3, self.height, self.width), np.float32))

    def _check_input(self, size: int) -> tuple[str, tuple[int, int]]:
        inputs = self._session.get_inputs()
        found = ", ".join(f"{item.type} {item.shape}" for item in inputs)
        wrong = UserError(f"{self.path}: a {self.what} takes one tensor(float) [1, 3, H, W], not {found}")
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            raise wrong
        batch, channels, *sides = [side if isinstance(side, int) else None for side in inputs[0].shape]
        if batch not in (1, None) or channels not in (3, None):
            raise wrong
        height, width = (size if side is None else side for side in sides)
        if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
            raise wrong
        return inputs[0].name, (height, width)


def _read(path: Path, what: str) -> bytes:
    try:
        if not path.is_file():
            raise UserError(f"{path}: there is no such {what}")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes; the limit is {MAX_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _open(content: bytes, path: Path, what: str) -> Any:
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError(
            f"{path}: a {what} needs onnxruntime", "Install it: pip install 'customized-grpo[onnx]'."
        ) from error
    try:
        if _reads_files(memoryview(content), "model", MAX_DEPTH):
            raise UserError(
                f"{path}: its weights are in another file",
                "Save it as one file: onnx.save(onnx.load(path), new_path, save_as_external_data=False).",
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what is wrong is said by the error
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except UserError:
        raise
    except Exception as error:  # onnxruntime's share no other base class
        raise UserError(f"{path} is no ONNX model that can be run: {error}") from error


def _reads_files(message: memoryview, kind: str, depth: int) -> bool:
    """Return whether any tensor of a message says that its data is in another file.

    Raises:
        ValueError: It is not in protobuf's encoding, or nested too deeply.
    """
    if depth == 0:
        raise ValueError("it is nested too deeply")
    for number, value in _fields(message):
        if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value == 1)):
            return True
        part = _PARTS[kind].get(number)
        if part is not None and isinstance(value, memoryview) and _reads_files(value, part, depth - 1):
            return True
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | int]]:
    """Yield the number and value of each field of a protobuf message, fixed-size ones left out."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        wire_type = key & 7
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield key >> 3, value
        elif wire_type == _BYTES:
            length, position = _varint(message, position)
            if length > len(message) - position:
                raise ValueError("it ends too early")
            yield key >> 3, message[position : position + length]
            position += length
        elif wire_type in (_FIXED32, _FIXED64):
            position += 4 if wire_type == _FIXED32 else 8
        else:
            raise ValueError(f"protobuf has no wire type {wire_type}")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("it ends too early")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number has more than ten bytes")
