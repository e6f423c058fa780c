"""How much memory is free on this machine, and how long a context it holds."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from aipc.errors import DeviceError

# Bytes of a number in the KV cache; u8 carries a scale and a zero point for each head of a token.
_KV_BYTES = {"u8": 1.125, "f16": 2.0, "bf16": 2.0, "f32": 4.0}

# A context that is not asked for is not made shorter than this: a program that swaps still answers.
_LEAST_CONTEXT = 4096


def fitting_context(
    context_length: int, *, asked: bool, weights_bytes: int, kv_numbers: int, kv_cache: str
) -> int:
    """The context length, or less if memory does not hold so much and it was not asked for.

    kv_numbers   of one token in the KV cache
    kv_cache     their type
    raises       DeviceError with the figures and the largest length that fits
    """
    free = free_bytes()
    if free is None:
        return context_length
    bytes_per_token = kv_numbers * _KV_BYTES[kv_cache]
    fits = int(max(0, free - weights_bytes) / bytes_per_token)
    if context_length <= fits:
        return context_length
    if not asked:
        return min(context_length, max(fits, _LEAST_CONTEXT))
    raise DeviceError(
        f"a context of {context_length} tokens does not fit into memory: the weights take "
        f"{weights_bytes / 1e9:.2f} GB, each token {bytes_per_token / 1e3:.0f} KB of KV cache ({kv_cache}), "
        f"and {free / 1e9:.2f} GB are free; the largest length that fits is {fits}",
        hint=f"--context-length {fits}" if fits else "close other programs, or take a smaller model",
    )


def free_bytes() -> int | None:
    """What programs can still take without swapping, or None where nothing says so."""
    if sys.platform == "win32":
        return _windows_free_bytes()
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    limits = [left for left in (_group_left(), free) if left is not None]
    return min(limits, default=None)


def _group_left() -> int | None:
    """What a container may still take; None without a limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text(encoding="utf-8").strip()
        used = int((group / "memory.current").read_text(encoding="utf-8"))
        stat = (group / "memory.stat").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    if not limit.isdecimal():
        return None
    # Pages of files are counted as used, and given back when somebody needs them.
    cached = next((int(line.split()[1]) for line in stat if line.startswith("inactive_file ")), 0)
    return max(0, int(limit) - used + cached)


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of Windows."""

    _fields_ = (
        ("length", ctypes.c_uint32),
        ("load_percent", ctypes.c_uint32),
        *((name, ctypes.c_uint64) for name in ("total", "free", "total_page", "free_page")),
        *((name, ctypes.c_uint64) for name in ("total_virtual", "free_virtual", "extended")),
    )


def _windows_free_bytes() -> int | None:
    status = _MemoryStatus(length=ctypes.sizeof(_MemoryStatus))
    kernel = ctypes.WinDLL("kernel32")  # type: ignore[attr-defined,unused-ignore]
    return status.free if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else None
