"""A model's graph on plain ONNX Runtime, with the keys and values of several sequences beside it.

onnxruntime-genai has one sequence a generator. The graph itself takes a batch of sequences of different
lengths: its cache is bound as past and as present at once, so that attention appends in place, and a step
may see any rows of it that follow one another.
"""

from __future__ import annotations

import math
import mmap
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aipc.errors import UnsupportedModelError
from aipc.phi3 import ONNX_FACTORS_MODEL_FILE, ONNX_LONG_FACTORS, read_json_object
from aipc.runtimes.onnxruntime_errors import translated
from aipc.runtimes.onnxruntime_graph import FAILURES, Bound, Graph

_CACHE_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
}
# Of a row that grows by single tokens, so many more become memory at once: a page that is missing in the
# middle of a step holds up all cores.
AHEAD_TOKENS = 16

_IDS, _MASK, _POSITIONS, _LOGITS = "input_ids", "attention_mask", "position_ids", "logits"


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What the graph says of the keys and values of a layer."""

    layers: int
    heads: int
    head_size: int
    dtype: np.dtype[Any]

    @property
    def token_nbytes(self) -> int:
        """Of one token in all layers."""
        return 2 * self.layers * self.heads * self.head_size * self.dtype.itemsize


class KVCache:
    """Keys and values of the tokens in each row: for each layer and part [rows, heads, capacity, head_size].

    Untouched memory costs nothing: a row takes as much as the longest sequence that it has held, and
    `AHEAD_TOKENS`.

    generation   another one after each change of where the rows lie
    """

    def __init__(self, shape: CacheShape) -> None:
        self.shape = shape
        self.rows = self.capacity = self.generation = 0
        self._touched: list[int] = []
        self.parts: list[np.ndarray] = [self._empty(0, 0)] * (2 * shape.layers)

    def resize(self, rows: int, capacity: int, held: Sequence[int]) -> None:
        """Take new memory, with the first `held` tokens of each row; what else was there is free again."""
        for part, old in enumerate(self.parts):
            new = self._empty(rows, capacity)
            for row, count in enumerate(held[:rows]):
                new[row, :, :count] = old[row, :, :count]
            # One layer at a time: old and new are never there as wholes.
            self.parts[part] = new
        self.rows, self.capacity = rows, capacity
        self.generation += 1
        self._touched = [*held[:rows], *[0] * (rows - len(held))]

    @property
    def touched_tokens(self) -> int:
        """How many tokens' memory is in use, whether or not their values are still wanted."""
        return sum(self._touched)

    def touch(self, row: int, count: int) -> None:
        """The first `count` tokens of a row are about to be written."""
        known = self._touched[row]
        if known < count < known + AHEAD_TOKENS:
            count = min(count + AHEAD_TOKENS, self.capacity)
            for part in self.parts:
                part[row, :, known:count] = 0
        self._touched[row] = max(known, count)

    def copy(self, source: int, target: int, count: int) -> None:
        """The first `count` tokens of a row into another one."""
        self.touch(target, count)
        for part in self.parts:
            part[target, :, :count] = part[source, :, :count]

    def swap(self, first: int, first_count: int, second: int, second_count: int) -> None:
        """Two rows that hold so many tokens change places."""
        self.touch(first, second_count)
        self.touch(second, first_count)
        for part in self.parts:
            kept = part[first, :, :first_count].copy()
            part[first, :, :second_count] = part[second, :, :second_count]
            part[second, :, :first_count] = kept

    def _empty(self, rows: int, capacity: int) -> np.ndarray:
        shape = (rows, self.shape.heads, capacity, self.shape.head_size)
        buffer = _untouched(math.prod(shape) * self.shape.dtype.itemsize)
        return np.frombuffer(buffer, self.shape.dtype).reshape(shape)


def _untouched(nbytes: int) -> mmap.mmap | bytes:
    """Zeros that become memory when they are written to, a small page at a time; numpy's pages are huge."""
    if not nbytes:
        return b""
    if sys.platform == "win32":
        return mmap.mmap(-1, nbytes)
    return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


