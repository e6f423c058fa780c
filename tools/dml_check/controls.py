"""What the check must find wrong: proof that it can fail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import folders
import models
import onnx
from check import load
from directml import DirectML
from generation import Answer, answer, compare

_NAME = "demo-int4-group-128"
_PROMPT = (1, 305, 20, 77, 450, 12, 9, 100, 200, 300)
_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Control:
    """Something that is wrong on purpose, and what was found of it, or ""."""

    name: str
    found: str


def controls(directml: DirectML, scratch: Path) -> Iterator[Control]:
    """Each control, looked at."""
    right = scratch / f"{_NAME}-dml"
    if not right.is_dir():
        models.demo(_NAME, scratch)
    yield Control("a device without float16", load(directml, right / folders.MODEL_FILE, claim_half=False)[1])

    for_cpu = models.demo(_NAME, scratch, "cpu")
    yield Control("a folder for the CPU", load(directml, for_cpu / folders.MODEL_FILE)[1])

    model = onnx.load(right / folders.MODEL_FILE)
    shape = folders.shape_of(right)
    twin = folders.save(folders.in_float32(model), scratch / "control-float32")
    expected = answer(directml, twin, "cpu", shape, _PROMPT, tokens=_TOKENS)
    # DirectML's GroupQueryAttention forgets the cache whenever more than one token is appended.
    parted = answer(directml, twin, "dml", shape, _PROMPT, tokens=_TOKENS, parts=2)
    yield Control("a prompt in two parts", _found(parted, expected))

    # The first norm, which every later number depends on, twice as large.
    changed = folders.in_float32(model)
    names = {name for node in changed.graph.node for name in node.input if "Simplified" in node.op_type}
    tensor = next(each for each in changed.graph.initializer if each.name in names)
    tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 2, tensor.name))
    path = folders.save(changed, scratch / "control-weight")
    yield Control(
        "another weight", _found(answer(directml, path, "dml", shape, _PROMPT, tokens=_TOKENS), expected)
    )


def _found(mine: Answer, expected: Answer) -> str:
    comparison = compare(mine, expected)
    return (
        f"{comparison.equal} of {comparison.tokens} tokens equal"
        if comparison.equal < comparison.tokens
        else ""
    )
