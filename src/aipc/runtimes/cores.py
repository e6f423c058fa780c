"""How many cores there are for us. Two threads on one core share its arithmetic: no faster than one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def physical_cores() -> int:
    """The physical cores that this process may run on; the logical ones where nothing more is known."""
    if sys.platform == "win32":
        return _windows_cores() or os.cpu_count() or 1
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    return len(_linux_cores(os.sched_getaffinity(0)))


def _linux_cores(allowed: set[int], topology: str = _TOPOLOGY) -> set[str]:
    """A word for each core that has one of the `allowed` threads: the list of its threads."""
    cores = set()
    for thread in allowed:
        path = Path(topology.format(thread))
        cores.add(path.read_text(encoding="utf-8").strip() if path.is_file() else str(thread))
    return cores


if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    class _Processor(ctypes.Structure):
        """SYSTEM_LOGICAL_PROCESSOR_INFORMATION of winnt.h; the last field is a union of 16 bytes."""

        _fields_ = (
            ("ProcessorMask", ctypes.c_size_t),
            ("Relationship", ctypes.c_int),
            ("Details", ctypes.c_uint64 * 2),
        )

    _PROCESSOR_CORE = 0

    def _windows_cores() -> int:
        """The cores of this process's group of at most 64 threads; 0 where Windows does not say."""
        ask = ctypes.WinDLL("kernel32").GetLogicalProcessorInformation
        size = wintypes.DWORD(0)
        ask(None, ctypes.byref(size))
        answer = (_Processor * (size.value // ctypes.sizeof(_Processor)))()
        if not ask(answer, ctypes.byref(size)):
            return 0
        return sum(entry.Relationship == _PROCESSOR_CORE for entry in answer)
