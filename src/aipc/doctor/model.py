"""Whether a model fits this machine: its memory and its disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from aipc import cache, hardware, hub
from aipc.conversion.recipe import make_recipe
from aipc.errors import ModelNotFoundError, UnsupportedModelError
from aipc.phi3 import ARCHITECTURE, Phi3Config
from aipc.types import Check

# How long a conversation the check makes room for, and what ONNX Runtime keeps a number of it in on a CPU.
CONTEXT_TOKENS = 4096
_KV_BYTES_CPU, _KV_BYTES_GPU = 4, 2
# The runtime itself: code, buffers of a prompt's chunk, the other process.
_RUNTIME_BYTES = 500_000_000

_SMALLER = "take a smaller model, such as phi-3-mini, or close what uses the memory"


# source   config.json of these repositories, so that a model's size is known before it is downloaded
_FIELDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "tie_word_embeddings",
)
_SHAPES = {
    "microsoft/Phi-3-mini-4k-instruct": (3072, 8192, 32, 32, 32, 32064, False),
    "microsoft/Phi-3-medium-4k-instruct": (5120, 17920, 40, 40, 10, 32064, False),
    "microsoft/Phi-3.5-mini-instruct": (3072, 8192, 32, 32, 32, 32064, False),
    "microsoft/Phi-4-mini-instruct": (3072, 8192, 32, 24, 8, 200064, True),
    "microsoft/phi-4": (5120, 17920, 40, 40, 10, 100352, False),
}


@dataclass(frozen=True, slots=True)
class _Size:
    """What a model takes.

    weights_bytes     as int4, or as they were converted
    kv_numbers        of the KV cache of a conversation
    download_bytes    0 where it is here
    conversion_bytes  0 where it is converted
    """

    weights_bytes: int
    kv_numbers: int
    download_bytes: int = 0
    conversion_bytes: int = 0


def model_checks(name: str) -> list[Check]:
    """Memory for its int4 weights and a conversation, and disk for its download and conversion.

    raises   ModelNotFoundError, CheckpointError
    """
    try:
        size = _size(name)
    except UnsupportedModelError as exc:
        return [Check(name, "failed", exc.message, exc.hint)]
    if size is None:
        return [Check(name, "note", "its size is not known before it is downloaded")]
    return [*_memory_checks(name, size), _disk_check(name, size)]


def _size(name: str) -> _Size | None:
    """The size of a model, or None where nothing on this machine says it."""
    known = hub.local_folder(name) or name == hub.DEMO or hub.cached_snapshot(hub.repository_of(name))
    if known:
        source = hub.find(name, download=False)
        if source.kind == "converted":
            return _Size(cache.bytes_below(source.folder), _kv_numbers(_config_of(source.folder)))
        config = Phi3Config.read(source.folder)
    else:
        shape = _SHAPES.get(hub.repository_of(name))
        if shape is None:
            return None
        raw = dict(zip(_FIELDS, shape, strict=True)) | {"max_position_embeddings": CONTEXT_TOKENS}
        config = Phi3Config.parse({"architectures": [ARCHITECTURE], **raw})
    weights_bytes = make_recipe(config).nbytes(config.weights())
    return _Size(
        weights_bytes,
        _kv_numbers(config),
        download_bytes=0 if known else 2 * config.parameters,
        conversion_bytes=0 if _is_converted(name) else weights_bytes,
    )


def _config_of(folder: Path) -> Phi3Config | None:
    """Of a converted folder, which others may have made without one."""
    return Phi3Config.read(folder) if (folder / "config.json").is_file() else None


def _kv_numbers(config: Phi3Config | None) -> int:
    """Keys and values of CONTEXT_TOKENS, or of as many as the model takes."""
    if config is None:
        return 0
    tokens = min(CONTEXT_TOKENS, config.context_length)
    return 2 * tokens * config.layers * config.kv_heads * config.head_size


def _is_converted(name: str) -> bool:
    try:
        return bool(cache.select(name))
    except ModelNotFoundError:
        return False


def _memory_checks(name: str, size: _Size) -> Iterator[Check]:
    """The system's memory, which CPU, NPU and integrated GPU use, and that of each discrete GPU."""
    available = psutil.virtual_memory().available
    yield _memory_check(f"{name} memory", size, _KV_BYTES_CPU, available, "available")
    for gpu in hardware.processors():
        if gpu.kind == "discrete GPU" and gpu.memory_bytes:
            where = f"on {gpu.name}"
            yield _memory_check(f"{name} GPU memory", size, _KV_BYTES_GPU, gpu.memory_bytes, where)


def _memory_check(name: str, size: _Size, kv_bytes: int, there: int, where: str) -> Check:
    kv = size.kv_numbers * kv_bytes
    needed = size.weights_bytes + kv + _RUNTIME_BYTES
    found = (
        f"about {_shown(needed)} needed, {_shown(there)} {where}: {_shown(size.weights_bytes)} are weights, "
        f"{_shown(kv)} a conversation of {CONTEXT_TOKENS} tokens"
    )
    return Check(name, "passed", found) if needed <= there else Check(name, "failed", found, _SMALLER)


def _disk_check(name: str, size: _Size) -> Check:
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
