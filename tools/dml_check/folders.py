"""A folder that aipc wrote for DirectML, and its twin in float32.

The twin has the same nodes with the same attributes, and its numbers widened, which is exact. It shows
smaller faults than float16 does, and is what float16 is compared with.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

MODEL_FILE = "model.onnx"
CONFIG_FILE = "genai_config.json"


@dataclass(frozen=True, slots=True)
class Shape:
    """What a request needs to know of a model."""

    layers: int
    kv_heads: int
    head_size: int
    vocab_size: int
    takes_positions: bool


def shape_of(folder: Path) -> Shape:
    """From a folder's genai_config.json."""
    model = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["model"]
    decoder = model["decoder"]
    return Shape(
        decoder["num_hidden_layers"],
        decoder["num_key_value_heads"],
        decoder["head_size"],
        model["vocab_size"],
        "position_ids" in decoder["inputs"],
    )


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with every float16 tensor, input and output in float32."""
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    for tensor in twin.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in [*twin.graph.input, *twin.graph.output, *twin.graph.value_info]:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in twin.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
    return twin


def save(model: onnx.ModelProto, folder: Path) -> Path:
    """Write a model with its numbers beside it; returns the file of the model."""
    folder.mkdir(parents=True)
    path = folder / MODEL_FILE
    onnx.save(model, path, save_as_external_data=True, location=f"{MODEL_FILE}.data", convert_attribute=False)
    return path
