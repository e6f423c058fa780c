"""Every operator of a model by itself: what DirectML makes of the numbers that the CPU provider had."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import folders
import numpy as np
import onnx
from directml import DirectML, SessionError, Tensors
from placement import DIRECTML, placement

# Of the largest number of a result. float32 sums differ by their order.
TOLERANCE = 1e-4
# float16 has 11 bits, and each operator rounds what it was given as well as its result.
HALF_TOLERANCE = 5e-3
_VKD3D = re.compile(r"vkd3d:\w+:(?:warn|err|fixme):((?:sm6|dxil|vsir|spirv)_\w+) (.*)")
# What vkd3d says of shaders that then work.
_HARMLESS = ("spirv_compiler_emit_global_flags", "spirv_compiler_emit_cbv_declaration")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one operator in one type.

    provider   that took it, for a device that computes in that type; "" where no session was made,
               and where the result is a constant
    error      largest difference, as a part of the largest number of the result; None where it failed
    words      why it failed
    """

    provider: str
    error: float | None = None
    words: str = ""


@dataclass(frozen=True, slots=True)
class Operator:
    """A kind of node, the first of them in the model, and what came of it."""

    kind: str
    name: str
    float32: Outcome
    float16: Outcome

    @property
    def wrong(self) -> str:
        """What DirectML does not compute, or computes otherwise; or ""."""
        if self.float32.error is None:
            return f"float32: {self.float32.words}"
        if self.float32.error > TOLERANCE:
            return f"float32 differs by {self.float32.error:.1e}"
        # No float16 is what the software driver cannot do; it says nothing of the folder.
        if self.float16.error is not None and self.float16.error > HALF_TOLERANCE:
            return f"float16 differs by {self.float16.error:.1e}"
        return ""


def operators(directml: DirectML, model: onnx.ModelProto, request: Tensors, scratch: Path) -> list[Operator]:
    """Each operator of a float16 model, once for each form it takes.

    request   the model's inputs in float32
    """
    twin = folders.in_float32(model)
    values = _all_values(directml, twin, request, scratch / "values")
    halves = {node.name: node for node in model.graph.node}
    found = []
    for number, node in enumerate(_distinct(twin)):
        outcomes = []
        for graph, each, half in ((twin, node, False), (model, halves[node.name], True)):
            folder = scratch / f"{number}-{'half' if half else 'float'}"
            alone = single(graph, each, in_half(values) if half else values)
            outcomes.append(_outcome(directml, folders.save(alone, folder), values, claim_half=half))
        found.append(Operator(node.op_type, node.name, *outcomes))
    return found


def single(model: onnx.ModelProto, node: onnx.NodeProto, values: Tensors) -> onnx.ModelProto:
    """A model of one node, with the shapes of `values` and the constants of the model that it is from."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    graph = onnx.GraphProto(name="single", node=[node])
    graph.initializer.extend(constants[name] for name in dict.fromkeys(node.input) if name in constants)
    for name in dict.fromkeys(node.input):
        if name and name not in constants:
            element_type = onnx.helper.np_dtype_to_tensor_dtype(values[name].dtype)
            graph.input.append(onnx.helper.make_tensor_value_info(name, element_type, values[name].shape))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.output if name)
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def obstacle(log: str) -> str:
    """The first thing that vkd3d could not do, with the function that says so, or ""."""
    for function, words in _VKD3D.findall(log):
        if function not in _HARMLESS:
            return f"{function}: {words.strip()}"
    return ""


def _all_values(
    directml: DirectML, model: onnx.ModelProto, request: Tensors, folder: Path
) -> dict[str, np.ndarray]:
    """Every tensor that the CPU provider computes, and the request itself."""
    open_model = onnx.ModelProto()
    open_model.CopyFrom(model)
    known = {value.name for value in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name and name not in known]
    open_model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    with directml.session(folders.save(open_model, folder), "cpu") as session:
        return {**request, **session.run(request)}


def _distinct(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The first node of each kind, attributes and shapes of constants."""
    shapes = {tensor.name: (tensor.data_type, *tensor.dims) for tensor in model.graph.initializer}
    seen = set()
    for node in model.graph.node:
        attributes = tuple(sorted(attribute.SerializeToString() for attribute in node.attribute))
        constants = tuple(shapes.get(name) for name in node.input)
        key = (node.op_type, attributes, constants)
        if key not in seen:
            seen.add(key)
            yield node


def in_half(values: Tensors) -> dict[str, np.ndarray]:
    """The same numbers in float16, where they are in float32."""
    return {
        name: value.astype(np.float16) if value.dtype == np.float32 else value
        for name, value in values.items()
    }


def _outcome(directml: DirectML, model: Path, values: Tensors, *, claim_half: bool) -> Outcome:
    graph = onnx.load(model, load_external_data=False).graph
    given = in_half(values) if claim_half else values
    provider = ""
    try:
        with directml.session(model, "dml", claim_half=claim_half, log=0) as session:
            totals = placement(session.log()).totals
            provider = DIRECTML if DIRECTML in totals else next(iter(totals), "")
            computed = session.run({value.name: given[value.name] for value in graph.input})
    except SessionError as error:
        return Outcome(provider, words=obstacle(error.log) or str(error))
    return Outcome(provider, max(_difference(computed[name], values[name]) for name in computed))


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """As a part of the largest number; infinite where a result is no number or has another shape."""
    if found.shape != expected.shape:
        return float("inf")
    if not expected.size:
        return 0.0
    wide = expected.astype(np.float64)
    largest = float(np.abs(wide).max()) or 1.0
    error = float(np.abs(found.astype(np.float64) - wide).max()) / largest
    return error if np.isfinite(error) else float("inf")
