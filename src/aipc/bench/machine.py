"""The machine, as far as a reader of the figures must know it."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil

from aipc import hardware

# More than the caches of any processor hold, and little beside the model.
_READ_BYTES = 2**29
_PACKAGES = ("aipc", "numpy", "onnxruntime", "openvino", "tokenizers", "windowsml")


def machine() -> dict[str, str | int | None]:
    """Processor, memory and system."""
    return {
        "cpu": hardware.cpu().name,
        "logical_cpus": os.cpu_count(),
        "physical_cpus": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Of aipc and of the packages that compute for it."""
    found = {item.name.lower(): item.version for item in metadata.distributions() if item.name}
    return {name: version for name, version in sorted(found.items()) if name.startswith(_PACKAGES)}


def on_mains() -> bool | None:
    """Whether the machine draws no power from a battery; None where it has none, or nothing says so."""
    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return None if battery is None else battery.power_plugged


def memory_bandwidth() -> float:
    """Bytes a second that all cores together read from the system's memory, best of five."""
    cores = os.cpu_count() or 1
    arrays = [np.ones(_READ_BYTES // 8 // cores, np.uint64) for _ in range(cores)]
    seconds = []
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(5):
            start = time.perf_counter()
            list(pool.map(np.max, arrays))
            seconds.append(time.perf_counter() - start)
    return sum(array.nbytes for array in arrays) / min(seconds)


def child_processes() -> set[psutil.Process]:
    """Every process below this one."""
    return set(psutil.Process().children(recursive=True))


def peak_bytes(processes: Iterable[psutil.Process]) -> int | None:
    """The most resident memory of each process since its start, as the system counted it, added up.

    None where there are no processes or the system does not count it.
    """
    try:
        peaks = [_peak_bytes(process) for process in processes]
    except (psutil.Error, OSError):
        return None
    known = [peak for peak in peaks if peak is not None]
    return sum(known) if known and len(known) == len(peaks) else None


def _peak_bytes(process: psutil.Process) -> int | None:
    if sys.platform == "win32":
        return int(process.memory_info().peak_wset)
    status = Path(f"/proc/{process.pid}/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    peak = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    return None if peak is None else 1024 * int(peak)
