"""The matrices in an ONNX model, read as its operators decompress them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aipc.conversion.quantize import unpack_nibbles
from aipc.errors import CheckpointError, require, shown
from aipc.phi3 import read_json_object
from aipc.windows_files import is_device_name

if TYPE_CHECKING:
    import onnx

    from aipc.verification.stored import StoredMatrix

# onnx.TensorProto's numbers of these types.
_TYPES: dict[int, np.dtype[Any]] = {1: np.dtype("<f4"), 2: np.dtype("u1"), 10: np.dtype("<f2")}


def read_matrices(folder: Path) -> dict[str, StoredMatrix]:
    """The matrices of a folder's model, by the name of the tensor that holds their numbers.

    raises   CheckpointError, MissingExtraError
    """
    module = require("onnx", "onnx")
    path = folder / _file_name(folder)
    try:
        graph = module.load(str(path), load_external_data=False).graph
    except Exception as exc:
        # The library raises whatever its parser meets in a damaged file.
        raise CheckpointError(f"{path} cannot be read: {type(exc).__name__}") from exc
    tensors = {tensor.name: _Tensor.of(tensor, folder) for tensor in graph.initializer}
    # float16 numbers are widened before they are used.
    widened = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
    found: dict[str, StoredMatrix] = {}
    for node in graph.node:
        names = [widened.get(name, name) for name in node.input]
        matrix = _matrix(node, [tensors.get(name) for name in names])
        if matrix is not None:
            found.setdefault(names[1 if "MatMul" in node.op_type else 0], matrix)
    return found


def _is_plain(name: str) -> bool:
    return Path(name).name == name and not set(name) & set("\\:") and not is_device_name(name)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A tensor in a file, or in the model's own.

    shape, dtype   as stored
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None
    path: Path | None
    offset: int
    raw: bytes

    @classmethod
    def of(cls, tensor: onnx.TensorProto, folder: Path) -> _Tensor:
        """Where a tensor's numbers are; the description is not trusted."""
        external = {entry.key: entry.value for entry in tensor.external_data}
        location = external.get("location")
        if location is not None and not _is_plain(location):
            raise CheckpointError(f"{folder}: a tensor would be in {shown(location)}, outside of the folder")
        path = None if location is None else folder / location
        shape, dtype = tuple(tensor.dims), _TYPES.get(tensor.data_type)
        offset = external.get("offset", "0")
        return cls(shape, dtype, path, int(offset) if offset.isdecimal() else 0, tensor.raw_data)

    def read(self, start: int, stop: int, columns: int) -> np.ndarray:
        """Some of [rows, columns] as which the tensor is seen, in its own type."""
        assert self.dtype is not None  # noqa: S101 - others are passed over
        first, count = start * columns, (stop - start) * columns
        if self.path is None:
            values = np.frombuffer(self.raw, self.dtype, count, first * self.dtype.itemsize)
        else:
            with self.path.open("rb") as file:
                file.seek(self.offset + first * self.dtype.itemsize)
                values = np.frombuffer(file.read(count * self.dtype.itemsize), self.dtype)
        if values.size != count:
            raise CheckpointError(f"{self.path} is cut off", hint="convert or download the model again")
        return values.reshape(stop - start, columns)


@dataclass(frozen=True, slots=True)
class OnnxMatrix:
    """A matrix of rows of codes, with a scale for each block of a row, or of plain numbers.

    shape   (out, in)
    bits    of a code; 0 for plain numbers
    """

    shape: tuple[int, int]
    codes: _Tensor
    bits: int = 0
    scale: _Tensor | None = None
    zero_point: _Tensor | None = None

    def read(self, rows: slice) -> np.ndarray:
        """What the device computes with, [rows, in] float32."""
        columns = self.shape[1]
        if self.scale is None:
            return self.codes.read(rows.start, rows.stop, columns).astype(np.float32)
        count = rows.stop - rows.start
        blocks = math.prod(self.scale.shape) // self.shape[0]
        codes = self._unpacked(self.codes, rows, math.prod(self.codes.shape) // self.shape[0])
        values = codes.reshape(count, blocks, -1)
        values -= np.float32(2 ** (self.bits - 1)) if self.zero_point is None else self._zeros(rows, blocks)
        values *= self.scale.read(rows.start, rows.stop, blocks).astype(np.float32)[..., None]
        return values.reshape(count, -1)[:, :columns]

    def _zeros(self, rows: slice, blocks: int) -> np.ndarray:
        assert self.zero_point is not None  # noqa: S101 - the caller asked before
        stored = math.prod(self.zero_point.shape) // self.shape[0]
        return self._unpacked(self.zero_point, rows, stored)[:, :blocks, None]

    def _unpacked(self, tensor: _Tensor, rows: slice, stored: int) -> np.ndarray:
        """Codes as float32, [rows, codes]; two lie in a byte where they have 4 bits."""
        packed = tensor.read(rows.start, rows.stop, stored)
        if self.bits == 4:
            packed = unpack_nibbles(packed, (len(packed), 2 * stored), signed=False)
        return packed.astype(np.float32)


def _matrix(node: onnx.NodeProto, inputs: Sequence[_Tensor | None]) -> OnnxMatrix | None:
    """The matrix of a node that has one, in a form that is known here.

    inputs   of the node, those that are stored
    """
    numbers = {attribute.name: attribute.i for attribute in node.attribute}
    bits = numbers.get("bits", 0)
    scale = zero_point = None
    if node.op_type == "MatMulNBits" and bits in {4, 8}:
        _, codes, scale, zero_point = (*inputs, None)[:4]
        shape: tuple[int, ...] = (numbers.get("N", 0), numbers.get("K", 0))
    elif node.op_type == "GatherBlockQuantized" and bits == 8:
        codes, _, scale, zero_point = (*inputs, None)[:4]
        shape = codes.shape if codes else ()
    elif node.op_type == "Gather" or (node.op_type == "FusedMatMul" and numbers.get("transB")):
        codes = inputs[0 if node.op_type == "Gather" else 1]
        shape = codes.shape if codes else ()
    else:
        return None
    readable = all(t.dtype is not None for t in (codes, scale, zero_point) if t is not None)
    if codes is None or len(shape) != 2 or not readable or (bits and scale is None):
        return None
    return OnnxMatrix((shape[0], shape[1]), codes, bits, scale, zero_point)


def _file_name(folder: Path) -> str:
    """The model's file, as genai_config.json names it."""
    model = read_json_object(folder / "genai_config.json").get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    name = decoder.get("filename") if isinstance(decoder, dict) else None
    if not isinstance(name, str) or Path(name).name != name:
        raise CheckpointError(f"{folder / 'genai_config.json'}: the model's file is {shown(name)}")
    return name
