"""The matrices of a converted folder, whoever made it, compared with those of the original one by one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from aipc.conversion.checkpoint import Checkpoint
from aipc.conversion.streamed import THREADS, StreamedWeights, row_blocks
from aipc.conversion.threads import in_threads
from aipc.phi3 import Phi3Config, Role, WeightSpec
from aipc.runtimes.base import OPENVINO, RuntimeInfo
from aipc.types import Progress

# How writers name what holds a matrix: Hugging Face's words, with their own around them.
_NAME = re.compile(
    r"layers[./](?P<layer>\d+)[./](?:self_attn|attn|mlp)[./](?P<part>(?:qkv|q|k|v|o|gate_up|gate|up|down)_proj)\b"
    r"|(?P<outer>embed_tokens|lm_head)\b"
)
# What a fused matrix is called where it is stored in pieces, in the order of its rows.
_PIECES = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


class StoredMatrix(Protocol):
    """A matrix in a file, quantised or not."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""

    def read(self, rows: slice) -> np.ndarray:
        """What the device computes with, [rows, in] float32."""


@dataclass(frozen=True, slots=True)
class MatrixError:
    """How far a stored matrix is from the original's.

    name             in the checkpoint
    relative_error   root mean square of the difference, over that of the original
    """

    name: str
    relative_error: float


class FolderWeights(StreamedWeights):
    """A folder's matrices in the place of a checkpoint's, with the checkpoint's norms.

    names    of the matrices that were found in the folder, as the checkpoint has them
    missing  how many were not
    raises   CheckpointError, MissingExtraError
    """

    def __init__(
        self, folder: Path, runtime: RuntimeInfo, config: Phi3Config, checkpoint: Checkpoint
    ) -> None:
        super().__init__(checkpoint)
        stored = by_place(_matrices(folder, runtime))
        matrices = [spec for spec in config.weights() if spec.role is not Role.NORM]
        found = {spec.name: _pieces_of(spec, stored) for spec in matrices}
        self._pieces = {name: pieces for name, pieces in found.items() if pieces}
        self.names = tuple(self._pieces)
        self.missing = len(matrices) - len(self.names)

    def read(self, name: str, rows: slice) -> np.ndarray:
        """Neighbouring rows of a matrix, [rows, in] float32."""
        parts, first = [], 0
        for piece in self._pieces[name]:
            start, stop = max(rows.start - first, 0), min(rows.stop - first, piece.shape[0])
            if start < stop:
                parts.append(piece.read(slice(start, stop)))
            first += piece.shape[0]
        return np.concatenate(parts) if len(parts) > 1 else parts[0]


def compare_matrices(
    ours: FolderWeights, checkpoint: Checkpoint, progress: Callable[[Progress], None]
) -> list[MatrixError]:
    """The error of each matrix that was found in the folder, in the order of the model.

    raises   CheckpointError
    """
    done, total = 0, sum(checkpoint.tensors[name].nbytes for name in ours.names)
    errors = []
    for name in ours.names:
        errors.append(MatrixError(name, _relative_error(name, ours, checkpoint)))
        done += checkpoint.tensors[name].nbytes
        progress(Progress(name, done, total))
    return errors


def by_place(matrices: Mapping[str, StoredMatrix]) -> dict[tuple[int | None, str], StoredMatrix]:
    """Matrices by layer and part, found in the names that their writer gave them."""
    places: dict[tuple[int | None, str], StoredMatrix] = {}
    for name, matrix in matrices.items():
        found = _NAME.search(name)
        if found is not None:
            layer = found["layer"]
            places.setdefault(
                (None if layer is None else int(layer), found["part"] or found["outer"]), matrix
            )
    return places


def _matrices(folder: Path, runtime: RuntimeInfo) -> Mapping[str, StoredMatrix]:
    if runtime is OPENVINO:
        from aipc.verification.openvino_matrices import read_matrices
    else:
        from aipc.verification.onnx_matrices import read_matrices
    return read_matrices(folder)


def _pieces_of(
    spec: WeightSpec, stored: Mapping[tuple[int | None, str], StoredMatrix]
) -> Sequence[StoredMatrix]:
    """What holds a matrix, whole or in pieces; nothing where they do not add up to it."""
    part = spec.name.split(".")[-2]
    places = [(spec.layer, word) for word in (part, *_PIECES.get(part, ()))]
    pieces = [stored[place] for place in places if place in stored]
    fits = all(piece.shape[1] == spec.shape[1] for piece in pieces)
    return pieces if fits and sum(piece.shape[0] for piece in pieces) == spec.shape[0] else []


def _relative_error(name: str, ours: FolderWeights, checkpoint: Checkpoint) -> float:
    def squares(rows: slice) -> tuple[float, float]:
        weight = checkpoint.read(name, rows)
        difference = ours.read(name, rows) - weight
        return float(np.vdot(difference, difference)), float(np.vdot(weight, weight))

    rows, columns = checkpoint.tensors[name].shape
    lost, whole = np.sum(list(in_threads(squares, row_blocks(rows, columns), THREADS)), axis=0)
    return float(np.sqrt(lost / whole)) if whole else 0.0
