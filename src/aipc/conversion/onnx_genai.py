"""Writes a model for ONNX Runtime's generate(): a small description, and the weights as they come.

As all sizes are known before any data, the description is written first, whole, and names the place
of each tensor in the data file; the data then goes there, block by block. No more than a block is
ever in memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aipc.conversion.blob import Blob
from aipc.conversion.onnx_weights import (
    COS,
    SIN,
    Target,
    rope_rows,
    rope_tensors,
    stored_weights,
)
from aipc.conversion.quantize import Packed
from aipc.conversion.recipe import Recipe
from aipc.errors import require
from aipc.phi3 import ONNX_FACTORS_MODEL_FILE, Phi3Config, WeightSpec

if TYPE_CHECKING:
    import numpy as np

    from aipc.conversion.onnx_weights import StoredTensor

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"


class OnnxWriter:
    """Writes model.onnx and model.onnx.data into a folder.

    add() takes the row blocks of every weight of the config, from any thread and in any order;
    the folder holds a whole model after close().

    raises   MissingExtraError; SchemeError for a row length that the kernels do not take
    """

    def __init__(self, folder: Path, config: Phi3Config, recipe: Recipe, target: Target) -> None:
        require("onnx", "onnx")
        from aipc.conversion.onnx_graph import build_model

        self._weights = stored_weights(config, recipe.scheme_for, target)
        rope = rope_tensors(config, target)
        self._blob = Blob(folder / DATA_FILE)
        tensors = [tensor for weight in self._weights.values() for tensor in weight.parts.values()]
        self._offsets = {
            tensor.name: self._blob.reserve(tensor.nbytes) for tensor in (*tensors, *rope.values())
        }
        try:
            graphs = {MODEL_FILE: False}
            if config.rope_border is not None:
                graphs[ONNX_FACTORS_MODEL_FILE] = True
            for name, asks in graphs.items():
                model = build_model(
                    config, target, self._weights, DATA_FILE, self._offsets, asks_for_factors=asks
                )
                (folder / name).write_bytes(model.SerializeToString())
            for first_row, cosines, sines in rope_rows(config):
                self._write(rope[COS], first_row, cosines.astype(target.float_type))
                self._write(rope[SIN], first_row, sines.astype(target.float_type))
        except BaseException:
            self._blob.close()
            raise

    @property
    def nbytes(self) -> int:
        """How large the weights' file becomes."""
        return self._blob.nbytes

    def add(self, spec: WeightSpec, first_row: int, packed: Packed) -> None:
        """Store the rows of a weight that start at `first_row`."""
        weight = self._weights[spec.name]
        for part, data in weight.pack(packed):
            self._write(weight.parts[part], first_row, data)

    def close(self) -> None:
        """Finish the weights' file."""
        self._blob.close()

    def _write(self, tensor: StoredTensor, first_row: int, data: np.ndarray) -> None:
        self._blob.write(self._offsets[tensor.name] + first_row * tensor.row_nbytes, data)