class Decoder:
    """A model that computes one step of some rows of its cache.

    cache            which its caller makes as large as it needs
    vocab_size       how many scores a step gives for each row
    one_kind_a_step  whether all rows of a step have the same of LongRoPE's factors
    """

    def __init__(
        self, folder: Path, properties: Mapping[str, Any], border: int | None, prepacked: Path | None = None
    ) -> None:
        """Load the graph.

        properties   session options, in the runtime's words
        border       LongRoPE's factors change after so many tokens, or None
        prepacked    the graph of a prepacked copy, to be loaded in place of the folder's
        raises       UnsupportedModelError for a graph that is not like ours; UsageError for unknown options;
                     DeviceError, CheckpointError, RuntimeFailedError
        """
        decoder, path = _decoder_config(folder), prepacked or graph_file(folder)
        try:
            self._graph = Graph(path, properties, optimised=prepacked is not None)
        except FAILURES as exc:
            raise translated(exc, str(folder), "CPU") from exc
        self.cache = KVCache(_cache_shape(self._graph, decoder))
        self.vocab_size = _vocab_size(self._graph)
        self._border = border
        self.one_kind_a_step = border is not None and ONNX_LONG_FACTORS not in self._graph.inputs
        if self.one_kind_a_step and _POSITIONS in self._graph.inputs:
            raise _unsupported("it takes positions and has two kinds of rotation")
        self._step: Bound | None = None
        self._step_rows = (0, 0, 0)

    def least_capacity(self, *, far: bool) -> int:
        """How many tokens a row must have room for, whatever it holds."""
        return self._border + 1 if far and self.one_kind_a_step and self._border is not None else 0

    def step(self, first: int, ids: np.ndarray, held: np.ndarray, far: np.ndarray) -> np.ndarray:
        """Compute the next tokens of the rows from `first` on; the cache holds them afterwards.

        ids      [rows, tokens] int64
        held     [rows] how many tokens the cache holds of each row
        far      [rows] bool: rotate by LongRoPE's factors for long texts
        returns  the scores of what could follow, [rows, vocab_size] float32
        """
        bound = self._bound_for_step(first, len(ids))
        logits = bound.run(self._inputs(first, ids, held, far))
        assert logits is not None  # noqa: S101 - they were wanted
        scores: np.ndarray = logits[:, -1].astype(np.float32, copy=False)
        return scores

    def extend(self, row: int, ids: np.ndarray, held: int, *, far: bool) -> None:
        """The same for one row whose scores nobody asks for: the head is left out."""
        bound = self._graph.bound(self._places(row, 1))
        bound.run(self._inputs(row, ids, np.array([held]), np.array([far])))

    def _bound_for_step(self, first: int, rows: int) -> Bound:
        """One step after the other is of the same rows, and binding them takes a part of it."""
        wanted = (first, rows, self.cache.generation)
        if self._step is None or self._step_rows != wanted:
            self._step, self._step_rows = self._graph.bound(self._places(first, rows), _LOGITS), wanted
        return self._step

    def _places(self, first: int, rows: int) -> dict[str, np.ndarray]:
        """Where the keys and values of some rows lie: as past and as present."""
        places = {}
        for part, whole in enumerate(self.cache.parts):
            layer, word = part // 2, ("key", "value")[part % 2]
            view = whole[first : first + rows]
            places[f"past_key_values.{layer}.{word}"] = places[f"present.{layer}.{word}"] = view
        return places

    def _inputs(
        self, first: int, ids: np.ndarray, held: np.ndarray, far: np.ndarray
    ) -> dict[str, np.ndarray]:
        """All that the graph is given anew for a step."""
        count = ids.shape[1]
        for row, known in enumerate(held, first):
            self.cache.touch(row, int(known) + count)
        total = int(held.max()) + count
        if self.one_kind_a_step and self._border is not None and far[0]:
            # The graph looks at the length of the mask.
            total = max(total, self._border + 1)
        return {
            _IDS: np.ascontiguousarray(ids),
            _MASK: (np.arange(total) < (held + count)[:, None]).astype(np.int64),
            _POSITIONS: held[:, None] + np.arange(count),
            ONNX_LONG_FACTORS: far[:, None].astype(np.int64),
        }


def graph_file(folder: Path) -> Path:
    """The graph of a model in one piece: where there are two, that which is told LongRoPE's factors.

    raises   UnsupportedModelError, CheckpointError
    """
    told = folder / ONNX_FACTORS_MODEL_FILE
    return told if told.is_file() else folder / str(_decoder_config(folder)["filename"])


def _decoder_config(folder: Path) -> dict[str, Any]:
    """model.decoder of genai_config.json, if it describes a model in one piece.

    raises   UnsupportedModelError, CheckpointError
    """
    model = read_json_object(folder / "genai_config.json").get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    if not isinstance(decoder, dict):
        raise _unsupported("genai_config.json describes no decoder")
    window = decoder.get("sliding_window")
    if isinstance(window, dict) and window.get("slide_key_value_cache") is not False:
        raise _unsupported("its cache slides")
    name = decoder.get("filename")
    if not isinstance(name, str) or Path(name).name != name:
        raise _unsupported("its graph is in another folder")
    return decoder


def _cache_shape(graph: Graph, decoder: Mapping[str, Any]) -> CacheShape:
    """What the graph wants, if it is what `Decoder` gives it.

    raises   UnsupportedModelError
    """
    keys = ("num_hidden_layers", "num_key_value_heads", "head_size")
    layers, heads, head_size = (decoder.get(key) for key in keys)
    if not (isinstance(layers, int) and isinstance(heads, int) and isinstance(head_size, int)):
        raise _unsupported(f"genai_config.json does not say {', '.join(keys)}")
    inputs, outputs = dict(graph.inputs), dict(graph.outputs)
    words = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    caches = [inputs.pop(f"past_key_values.{word}", None) for word in words]
    caches += [outputs.pop(f"present.{word}", None) for word in words]
    known = {_IDS, _MASK, _POSITIONS, ONNX_LONG_FACTORS}
    if not {_IDS, _MASK} <= {*inputs} <= known or {*outputs} != {_LOGITS}:
        raise _unsupported("the graph has other inputs or outputs")
    kinds = {None if node is None else node.type for node in caches}
    sizes = {(node.shape[1], node.shape[3]) for node in caches if node is not None and len(node.shape) == 4}
    # A size that the graph leaves open is a word.
    named = [(heads, head_size)] == [
        tuple(b if isinstance(a, str) else a for a, b in zip(size, (heads, head_size), strict=True))
        for size in sizes
    ]
    dtype = _CACHE_TYPES.get(kinds.pop() or "")
    if dtype is None or kinds or not named:
        raise _unsupported("its cache has another form")
    if any(node.type != "tensor(int64)" for node in inputs.values()):
        raise _unsupported("its ids are not int64")
    return CacheShape(layers, heads, head_size, dtype)


def _vocab_size(graph: Graph) -> int:
    size = graph.outputs[_LOGITS].shape[-1]
    if not isinstance(size, int):
        raise _unsupported("it does not say how many tokens it knows")
    return size


def _unsupported(why: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"this is not a graph that aipc itself can run: {why}")
