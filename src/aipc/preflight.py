"""What an OpenVINO folder can be asked before a compiler works on it for minutes. Needs no OpenVINO."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.parsers import expat

from aipc.errors import AipcError, CheckpointError, SchemeError
from aipc.phi3 import read_json_object

MODEL_FILE = "openvino_model.xml"
WEIGHTS_FILE = "openvino_model.bin"

# The description of Phi-3-medium is 6 MB; these bounds only keep a hostile file from filling the memory.
_MAX_XML_BYTES = 256 * 2**20
_MAX_DEPTH = 64
_MAX_RANK = 8
_CHUNK_BYTES = 2**16

_INT4, _INT8 = {"i4", "u4"}, {"i8", "u8"}
# Everything else that can hold quantised weights, and that the NPU's compiler does not take.
_OTHER = {"u1", "u2", "i2", "u3", "u6", "nf4", "f4e2m1", "f8e4m3", "f8e5m2"}

# From the smallest numbers to the largest.
_FORMATS = ((_INT4, "int4"), (_OTHER, "other"), (_INT8, "int8"), ({"f16", "bf16"}, "fp16"), ({"f32"}, "fp32"))

_GROUP = 128
# Where the cost of a scale for each 128 weights outgrows what it gives, says Intel's guide for NPUs.
_LARGE_PARAMETERS = 5e9
# Fewer numbers than these are norms, scales and masks.
_SMALLEST_MATRIX = 2**10


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant of a graph: its name, OpenVINO's word for its type, and its shape."""

    name: str
    element_type: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        """Whether it holds weights of a matrix, rather than their scales or zero points."""
        return len(self.shape) >= 2 and self.shape[-1] > 1 and self.elements >= _SMALLEST_MATRIX


def check_npu(folder: Path) -> tuple[str, ...]:
    """Notes on how well a folder's weights suit an NPU.

    What is refused here fails after minutes otherwise: in the compiler, or in the pipeline that unpacks the
    weights when it loads what was compiled.

    raises   SchemeError with the command that makes a fitting folder; CheckpointError
    source   OpenVINO's guide for GenAI on NPU; tools/npu_check on its compiler; its pipeline on a CPU
    """
    matrices = [item for item in constants(folder / MODEL_FILE) if item.is_matrix]
    for item in matrices:
        reason = _misfit(item)
        if reason:
            raise SchemeError(
                f"the NPU does not take {folder.name}: {item.name} is {reason}",
                hint=f"make a folder that fits: {_fitting_command(folder)}",
            )
    notes = []
    unusual = next((words for item in matrices if (words := _unusual(item))), "")
    if unusual:
        notes.append(
            f"the weights are {unusual}: that compiles for NPUs, but OpenVINO's guide asks for symmetric "
            f"int4, channel-wise or in groups of {_GROUP}: {_fitting_command(folder)}"
        )
    parameters = sum(item.elements for item in matrices)
    grouped = any(item.element_type in _INT4 and len(item.shape) == 3 for item in matrices)
    if grouped and parameters > _LARGE_PARAMETERS:
        command = _fitting_command(folder, group_size=-1)
        notes.append(
            f"with {parameters / 1e9:.0f} billion weights, channel-wise int4 is faster on the NPU: {command}"
        )
    return tuple(notes)


def weight_format(folder: Path) -> str:
    """The smallest numbers that weights of a folder are stored as, whoever made it: "int4", "int8" …

    raises   CheckpointError
    """
    found = {item.element_type for item in constants(folder / MODEL_FILE) if item.is_matrix}
    return next((name for kinds, name in _FORMATS if found & kinds), "unknown")


def int4_group(folder: Path) -> int | None:
    """How many int4 weights share a scale, in the matrix where that is fewest; None for a folder without any.

    raises   CheckpointError
    """
    matrices = (item for item in constants(folder / MODEL_FILE) if item.is_matrix)
    return min((item.shape[-1] for item in matrices if item.element_type in _INT4), default=None)


