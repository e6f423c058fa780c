"""Writes a model as OpenVINO IR: a small description, and the weights as they come.

The runtime's own serialiser writes the graph with a Parameter for every stored tensor. As all
sizes are known before any data, each of these then becomes a constant at an offset in the blob,
and the data is written there, block by block. No more than a block is ever in memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from aipc.conversion.blob import Blob
from aipc.conversion.quantize import Packed, pack_nibbles
from aipc.conversion.recipe import Recipe
from aipc.errors import require
from aipc.phi3 import Phi3Config, WeightSpec
from aipc.windows_files import move

if TYPE_CHECKING:
    import numpy as np

    from aipc.conversion.openvino_graph import StoredTensor

MODEL_FILE = "openvino_model.xml"
WEIGHTS_FILE = "openvino_model.bin"

_BITS = {"f32": 32, "f16": 16, "i8": 8, "u8": 8, "i4": 4, "u4": 4}


class OpenVINOWriter:
    """Writes openvino_model.xml and .bin into a folder.

    add() takes the row blocks of every weight of the config, from any thread and in any order;
    the folder holds a whole model after close().
    """

    def __init__(self, folder: Path, config: Phi3Config, recipe: Recipe) -> None:
        require("openvino", "openvino")
        from aipc.conversion.openvino_graph import stored_tensors

        model_path = folder / MODEL_FILE
        _save_graph(model_path, config, recipe)
        self._parts = {spec.name: stored_tensors(spec, recipe.scheme_for(spec)) for spec in config.weights()}
        self._blob = Blob(folder / WEIGHTS_FILE)
        self._offsets = {
            tensor.name: self._blob.reserve(_nbytes(tensor))
            for parts in self._parts.values()
            for tensor in parts.values()
        }
        tensors = {tensor.name: tensor for parts in self._parts.values() for tensor in parts.values()}
        _make_constants(model_path, tensors, self._offsets)

    @property
    def nbytes(self) -> int:
        """How large the weights' file becomes."""
        return self._blob.nbytes

    def add(self, spec: WeightSpec, first_row: int, packed: Packed) -> None:
        """Store the rows of a weight that start at `first_row`, an even number."""
        parts = self._parts[spec.name]
        for part, data in (
            ("codes", packed.codes),
            ("scale", packed.scale),
            ("zero_point", packed.zero_point),
        ):
            if data is not None:
                self._write(parts[part], first_row, data)

    def close(self) -> None:
        """Finish the weights' file."""
        self._blob.close()

    def _write(self, tensor: StoredTensor, first_row: int, data: np.ndarray) -> None:
        row_bits = math.prod(tensor.shape[1:]) * _BITS[tensor.element_type]
        offset = self._offsets[tensor.name] + first_row * row_bits // 8
        self._blob.write(offset, pack_nibbles(data) if _BITS[tensor.element_type] == 4 else data)


def _save_graph(model_path: Path, config: Phi3Config, recipe: Recipe) -> None:
    import openvino as ov

    from aipc.conversion.openvino_graph import build_graph

    model = build_graph(config, recipe.scheme_for)
    # The NPU pipeline reads here whether the weights are quantised by channel.
    for key, value in _compression_info(recipe).items():
        model.set_rt_info(value, ["nncf", "weight_compression", key])
    ov.save_model(model, model_path, compress_to_fp16=False)


def _compression_info(recipe: Recipe) -> dict[str, str]:
    if recipe.weight_format == "fp16":
        return {}
    symmetry = "sym" if recipe.sym else "asym"
    return {
        "mode": f"{recipe.weight_format}_{symmetry}",
        "group_size": str(recipe.group_size),
        "ratio": str(recipe.ratio),
    }


def _nbytes(tensor: StoredTensor) -> int:
    return -(-math.prod(tensor.shape) * _BITS[tensor.element_type] // 8)


def _make_constants(
    model_path: Path, tensors: Mapping[str, StoredTensor], offsets: Mapping[str, int]
) -> None:
    """Turn the Parameter of every stored tensor into a constant at its offset in the blob."""
    from aipc.conversion.openvino_graph import DECOMPRESSED

    tree = ET.parse(model_path)  # noqa: S314 - our own file
    for layer in tree.iterfind("./layers/layer[@type='Parameter']"):
        tensor = tensors.get(layer.get("name", ""))
        if tensor is None:
            continue
        layer.set("type", "Const")
        data = layer.find("data")
        if data is None:
            raise RuntimeError(f"the serialiser wrote no data for {tensor.name}")
        data.set("offset", str(offsets[tensor.name]))
        data.set("size", str(_nbytes(tensor)))
    for layer in tree.iterfind("./layers/layer[@type='Convert']"):
        if layer.get("name", "").endswith(DECOMPRESSED):
            _mark_as_decompression(layer)
    partial = model_path.with_suffix(".xml.partial")
    tree.write(partial, encoding="utf-8", xml_declaration=True)
    move(partial, model_path)


def _mark_as_decompression(layer: ET.Element) -> None:
    """Keep the plugins from folding a weight into float32 when they load the model."""
    info = layer.find("rt_info")
    info = ET.SubElement(layer, "rt_info") if info is None else info
    ET.SubElement(info, "attribute", name="decompression", version="0")
