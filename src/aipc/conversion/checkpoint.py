"""A folder of Hugging Face weights: every header checked on opening, then read a block at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from aipc.conversion.safetensors import (
    MAX_JSON_BYTES,
    TensorInfo,
    open_regular,
    parse_object,
    read_header,
)
from aipc.errors import CheckpointError, UnsupportedModelError, shown
from aipc.windows_files import is_device_name

if TYPE_CHECKING:
    from aipc.phi3 import WeightSpec

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"

# Little-endian storage of the dtypes that hold weights; bfloat16 is the upper half of a float32.
_STORAGE: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}

# A plain name without separators, drives or streams, so that no index leads out of the folder.
_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+ -]{0,180}\.safetensors")
_PICKLE_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}

# Older exports carry RoPE frequencies, which the config gives too; a tied head repeats the embedding.
_HARMLESS_SUFFIX = "rotary_emb.inv_freq"
_TIED_HEAD = "lm_head.weight"
# How GPTQ, AWQ, bitsandbytes, compressed-tensors and FP8 exports name what a plain checkpoint lacks.
_QUANTISED_PARTS = {
    *("qweight", "qzeros", "scales", "g_idx", "SCB", "absmax", "quant_map"),
    *("weight_scale", "weight_scale_inv", "weight_packed", "weight_zero_point"),
}
_QUANTISED_DTYPES = ("F8_", "F6_", "F4")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights of a model, in one safetensors file or several.

    source    the file that lists the tensors: the single file, or the index of the shards
    tensors   where each lies, by name
    """

    source: Path
    tensors: Mapping[str, TensorInfo]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Check the index and the header of every file; no weight is read.

        Where a single file and an index stand together, the single file counts, as in transformers.

        raises   CheckpointError that names the file and the tensor that is wrong
        """
        if _exists(folder / SINGLE_FILE):
            source = folder / SINGLE_FILE
            return cls(source, {tensor.name: tensor for tensor in read_header(source)})
        if _exists(folder / INDEX_FILE):
            return cls(folder / INDEX_FILE, _read_shards(folder / INDEX_FILE))
        raise _no_weights(folder)

    @property
    def total_bytes(self) -> int:
        """What all tensors take on disk."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def require(self, specs: Iterable[WeightSpec]) -> None:
        """Check that the checkpoint holds these weights, in a dtype that can be read, and no other.

        A tensor that no one reads would mean another model than the config describes, so it is an
        error, except RoPE frequencies and the head of a model whose embedding serves as its head.

        raises   CheckpointError that names file and tensor; UnsupportedModelError if the weights
                 are quantised already
        """
        wanted = {spec.name: spec.shape for spec in specs}
        self._refuse_quantised()
        missing = [name for name in wanted if name not in self.tensors]
        if missing:
            raise CheckpointError(
                f"{self.source} lacks {_several(missing)}, which config.json asks for",
                hint="check that config.json belongs to these weights, or download the model again",
            )
        surplus = [name for name in self.tensors if name not in wanted and not _harmless(name)]
        if surplus:
            files = sorted({self.tensors[name].path.name for name in surplus})
            raise CheckpointError(
                f"{self.source} holds {_several(surplus)}, which the model that config.json describes "
                f"does not have (in {', '.join(files[:3])})",
                hint="merge an adapter into its base model first; else download the model again",
            )
        for name, shape in wanted.items():
            _check_tensor(self.tensors[name], shape)

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """A tensor, or some rows of it, as numbers.

        rows      of the first axis, step 1; None for all
        returns   [rows, in] or [size] float32
        memory    the result, the stored bytes of these rows and, for a moment, a byte an element
        raises    CheckpointError if the tensor is absent, of another dtype, cut off or holds NaN or Inf

        Any number of threads may read at once: each call opens the file for itself.
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            raise CheckpointError(f"{self.source}: the tensor {shown(name)} is missing")
        if tensor.dtype not in _STORAGE:
            raise _wrong_dtype(tensor)
        storage = _STORAGE[tensor.dtype]
        count = tensor.shape[0] if tensor.shape else 1
        start, stop, step = (rows or slice(None)).indices(count)
        if step != 1:
            raise ValueError(f"rows are read in steps of 1, not {step}")
        row_bytes = tensor.nbytes // count if count else 0
        length = max(stop - start, 0)
        stored = _read_bytes(tensor, tensor.offset + start * row_bytes, length * row_bytes).view(storage)
        values = _widen(stored).reshape((length, *tensor.shape[1:]) if tensor.shape else ())
        if not np.isfinite(values).all():
            raise tensor.wrong("holds NaN or Inf", hint="the model is damaged: take another copy of it")
        return values

    def _refuse_quantised(self) -> None:
        for tensor in self.tensors.values():
            part = tensor.name.rpartition(".")[2]
            if part in _QUANTISED_PARTS or tensor.dtype.startswith(_QUANTISED_DTYPES):
                raise UnsupportedModelError(
                    f"{tensor.path}: tensor {shown(tensor.name)} ({tensor.dtype}) shows that these weights "
                    "are quantised already; aipc reads BF16, F16 and F32",
                    hint="take the original model: aipc quantises it while converting",
                )


def _read_shards(index: Path) -> dict[str, TensorInfo]:
    weight_map = _read_weight_map(index)
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(set(weight_map.values())):
        for tensor in read_header(index.parent / shard):
            if tensor.name in tensors:
                raise tensor.wrong(f"stands in {tensors[tensor.name].path.name} too")
            if tensor.name not in weight_map:
                raise tensor.wrong(f"is not listed in {index.name}")
            tensors[tensor.name] = tensor
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].path.name != shard:
            raise CheckpointError(
                f"{index.parent / shard}: tensor {shown(name)} is missing, though {index.name} lists it",
                hint="download the model again",
            )
    return tensors


def _read_weight_map(index: Path) -> dict[str, str]:
    """Which file holds which tensor."""
    with open_regular(index) as file:
        data = file.read(MAX_JSON_BYTES + 1)
    if len(data) > MAX_JSON_BYTES:
        raise CheckpointError(f"{index} is larger than {MAX_JSON_BYTES} bytes: it is no index")
    if data.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{index} is a Git LFS pointer, not the file itself", "git lfs pull")
    weight_map = parse_object(data, str(index)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map that says where tensors are", "download it again")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard) or is_device_name(shard):
            raise CheckpointError(
                f"{index}: tensor {shown(name)} would be in {shown(shard)}, "
                "which is not the plain name of a safetensors file in the same folder",
                hint="download the model again",
            )
    return weight_map


def _no_weights(folder: Path) -> CheckpointError:
    """The error for a folder without the files of a checkpoint, by what it holds instead."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return CheckpointError(f"{folder} does not exist")
    except OSError as exc:
        return CheckpointError(f"{folder} cannot be read: {exc.strerror or exc}")
    pickles = [name for name in names if Path(name).suffix in _PICKLE_SUFFIXES]
    others = [name for name in names if name.endswith((".safetensors", ".gguf"))]
    if others:
        return CheckpointError(
            f"{folder} holds {_several(others)}, but neither {SINGLE_FILE} nor {INDEX_FILE}",
            hint="download the whole model, with its index",
        )
    if pickles:
        return CheckpointError(
            f"{folder} holds its weights only as a Python pickle ({_several(pickles)}): "
            "a pickle can run any code when it is read, so aipc never reads one",
            hint="take a revision of the model that has safetensors files, or convert it where you trust it",
        )
    return CheckpointError(
        f"{folder} holds neither {SINGLE_FILE} nor {INDEX_FILE}", hint="download the whole model"
    )