def constants(path: Path) -> Iterator[Constant]:
    """The constants that an IR's XML describes, in its order; the file is not trusted.

    raises   CheckpointError if it is missing, too large, or not such a description
    """
    reader = _Reader(path)
    read = 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                read += len(chunk)
                if read > _MAX_XML_BYTES:
                    raise reader.damaged(f"it is larger than {_MAX_XML_BYTES >> 20} MB")
                yield from reader.feed(chunk)
        yield from reader.feed(b"", final=True)
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path} is missing", hint="convert or download the model again") from exc
    except OSError as exc:
        raise CheckpointError(f"{path} cannot be read: {exc.strerror or exc}") from exc


class _Reader:
    """Finds <layer type="Const"><data element_type=… shape=…/></layer> while the XML streams by."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parser = expat.ParserCreate()
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.StartDoctypeDeclHandler = self._doctype
        self._depth = 0
        self._const: str | None = None
        self._found: list[Constant] = []

    def feed(self, chunk: bytes, *, final: bool = False) -> list[Constant]:
        """The constants that end in this chunk."""
        try:
            self._parser.Parse(chunk, final)
        except expat.ExpatError as exc:
            raise self.damaged(str(exc)) from exc
        found, self._found = self._found, []
        return found

    def damaged(self, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self._path} is no description of an OpenVINO model: {why}",
            hint="convert or download the model again",
        )

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        if self._depth == 0 and tag != "net":
            raise self.damaged(f"it begins with <{tag[:40]}> instead of <net>")
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self.damaged("its elements are nested too deeply")
        if tag == "layer":
            self._const = attributes.get("name", "?") if attributes.get("type") == "Const" else None
        elif tag == "data" and self._const is not None:
            element_type = attributes.get("element_type", "")
            self._found.append(Constant(self._const[:120], element_type, self._shape(attributes)))
            self._const = None

    def _end(self, _tag: str) -> None:
        self._depth -= 1

    def _shape(self, attributes: dict[str, str]) -> tuple[int, ...]:
        words = attributes.get("shape", "").replace(",", " ").split()
        if len(words) > _MAX_RANK or not all(word.isdecimal() and len(word) < 12 for word in words):
            raise self.damaged(f"the shape of {str(self._const)[:120]!r} is {attributes['shape'][:80]!r}")
        return tuple(int(word) for word in words)

    def _doctype(self, *_: object) -> None:
        # Entities are declared there; a model needs none, and a bomb does.
        raise self.damaged("it has a document type")


def _misfit(item: Constant) -> str:
    """What the NPU's compiler or its pipeline does not take about a matrix, or ""."""
    last = item.shape[-1]
    grouped = len(item.shape) > 2
    if item.element_type in _OTHER:
        return f"in {item.element_type}; possible are fp16, int8 and int4"
    if grouped and item.element_type in _INT8:
        return f"int8 in groups of {last}; possible is int8 with one scale a row"
    # The pipeline unpacks 64 weights at a time.
    if grouped and item.element_type in _INT4 and last % 64:
        return f"int4 in groups of {last}; possible are groups of 64, {_GROUP} and 256, and channel-wise"
    if item.element_type in _INT4 | _INT8 and last % 64:
        return f"{last} wide; possible are multiples of 64"
    return ""


def _unusual(item: Constant) -> str:
    """What about a matrix is taken, but not what OpenVINO's guide for NPUs asks for, or ""."""
    if item.element_type == "u4":
        return "asymmetric int4"
    if item.element_type == "i4" and len(item.shape) > 2 and item.shape[-1] != _GROUP:
        return f"int4 in groups of {item.shape[-1]}"
    return ""


def _fitting_command(folder: Path, group_size: int = _GROUP) -> str:
    try:
        name = read_json_object(folder / "config.json").get("_name_or_path")
    except AipcError:
        name = None
    source = name if isinstance(name, str) and 0 < len(name) < 100 and name.isprintable() else "MODEL"
    quoted = f'"{source}"' if " " in source else source
    return f"aipc convert {quoted} --weight-format int4 --sym --group-size {group_size} {folder.name}-npu"
