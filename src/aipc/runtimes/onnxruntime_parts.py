"""A large graph, cut into parts that are computed one after the other and loaded at the same time.

ONNX Runtime packs the weights of a session on one core, which is the longest part of a model's start. The
sessions of the parts pack theirs side by side.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from aipc.runtimes import onnx_wire as wire

# Smaller models start faster whole.
LEAST_WEIGHT_BYTES = 256 * 2**20
# A description that is larger holds the weights themselves, and would be copied.
_MOST_DESCRIPTION_BYTES = 32 * 2**20
# Constants such as axes; weights are larger.
_CONSTANT_BYTES = 1024
# How far from equal shares a cut may be, of all weights.
_LEEWAY = 0.05


def cut(path: Path, count: int) -> list[bytes]:
    """At most `count` graphs of about as many weights, or none where that cannot be or gains nothing.

    Together they have the inputs and outputs of the whole. What one of them needs of an earlier one is an
    output there and an input here. Their weights stay in the files beside the whole.

    raises   OSError
    """
    if count < 2 or path.stat().st_size > _MOST_DESCRIPTION_BYTES:
        return []
    try:
        return _parts(path.read_bytes(), count)
    except ValueError:
        # It is no ONNX, and the runtime finds the words for it.
        return []


def _parts(model: bytes, count: int) -> list[bytes]:
    graphs = wire.messages(model, wire.MODEL_GRAPH)
    if len(graphs) != 1:
        return []
    graph = _Graph(graphs[0])
    if graph.has_nested or sum(graph.sizes.values()) < LEAST_WEIGHT_BYTES:
        return []
    around = b"".join(field.raw for field in wire.fields(model) if field.number != wire.MODEL_GRAPH)
    return [around + wire.joined(wire.MODEL_GRAPH, [part]) for part in graph.parts(count)]


@dataclass(frozen=True, slots=True)
class _Node:
    """An operator; inputs that it may have and has not are left out."""

    raw: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @classmethod
    def of(cls, raw: bytes) -> _Node:
        inputs, outputs = (wire.texts(raw, field) for field in (wire.NODE_INPUT, wire.NODE_OUTPUT))
        return cls(raw, tuple(filter(None, inputs)), tuple(filter(None, outputs)))

    @property
    def has_graphs(self) -> bool:
        """Whether there are graphs in it: what they read of the one around them is no input."""
        return any(
            field.number in (wire.ATTRIBUTE_GRAPH, wire.ATTRIBUTE_GRAPHS)
            for attribute in wire.messages(self.raw, wire.NODE_ATTRIBUTE)
            for field in wire.fields(attribute)
        )


class _Graph:
    """A graph, its light nodes apart: they need no weight, and each part has those that it needs.

    sizes   bytes of each constant and weight
    """

    def __init__(self, graph: bytes) -> None:
        self._name = wire.joined(wire.GRAPH_NAME, wire.messages(graph, wire.GRAPH_NAME))
        self._inputs = _named(wire.messages(graph, wire.GRAPH_INPUT), wire.VALUE_NAME)
        self._outputs = _named(wire.messages(graph, wire.GRAPH_OUTPUT), wire.VALUE_NAME)
        self._weights = _named(wire.messages(graph, wire.GRAPH_INITIALIZER), wire.TENSOR_NAME)
        self.sizes = {name: _stored_bytes(tensor) for name, tensor in self._weights.items()}
        self._light: list[_Node] = []
        self._nodes: list[_Node] = []
        light = {*self._inputs, *(name for name, size in self.sizes.items() if size <= _CONSTANT_BYTES)}
        for node in map(_Node.of, wire.messages(graph, wire.GRAPH_NODE)):
            if light.issuperset(node.inputs):
                light.update(node.outputs)
                self._light.append(node)
            else:
                self._nodes.append(node)

    @property
    def has_nested(self) -> bool:
        """Whether any node has graphs in it."""
        return any(node.has_graphs for node in (*self._light, *self._nodes))

    @cached_property
    def _made(self) -> dict[str, int]:
        """The place of the node that makes each value."""
        return {name: place for place, node in enumerate(self._nodes) for name in node.outputs}

    @cached_property
    def _last_use(self) -> dict[str, int]:
        """The place of the last node that reads each value."""
        return {
            name: place
            for place, node in enumerate(self._nodes)
            for name in node.inputs
            if name in self._made
        }

    def parts(self, count: int) -> Iterator[bytes]:
        before = self._weights_before()
        if before[-1] and self._made.keys() >= self._outputs.keys():
            borders = sorted({0, *self._places(before, count), len(self._nodes)})
            for start, end in itertools.pairwise(borders):
                yield self._part(start, end)

    def _places(self, before: Sequence[int], count: int) -> Iterator[int]:
        """Before which nodes to cut: where fewest values pass, near equal shares of the weights."""
        passing = self._values_passing()
        for share in range(1, count):
            missed = [abs(size / before[-1] - share / count) for size in before]
            near = [place for place, miss in enumerate(missed) if miss <= _LEEWAY] or range(len(missed))
            yield min(near, key=lambda place: (passing[place], missed[place]))

    def _weights_before(self) -> list[int]:
        """Bytes of the weights that nodes before each place read first; at the end, of all."""
        found, seen = [0], set[str]()
        for node in self._nodes:
            new = {name for name in node.inputs if name in self.sizes} - seen
            seen |= new
            found.append(found[-1] + sum(self.sizes[name] for name in new))
        return found

    def _values_passing(self) -> list[int]:
        """How many values nodes before each place make for nodes behind it."""
        changes = [0] * (len(self._nodes) + 1)
        for name, last in self._last_use.items():
            changes[self._made[name] + 1] += 1
            changes[last + 1] -= 1
        return list(itertools.accumulate(changes))

    def _part(self, start: int, end: int) -> bytes:
        """The nodes from `start` to `end` as a graph of its own."""
        nodes = self._nodes[start:end]
        nodes = [*self._light_for(nodes), *nodes]
        made = {name for node in nodes for name in node.outputs}
        needed = {name for node in nodes for name in node.inputs} - made
        takes = [name for name in self._made if name in needed]
        gives = [
            name for name, place in self._made.items() if start <= place < end <= self._last_use.get(name, -1)
        ]
        inputs = [*_picked(self._inputs, needed), *map(self._value, takes)]
        outputs = [*_picked(self._outputs, made), *map(self._value, gives)]
        return b"".join(
            (
                self._name,
                wire.joined(wire.GRAPH_NODE, [node.raw for node in nodes]),
                wire.joined(wire.GRAPH_INITIALIZER, _picked(self._weights, needed)),
                wire.joined(wire.GRAPH_INPUT, inputs),
                wire.joined(wire.GRAPH_OUTPUT, outputs),
            )
        )

    def _light_for(self, nodes: Iterable[_Node]) -> list[_Node]:
        """The light nodes that make what these nodes need, in their order."""
        needed = {name for node in nodes for name in node.inputs}
        found = []
        for node in reversed(self._light):
            if needed.intersection(node.outputs):
                needed.update(node.inputs)
                found.append(node)
        return found[::-1]

    def _value(self, name: str) -> bytes:
        """What passes from part to part, described: of the type of the outputs, which they share."""
        (kind, *_) = wire.messages(next(iter(self._outputs.values())), wire.VALUE_TYPE)
        (tensor, *_) = wire.messages(kind, wire.TYPE_TENSOR)
        (element, *_) = [
            field.value for field in wire.fields(tensor) if field.number == wire.TENSOR_TYPE_ELEMENT
        ]
        if not isinstance(element, int):
            raise ValueError("the outputs have no type")
        of_value = wire.joined(wire.TYPE_TENSOR, [wire.number_field(wire.TENSOR_TYPE_ELEMENT, element)])
        return wire.joined(wire.VALUE_NAME, [name.encode()]) + wire.joined(wire.VALUE_TYPE, [of_value])


def _named(items: Iterable[bytes], field: int) -> dict[str, bytes]:
    return {name: item for item in items for name in wire.texts(item, field)}


def _picked(items: Mapping[str, bytes], names: set[str]) -> list[bytes]:
    return [item for name, item in items.items() if name in names]


def _stored_bytes(tensor: bytes) -> int:
    """Of a weight, in the description or outside."""
    for entry in wire.messages(tensor, wire.TENSOR_EXTERNAL_DATA):
        if wire.texts(entry, wire.ENTRY_KEY) == ["length"]:
            return sum(int(length) for length in wire.texts(entry, wire.ENTRY_VALUE))
    return len(tensor)
