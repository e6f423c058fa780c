"""The matrices in an OpenVINO model, read as its graph decompresses them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aipc.conversion.quantize import unpack_nibbles
from aipc.errors import CheckpointError, require
from aipc.preflight import MODEL_FILE

if TYPE_CHECKING:
    import openvino

    from aipc.verification.stored import StoredMatrix

_USERS = {"MatMul": 1, "Gather": 0}  # which input is the matrix
_PASSED = {"Convert", "Reshape"}
_COMBINED = {"Multiply": np.multiply, "Subtract": np.subtract}


def read_matrices(folder: Path) -> dict[str, StoredMatrix]:
    """All matrices of a folder's model, by the name of the constant that holds their numbers.

    raises   CheckpointError, MissingExtraError
    """
    core = require("openvino", "openvino").Core()
    path = folder / MODEL_FILE
    try:
        model = core.read_model(path)
    except RuntimeError as exc:
        raise CheckpointError(f"{path} cannot be read", hint="convert or download the model again") from exc
    found: dict[str, StoredMatrix] = {}
    for user in model.get_ordered_ops():
        if user.get_type_name() not in _USERS:
            continue
        node = user.input_value(_USERS[user.get_type_name()]).get_node()
        shape = (
            tuple(node.output(0).partial_shape.to_shape()) if node.output(0).partial_shape.is_static else ()
        )
        constant = _numbers(node)
        transposed = user.get_type_name() == "MatMul" and not user.get_attributes()["transpose_b"]
        if constant is not None and len(shape) == 2 and not transposed:
            found[constant.get_friendly_name()] = OpenVINOMatrix(model, node, (shape[0], shape[1]))
    return found


class OpenVINOMatrix:
    """A matrix, and the graph that leads to it.

    shape   (out, in)
    """

    def __init__(self, model: openvino.Model, node: openvino.Node, shape: tuple[int, int]) -> None:
        self._model = model  # the numbers lie in it
        self._node = node
        self.shape = shape

    def read(self, rows: slice) -> np.ndarray:
        """What the device computes with, [rows, in] float32."""
        return self._values(self._node, rows).reshape(rows.stop - rows.start, self.shape[1])

    def _values(self, node: openvino.Node, rows: slice) -> np.ndarray:
        kind = node.get_type_name()
        if kind == "Constant":
            return self._constant(node, rows)
        inputs = [source.get_node() for source in node.input_values()]
        values = self._values(inputs[0], rows)
        if kind in _COMBINED:
            combined: np.ndarray = _COMBINED[kind](values, self._values(inputs[1], rows))
            return combined
        return values.reshape(len(values), -1) if kind == "Reshape" else values

    def _constant(self, constant: openvino.Node, rows: slice) -> np.ndarray:
        """A constant's rows as float32, or all of one that is the same for each row."""
        shape = tuple(constant.shape)
        data, kind = constant.data, constant.get_element_type().get_type_name()
        chosen = rows if shape and shape[0] == self.shape[0] else slice(0, shape[0] if shape else 1)
        if kind in {"i4", "u4"}:
            count = int(np.prod(shape[1:]))
            part = data.reshape(-1).view(np.uint8)[chosen.start * count // 2 : -(-chosen.stop * count // 2)]
            wanted = (chosen.stop - chosen.start, *shape[1:])
            return unpack_nibbles(part, wanted, signed=kind == "i4").astype(np.float32)
        values: np.ndarray = (data[chosen] if shape else data).astype(np.float32)
        return values


def _numbers(node: openvino.Node) -> openvino.Node | None:
    """The constant that a chain of decompression starts from, or None where it is no such chain."""
    while node.get_type_name() in _PASSED | set(_COMBINED):
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None
