"""A copy of a model's weights in the order that this processor's kernels want.

ONNX Runtime packs the weights each time it loads a model, into memory of its own. It can keep them packed
beside the graph; then it maps the file instead. The copy is for one processor and one version of the runtime,
and takes about twice the room of the model, as the weights stay in it as they were, too.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aipc.errors import StorageError
from aipc.runtimes.onnxruntime_errors import translated
from aipc.runtimes.onnxruntime_graph import FAILURES, open_graph, session_options, version
from aipc.windows_files import move

_FORMAT = 1
_STAMP = "aipc-prepacked.json"
_GRAPH, _DATA = "model.onnx", "model.onnx.data"

_CPUINFO = Path("/proc/cpuinfo")
_PARTIAL = ".partial-"
# A copy is made in minutes: what has not changed for so long was left by a process that died.
_STALE_S = 3600.0

# What is read of a large file to know it again.
_SAMPLES = 256
_SAMPLE_BYTES = 4096

# The weights as they were and packed, and what packing adds.
_ROOM = 2.2


def exists(copy: Path) -> bool:
    """Whether a copy was made at some time, sound or not."""
    return (copy / _STAMP).is_file()


def prepacked_graph(copy: Path, graph: Path) -> Path | None:
    """The graph of a copy, if it was made from `graph` for this processor and runtime, and is whole."""
    try:
        stamp = json.loads((copy / _STAMP).read_text(encoding="utf-8"))
        sound = stamp == _stamp(copy, graph)
    except (OSError, ValueError):
        return None
    return copy / _GRAPH if sound else None


def make(copy: Path, graph: Path) -> Path:
    """Make the copy, in place of one that may be there; its graph.

    raises   StorageError if there is no room or no right to write; CheckpointError, RuntimeFailedError
    """
    staging = copy.with_name(f"{copy.name}{_PARTIAL}{os.getpid()}")
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(copy)
        _check_space(copy.parent, graph)
        staging.mkdir()
        _save(graph, staging)
        stamp = json.dumps(_stamp(staging, graph), indent=2)
        (staging / _STAMP).write_text(stamp + "\n", encoding="utf-8")
        if copy.exists():
            shutil.rmtree(copy)
        move(staging, copy)
    except OSError as exc:
        raise StorageError(
            f"the prepacked weights in {copy} cannot be written: {exc.strerror or exc}",
            hint="free some space, or set AIPC_CACHE_DIR to a folder on another disk",
        ) from exc
    except FAILURES as exc:
        raise translated(exc, str(graph.parent), "CPU") from exc
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return copy / _GRAPH


def _save(graph: Path, folder: Path) -> None:
    options = session_options({})
    options.optimized_model_filepath = str(folder / _GRAPH)
    for name, value in {
        "save_external_prepacked_constant_initializers": "1",
        "optimized_model_external_initializers_file_name": _DATA,
        "optimized_model_external_initializers_min_size_in_bytes": "1024",
    }.items():
        options.add_session_config_entry(f"session.{name}", value)
    open_graph(graph, options)


def _stamp(copy: Path, graph: Path) -> Mapping[str, Any]:
    """What a copy depends on, and what it is."""
    return {
        "format": _FORMAT,
        "onnxruntime": version(),
        "processor": _processor(),
        "sources": {path.name: [path.stat().st_size, path.stat().st_mtime_ns] for path in _sources(graph)},
        "files": {name: [(copy / name).stat().st_size, _sampled(copy / name)] for name in (_GRAPH, _DATA)},
    }


def _sources(graph: Path) -> list[Path]:
    """A graph, and what may hold its weights: two graphs can share theirs, under the name of one."""
    return sorted(
        path
        for path in graph.parent.iterdir()
        if path == graph or (".onnx" in path.name and path.suffix != ".onnx")
    )


def _processor() -> str:
    """The processor's name and abilities, which decide how its kernels want the weights."""
    wanted = ("model name", "flags", "Features", "CPU part")
    lines = _CPUINFO.read_text(encoding="utf-8").splitlines() if _CPUINFO.is_file() else []
    words = dict.fromkeys(line for line in lines if line.startswith(wanted))
    text = "\n".join([platform.machine(), platform.processor(), *words])
    return f"{zlib.crc32(text.encode()):08x}"


def _sampled(path: Path) -> str:
    """A checksum of pieces all over a file: the whole would take longer to read than it saves."""
    step = max(_SAMPLE_BYTES, path.stat().st_size // _SAMPLES)
    checksum = 0
    with path.open("rb") as file:
        for place in range(0, path.stat().st_size, step):
            file.seek(place)
            checksum = zlib.crc32(file.read(_SAMPLE_BYTES), checksum)
    return f"{checksum:08x}"


def _remove_stale(copy: Path) -> None:
    for left in copy.parent.glob(f"{copy.name}{_PARTIAL}*"):
        if time.time() - left.stat().st_mtime > _STALE_S:
            shutil.rmtree(left, ignore_errors=True)


def _check_space(parent: Path, graph: Path) -> None:
    needed = int(_ROOM * sum(path.stat().st_size for path in _sources(graph)))
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise StorageError(
            f"the prepacked weights take {needed / 1e9:.1f} GB, and {parent} has {free / 1e9:.1f} GB free",
            hint="free some space, or set AIPC_CACHE_DIR to a folder on another disk",
        )
