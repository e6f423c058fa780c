"""The safetensors format: a length, a JSON header, and numbers. Nothing in it is trusted or executed.

Layout, after the format's own description: 8 bytes little-endian length N of the header, N bytes of
JSON that maps each tensor to {"dtype", "shape", "data_offsets"}, then the data, without holes.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeGuard

from aipc.errors import CheckpointError, shown

DTYPE_BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 16),
    **dict.fromkeys(("I32", "U32", "F32"), 32),
    **dict.fromkeys(("I64", "U64", "F64", "C64"), 64),
}
"""Bits an element takes, for every dtype that the format knows."""

# The format itself allows 100 MB, whose JSON may take gigabytes to hold. A Phi has some 300 tensors.
MAX_JSON_BYTES = 8 * 2**20
_MAX_DIMENSIONS = 8
_MAX_DIMENSION = 2**40
_MAX_OFFSET = 2**63

_DOWNLOAD_AGAIN = "download the model again"
_ORIGINAL = "take the model's safetensors files"
_PICKLE = "which can run code and is never read"
_IMPOSTORS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself", "git lfs pull"),
    (b"PK\x03\x04", f"is a zip archive, as PyTorch writes it around a pickle, {_PICKLE}", _ORIGINAL),
    ((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), f"is a Python pickle, {_PICKLE}", _ORIGINAL),
    (b"GGUF", "is a GGUF file", _ORIGINAL),
    (b"<", "is a web page, perhaps a server's error", _DOWNLOAD_AGAIN),
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies.

    dtype    as the format writes it: "BF16", "F16", "F32" ...
    offset   of its first byte, from the start of the file
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int

    def wrong(self, why: str, hint: str = _DOWNLOAD_AGAIN) -> CheckpointError:
        """An error that names this tensor and its file."""
        return CheckpointError(f"{self.path}: tensor {shown(self.name)} {why}", hint)


def read_header(path: Path) -> list[TensorInfo]:
    """Every tensor of a file, in the order of their data; no weight is read.

    raises   CheckpointError if the file is missing, truncated or anything but sound safetensors
    """
    text, file_size = _read_header_bytes(path)
    header = parse_object(text, f"the header of {path}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ does not map words to words", _DOWNLOAD_AGAIN)
    data_start = 8 + len(text)
    tensors = [_tensor(path, name, entry, data_start) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    _check_layout(path, tensors, data_start, file_size)
    return tensors


def parse_object(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object from bytes that are not trusted.

    raises   CheckpointError for what is not UTF-8, not JSON, not an object, nested too deeply, or
             says one thing twice
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except UnicodeDecodeError as exc:
        raise CheckpointError(f"{where} is not UTF-8 text", _DOWNLOAD_AGAIN) from exc
    except RecursionError as exc:
        raise CheckpointError(f"{where} is nested too deeply", _DOWNLOAD_AGAIN) from exc
    except ValueError as exc:
        raise CheckpointError(f"{where} is not sound JSON: {exc}", _DOWNLOAD_AGAIN) from exc
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} holds a JSON {type(value).__name__}, not an object", _DOWNLOAD_AGAIN)
    return value


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Open a file, which must not be a pipe or device: those could keep a reader waiting for ever.

    raises   CheckpointError if it is missing, of another kind or cannot be read
    """
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is not a regular file", _DOWNLOAD_AGAIN)
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path} is missing", _DOWNLOAD_AGAIN) from exc
    except OSError as exc:
        raise CheckpointError(f"{path} cannot be read: {exc.strerror or exc}", "check the disk") from exc


def _read_header_bytes(path: Path) -> tuple[bytes, int]:
    with open_regular(path) as file:
        file_size = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(64)
        length = int.from_bytes(start[:8], "little")
        if len(start) < 9 or not 2 <= length <= min(MAX_JSON_BYTES, file_size - 8) or start[8:9] != b"{":
            _refuse(path, start, length, file_size)
        file.seek(8)
        text = file.read(length)
    if len(text) < length:
        raise CheckpointError(f"{path} became shorter while it was read", _DOWNLOAD_AGAIN)
    return text, file_size


def _refuse(path: Path, start: bytes, length: int, file_size: int) -> NoReturn:
    """Say what a file is that does not begin as safetensors does."""
    for signature, what, hint in _IMPOSTORS:
        if length > MAX_JSON_BYTES and start.startswith(signature):
            raise CheckpointError(f"{path} {what}", hint)
    if file_size == 0:
        why = "is empty"
    elif len(start) < 9:
        why = f"is truncated: {file_size} bytes hold no safetensors header"
    elif length < 2:
        why = f"is not safetensors: its header would have {length} bytes"
    elif length > MAX_JSON_BYTES:
        why = f"is not safetensors: its header would have {length} bytes, and {MAX_JSON_BYTES} are possible"
    elif length > file_size - 8:
        why = f"is truncated: its header has {length} bytes, but the file only {file_size}"
    else:
        why = "is not safetensors: its header is not a JSON object"
    raise CheckpointError(f"{path} {why}", _DOWNLOAD_AGAIN)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {shown(twice)} stands twice")
    return result


def _tensor(path: Path, name: str, entry: object, data_start: int) -> TensorInfo:
    unplaced = TensorInfo(name, "", (), path, 0, 0)
    if not isinstance(entry, dict):
        raise unplaced.wrong(f"is described by {shown(entry)}, not by an object")
    dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise unplaced.wrong(f"has the dtype {shown(dtype)}, which safetensors does not know")
    if not _sizes(shape, _MAX_DIMENSION) or len(shape) > _MAX_DIMENSIONS:
        raise unplaced.wrong(f"has the impossible shape {shown(shape)}")
    if not _sizes(offsets, _MAX_OFFSET) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise unplaced.wrong(f"has the impossible data_offsets {shown(offsets)}")
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits != 8 * (offsets[1] - offsets[0]):
        raise unplaced.wrong(
            f"is {dtype} {shown(shape)}, which does not fill its {offsets[1] - offsets[0]} bytes exactly"
        )
    return TensorInfo(name, dtype, tuple(shape), path, data_start + offsets[0], bits // 8)


def _sizes(value: object, limit: int) -> TypeGuard[list[int]]:
    """Whether this is a list of whole numbers from 0 to `limit`; JSON's true and false are not."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= limit for item in value)


def _check_layout(path: Path, tensors: Iterable[TensorInfo], data_start: int, file_size: int) -> None:
    """The tensors, in order, must fill the file from the header to the end: no gap, overlap or rest."""
    end = data_start
    for tensor in tensors:
        if tensor.offset < end:
            raise tensor.wrong("overlaps the tensor before it")
        if tensor.offset > end:
            raise tensor.wrong(f"leaves {tensor.offset - end} undescribed bytes before it")
        end = tensor.offset + tensor.nbytes
        if end > file_size:
            raise tensor.wrong(f"ends at byte {end}, but the file has {file_size}: it is truncated")
    if end < file_size:
        raise CheckpointError(
            f"{path} has {file_size - end} bytes after the data that its header describes", _DOWNLOAD_AGAIN
        )
