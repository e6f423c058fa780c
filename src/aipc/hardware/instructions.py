"""The instruction sets of the CPU that decide how fast it computes a model."""

from __future__ import annotations

import importlib
import sys
from contextlib import suppress
from pathlib import Path

from aipc.hardware.linux import fields

# By Linux's words; one of them suffices.
_FLAGS = {
    "AVX2": {"avx2"},
    "VNNI": {"avx_vnni", "avx512_vnni"},
    "AMX": {"amx_int8"},
    "BF16": {"avx512_bf16", "amx_bf16"},
}


def instruction_sets(root: Path = Path("/")) -> dict[str, bool | None]:
    """For "AVX2", "VNNI", "AMX" and "BF16" whether the CPU has it; None where that cannot be read.

    Empty for a processor that is not x86-64.
    """
    if sys.platform == "linux":
        flags = set(dict(fields(root / "proc/cpuinfo", ":")).get("flags", "").split())
        return {name: bool(flags & words) for name, words in _FLAGS.items()} if flags else {}
    found = _numpy_features()
    if not found.get("SSE2"):
        return {}
    # numpy looks for those of AVX-512 only: what it does not find may be there in another form.
    return {
        "AVX2": found.get("AVX2"),
        "VNNI": found.get("AVX512VNNI") or None,
        "AMX": None,
        "BF16": found.get("AVX512BF16") or None,
    }


def _numpy_features() -> dict[str, bool]:
    """What numpy, on every system, finds out about the CPU when it is imported."""
    for name in ("numpy._core._multiarray_umath", "numpy.core._multiarray_umath"):
        with suppress(ImportError):
            return dict(importlib.import_module(name).__cpu_features__)
    return {}
