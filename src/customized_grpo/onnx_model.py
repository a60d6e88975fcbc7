"""ONNX models that users bring: one image in, some arrays out, on the CPU.

Such a file comes from anywhere. It may name other files to read its weights from: that is refused before the
runtime sees it, and so is a file that is too large. Any other fault of the file becomes one message.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import Message  # type: ignore[import-untyped]
from numpy.typing import NDArray

from customized_grpo.errors import UserError

Array = NDArray[np.float32]

MAX_BYTES = 1 << 30  # BiRefNet, the largest of the segmenters in data/masks.py, has 0.93 GB
MAX_SIDE = 4096


class OnnxModel:
    """A model with one image [1, 3, H, W] as its only input.

    Args:
        path: The file.
        what: What messages call it, such as "face detector".
        size: Height and width in pixels where the model leaves them open.

    Attributes:
        height: Height of the image that it takes, in pixels.
        width: Width of the image that it takes, in pixels.
        sha256: Hash of the file.
        first_operations: Types of its first eight nodes, where some models scale their input.

    Raises:
        UserError: onnx is missing, or the file is missing, too large, no ONNX model, reads other files,
            or takes something other than an image.
    """

    def __init__(self, path: Path, what: str, *, size: int) -> None:
        self.path = path
        self.what = what
        content = _read(path, what)
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._session, self.first_operations = _open(content, path, what)
        self._input, (self.height, self.width) = self._check_input(size)

    def __call__(self, image_3HW: Array) -> dict[str, Array]:
        """Return the outputs by name for one image, fp32 [3, height, width].

        Raises:
            UserError: The model cannot be run on it.
        """
        # onnxruntime's errors share no base class but Exception.
        try:
            outputs = self._session.run(None, {self._input: image_3HW[None].astype(np.float32)})
        except Exception as error:
            raise UserError(f"{self.path}: the {self.what} failed: {error}") from error
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, outputs, strict=True))

    def blank(self) -> dict[str, Array]:
        """Return the outputs for a black image: a cheap test before anything expensive.

        Raises:
            UserError: The model cannot be run on it, or returns values that are not finite.
        """
        outputs = self(np.zeros((3, self.height, self.width), np.float32))
        for name, values in outputs.items():
            if not np.isfinite(values).all():
                raise UserError(f"{self.path}: the {self.what} returns values that are not finite in {name}")
        return outputs

    def _check_input(self, size: int) -> tuple[str, tuple[int, int]]:
        inputs = self._session.get_inputs()
        types = ", ".join(f"{item.type} {item.shape}" for item in inputs)
        wrong = UserError(f"{self.path}: a {self.what} takes one tensor(float) [1, 3, H, W], not {types}")
        if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) != 4:
            raise wrong
        batch, channels, height, width = inputs[0].shape
        # A size that the model leaves open is a name, such as "batch", or None.
        if isinstance(batch, int) and batch != 1 or isinstance(channels, int) and channels != 3:
            raise wrong
        height = height if isinstance(height, int) else size
        width = width if isinstance(width, int) else size
        if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE):
            raise wrong
        return inputs[0].name, (height, width)


def _read(path: Path, what: str) -> bytes:
    try:
        if not path.is_file():
            raise UserError(
                f"{path}: there is no such {what}",
                hint="No model comes with the package: name an ONNX file of yours, see docs/masks.md and "
                "docs/judge.md.",
            )
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes; the limit is {MAX_BYTES:,}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _open(content: bytes, path: Path, what: str) -> tuple[Any, list[str]]:
    """Return a session of a model, and the types of its first eight nodes."""
    try:
        import onnx
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError(
            f"{path}: a {what} needs onnx and onnxruntime",
            hint="Install them: pip install 'customized-grpo[onnx]'.",
        ) from error
    # The errors of both libraries share no base class but Exception.
    try:
        model = onnx.load_model_from_string(content)
        if _reads_files(model):
            raise UserError(
                f"{path}: its weights are in another file",
                hint="Save it as one file: onnx.save(onnx.load(path), new, save_as_external_data=False).",
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # fatal only: the exception says what is wrong
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        return session, [node.op_type for node in model.graph.node[:8]]
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is no ONNX model that can be run: {error}") from error


def _reads_files(message: Message) -> bool:
    """Return whether any tensor of a model says that its data is in another file.

    onnx's own list of tensors (`external_data_helper._get_all_tensors`) lacks those in sparse tensors, so
    every message of the model is visited. The parser has bounded their depth.
    """
    from onnx import TensorProto
    from onnx.external_data_helper import uses_external_data

    if isinstance(message, TensorProto):
        return uses_external_data(message) or len(message.external_data) > 0
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        parts = [value] if isinstance(value, Message) else value
        if any(_reads_files(part) for part in parts):
            return True
    return False
