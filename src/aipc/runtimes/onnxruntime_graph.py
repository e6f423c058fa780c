"""A graph on plain ONNX Runtime, on all cores of a CPU: loaded, bound to memory, computed."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aipc.errors import UsageError
from aipc.runtimes.cores import physical_cores
from aipc.runtimes.onnxruntime_parts import cut
from aipc.runtimes.pages import let_go_of_files

# The package reports to Microsoft unless it finds this before it is imported.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as native

# All that a call of the runtime may raise; its own exceptions have no common root.
FAILURES: tuple[type[Exception], ...] = (
    RuntimeError,
    MemoryError,
    OSError,
    # Names in a graph that are no text.
    UnicodeDecodeError,
    *(kind for kind in vars(native).values() if isinstance(kind, type) and issubclass(kind, Exception)),
)

# Packing weights is bound by memory bandwidth, which so many cores use up.
MOST_PARTS = 4

_THREADS = "intra_op_num_threads"
_SHARED_MEMORY = "session.use_env_allocators"
_STOP_SPINNING = "session.force_spinning_stop"
_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(slots=True)
class _Process:
    """What all sessions of this process have in common.

    threads   how many they share, if they do
    """

    threads: int | None = None


_process = _Process()


def share_threads(properties: Mapping[str, Any]) -> None:
    """Give all graphs of this process the same threads; to be called before the first is loaded.

    The parts of a graph take turns, and each would have to wake its own. Where a person asks for something of
    the threads, each has its own still, as the runtime takes no more than a number for shared ones. Whoever
    else uses onnxruntime in this process must not ask for threads of a session's own.

    properties   session options, in the runtime's words
    raises       UsageError
    """
    if any("intra_op" in name or "inter_op" in name for name in properties.keys() - {_THREADS}):
        return
    threads = int(session_options(properties).intra_op_num_threads)
    ort.set_global_thread_pool_sizes(threads, 1)
    _process.threads = threads


class Graph:
    """A graph that is ready to compute.

    inputs, outputs   by name, as the runtime describes them
    """

    def __init__(self, path: Path, properties: Mapping[str, Any], *, optimised: bool = False) -> None:
        """Load the graph, in parts where that is faster.

        properties   session options, in the runtime's words
        optimised    whether the runtime has optimised it before
        raises       UsageError for unknown options; any of `FAILURES`
        """
        self._sessions = _open_parts(path, properties, optimised=optimised)
        if not self._sessions:
            options = session_options(properties, optimised=optimised)
            self._sessions = [open_graph(path, options)]
        if not optimised:
            # Packed, the weights are elsewhere, and of their scales nothing is read again.
            let_go_of_files(path.parent)
        inputs = {node.name: node for session in self._sessions for node in session.get_inputs()}
        outputs = {node.name: node for session in self._sessions for node in session.get_outputs()}
        # What parts pass to each other is nobody else's.
        self.inputs = {name: node for name, node in inputs.items() if name not in outputs}
        self.outputs = {name: node for name, node in outputs.items() if name not in inputs}

    def bound(self, places: Mapping[str, np.ndarray], wanted: str | None = None) -> Bound:
        """The graph at work on memory that stays.

        places   inputs and outputs that lie there; the caller keeps them as long as there are runs
        wanted   an output that each run returns; without it, what only this one needs is not computed
        """
        return Bound(self._sessions, places, wanted)


class Bound:
    """A graph and the memory that it works on."""

    def __init__(
        self, sessions: list[ort.InferenceSession], places: Mapping[str, np.ndarray], wanted: str | None
    ) -> None:
        passed = {node.name for session in sessions for node in session.get_inputs()}
        self._parts = [_BoundPart(session, places, passed, wanted) for session in sessions]
        self._wanted = wanted

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """Compute once.

        inputs    those that do not lie in memory that stays
        returns   what is wanted, in memory of its own
        raises    any of `FAILURES`
        """
        passed: dict[str, ort.OrtValue] = {}
        for part in self._parts:
            passed |= part.run(inputs, passed)
        return None if self._wanted is None else passed[self._wanted].numpy()


class _BoundPart:
    """One session's share of a run."""

    def __init__(
        self,
        session: ort.InferenceSession,
        places: Mapping[str, np.ndarray],
        passed: set[str],
        wanted: str | None,
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        # Options, even empty ones, cost a tenth of a millisecond a run.
        self._options: ort.RunOptions | None = None
        if wanted is None:
            self._options = ort.RunOptions()
            self._options.only_execute_path_to_fetches = True
        inputs = [node.name for node in session.get_inputs()]
        outputs = [node.name for node in session.get_outputs()]
        for name in inputs:
            if name in places:
                self._binding.bind_input(name, *_place(places[name]))
        for name in outputs:
            if name in places:
                self._binding.bind_output(name, *_place(places[name]))
        self._takes = [name for name in inputs if name not in places]
        self._gives = [name for name in outputs if name not in places and name in {wanted, *passed}]

    def run(
        self, inputs: Mapping[str, np.ndarray], passed: Mapping[str, ort.OrtValue]
    ) -> dict[str, ort.OrtValue]:
        """Its outputs that others need."""
        for name in self._takes:
            if name in passed:
                self._binding.bind_ortvalue_input(name, passed[name])
            else:
                self._binding.bind_cpu_input(name, inputs[name])
        for name in self._gives:
            # Without it, the last run's would be written to, whatever its shape.
            self._binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(self._binding, self._options)
        if not self._gives:
            return {}
        outputs = self._binding.get_outputs_as_ortvaluevector()
        # They were bound after those that lie in memory that stays, of which there are many.
        last = range(len(outputs) - len(self._gives), len(outputs))
        return {name: ort.OrtValue(outputs[place]) for name, place in zip(self._gives, last, strict=True)}


def _place(array: np.ndarray) -> tuple[Any, ...]:
    return "cpu", 0, array.dtype.type, array.shape, array.ctypes.data


def _open_parts(path: Path, properties: Mapping[str, Any], *, optimised: bool) -> list[ort.InferenceSession]:
    """The sessions of a graph's parts, loaded side by side; none for a graph that is better loaded whole.

    raises   UsageError
    """
    threads = _process.threads or int(session_options(properties).intra_op_num_threads)
    parts = cut(path, min(threads, MOST_PARTS))
    if not parts:
        return []

    def opened(part: bytes) -> ort.InferenceSession:
        options = session_options(properties, optimised=optimised)
        options.add_session_config_entry(_FOLDER, str(path.parent))
        if _process.threads is None:
            # Each has its threads, and those of the one before would be in its way.
            options.add_session_config_entry(_STOP_SPINNING, "1")
        options.add_session_config_entry(_SHARED_MEMORY, "1")
        return ort.InferenceSession(part, options, providers=["CPUExecutionProvider"])

    _share_memory()
    try:
        with ThreadPoolExecutor(len(parts)) as pool:
            return list(pool.map(opened, parts))
    except FAILURES:
        # If it is not for the cuts, it happens again with the whole, and in better words.
        return []


@functools.cache
def _share_memory() -> None:
    """One pool of memory for what parts compute: they take turns."""
    place = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    native.create_and_register_allocator(place, None)


def version() -> str:
    """Of ONNX Runtime."""
    return str(ort.__version__)


def open_graph(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
    """Load a whole graph for the CPU; raises any of `FAILURES`."""
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def session_options(properties: Mapping[str, Any], *, optimised: bool = False) -> ort.SessionOptions:
    """All physical cores, and what a person asks for: fields of SessionOptions, or config entries.

    optimised   whether the runtime has optimised the graph before
    raises      UsageError
    """
    options = ort.SessionOptions()
    # Warnings are for developers of the runtime.
    options.log_severity_level = 3
    if optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for name, value in ({_THREADS: physical_cores()} | dict(properties)).items():
        try:
            if "." in name:
                options.add_session_config_entry(name, value)
            else:
                # There is such a field, and it is no method.
                setattr(options, name, type(getattr(options, name))(value))
        except (AttributeError, TypeError, ValueError) as exc:
            raise UsageError(f"ONNX Runtime does not take the session option {name}={value!r}") from exc
    if _process.threads is not None:
        options.use_per_session_threads = False
        # What is left to the runtime it does not warn of.
        options.intra_op_num_threads = 0
    return options
