"""Whether a model fits this machine: its memory and its disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from aipc import cache, hardware, hub
from aipc.errors import UnsupportedModelError
from aipc.model_size import CONTEXT_TOKENS, RUNTIME_BYTES, Size, model_size
from aipc.types import Check

# What ONNX Runtime keeps a number of a conversation in, on a CPU and elsewhere.
_KV_BYTES_CPU, _KV_BYTES_GPU = 4, 2
_SMALLER = "take a smaller model, such as phi-3-mini, or close what uses the memory"


def model_checks(name: str) -> list[Check]:
    """Memory for its int4 weights and a conversation, and disk for its download and conversion.

    raises   ModelNotFoundError, CheckpointError
    """
    try:
        size = model_size(name)
    except UnsupportedModelError as exc:
        return [Check(name, "failed", exc.message, exc.hint)]
    if size is None:
        return [Check(name, "note", "its size is not known before it is downloaded")]
    return [*_memory_checks(name, size), _disk_check(name, size)]


def _memory_checks(name: str, size: Size) -> Iterator[Check]:
    """The system's memory, which CPU, NPU and integrated GPU use, and that of each discrete GPU."""
    available = psutil.virtual_memory().available
    yield _memory_check(f"{name} memory", size, _KV_BYTES_CPU, available, "available")
    for gpu in hardware.processors():
        if gpu.kind == "discrete GPU" and gpu.memory_bytes:
            where = f"on {gpu.name}"
            yield _memory_check(f"{name} GPU memory", size, _KV_BYTES_GPU, gpu.memory_bytes, where)


def _memory_check(name: str, size: Size, kv_bytes: int, there: int, where: str) -> Check:
    kv = size.kv_numbers * kv_bytes
    needed = size.weights_bytes + kv + RUNTIME_BYTES
    found = (
        f"about {_shown(needed)} needed, {_shown(there)} {where}: {_shown(size.weights_bytes)} are weights, "
        f"{_shown(kv)} a conversation of {CONTEXT_TOKENS} tokens"
    )
    return Check(name, "passed", found) if needed <= there else Check(name, "failed", found, _SMALLER)


def _disk_check(name: str, size: Size) -> Check:
    """Download and conversion may go to one disk or to two."""
    needed: dict[Path, int] = {}
    for place, count in ((hub.hub_cache(), size.download_bytes), (cache.cache_dir(), size.conversion_bytes)):
        here = next(path for path in (place, *place.parents) if path.exists())
        disk = next((other for other in needed if other.stat().st_dev == here.stat().st_dev), here)
        needed[disk] = needed.get(disk, 0) + count
    free = {disk: shutil.disk_usage(disk).free for disk in needed}
    found = "; ".join(
        f"{_shown(count)} needed, {_shown(free[disk])} free at {disk}"
        for disk, count in needed.items()
        if count
    )
    if any(count > free[disk] for disk, count in needed.items()):
        fix = "free space, or move the caches: HF_HOME and AIPC_CACHE_DIR name their folders"
        return Check(f"{name} disk", "failed", found, fix)
    return Check(f"{name} disk", "passed", found or "nothing is left to download or to convert")


def _shown(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