def _check_tensor(tensor: TensorInfo, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise tensor.wrong(
            f"has the shape {shown(list(tensor.shape))}; config.json asks for {list(shape)}",
            hint="check that config.json belongs to these weights",
        )
    if tensor.dtype not in _STORAGE:
        raise _wrong_dtype(tensor)


def _wrong_dtype(tensor: TensorInfo) -> CheckpointError:
    return tensor.wrong(
        f"is {tensor.dtype}; possible are {', '.join(_STORAGE)}", hint="take the original model"
    )


def _read_bytes(tensor: TensorInfo, start: int, size: int) -> np.ndarray:
    """Bytes of a file as [size] uint8, which the system need not keep in its cache afterwards."""
    stored = np.empty(size, np.uint8)
    view = stored.data
    done = 0
    try:
        with tensor.path.open("rb", buffering=0) as file:
            file.seek(start)
            while done < size and (step := file.readinto(view[done:])):
                done += step
            if size and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), start, size, os.POSIX_FADV_DONTNEED)
    except OSError as exc:
        raise tensor.wrong(f"cannot be read: {exc.strerror or exc}", "check the disk") from exc
    if done < size:
        raise tensor.wrong("is cut off: the file became shorter after it was opened")
    return stored


def _widen(stored: np.ndarray) -> np.ndarray:
    """Any storage as float32, exactly."""
    if stored.dtype != _STORAGE["BF16"]:
        return stored.astype(np.float32, copy=False)
    bits = stored.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def _exists(path: Path) -> bool:
    """Whether something has this name, be it a broken link that will then be named in an error."""
    return os.path.lexists(path)


def _harmless(name: str) -> bool:
    return name.endswith(_HARMLESS_SUFFIX) or name == _TIED_HEAD


def _several(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    first = ", ".join(shown(name) for name in names[:3])
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{first}{more}"
