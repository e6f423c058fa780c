"""The counters that each driver of Linux has.

source   Documentation/gpu and Documentation/ABI/testing of Linux, and drivers/accel/ivpu/ivpu_sysfs.c
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from aipc.hardware import Processor
from aipc.monitor.counters import (
    Counter,
    CounterError,
    Integral,
    NumberFile,
    Probe,
    Rate,
    Total,
    read_text,
)
from aipc.monitor.energy import IN_THE_PACKAGE
from aipc.monitor.fdinfo import DrmClients
from aipc.monitor.sample import COUNTERS, NotReadable

_Counters = dict[str, Counter | NotReadable]

_SHARED_MEMORY = NotReadable("it has no memory of its own, but uses the system's")
_OLD_KERNEL = "a newer kernel has it: Linux {} or later"
_OWN_PROCESSES = "utilisation and memory are those of your own processes; root sees all"


def probe(processor: Processor, clients: DrmClients) -> Probe:
    """How to read an NPU or a GPU."""
    address, directory = processor.address, processor.directory
    assert address is not None  # noqa: S101 - only the CPU has none
    assert directory is not None  # noqa: S101
    counters_of = _DRIVERS.get(processor.driver or "")
    note = ""
    if counters_of is None:
        counters = _unknown_driver(processor.driver)
    else:
        counters = counters_of(processor, directory, clients)
        note = _OWN_PROCESSES if processor.driver in _SEEN_BY_PROCESS else ""
    return Probe(address, processor.name, processor.kind, counters, note)


def _intel_npu(processor: Processor, directory: Path, clients: DrmClients) -> _Counters:
    busy_us = NumberFile(directory / "npu_busy_time_us", missing=_OLD_KERNEL.format("6.11"))
    return {
        "utilisation": Rate(busy_us, 1e-6, most=1.0),
        "own_utilisation": NotReadable("its driver does not tell processes apart"),
        "memory_used_bytes": NumberFile(
            directory / "npu_memory_utilization", missing=_OLD_KERNEL.format("6.15")
        ),
        "memory_total_bytes": _SHARED_MEMORY,
        "own_memory_bytes": NotReadable("its driver does not tell processes apart"),
        "frequency_mhz": NumberFile.first_of(
            (directory / "freq/current_freq", directory / "npu_current_frequency_mhz"),
            missing=_OLD_KERNEL.format("6.15"),
        ),
        "power_w": IN_THE_PACKAGE,
        "energy_j": IN_THE_PACKAGE,
    }


def _amd_npu(processor: Processor, directory: Path, clients: DrmClients) -> _Counters:
    return {
        **_by_process(processor, clients),
        "memory_total_bytes": _SHARED_MEMORY,
        **(_hwmon_power(directory) or dict.fromkeys(("power_w", "energy_j"), IN_THE_PACKAGE)),
    }


def _i915(processor: Processor, directory: Path, clients: DrmClients) -> _Counters:
    # Newer kernels have a folder for each tile of a card.
    cards = sorted(directory.glob("drm/card*")) or [directory / "drm/card0"]
    frequency = NumberFile.first_of((cards[0] / "gt/gt0/rps_act_freq_mhz", cards[0] / "gt_act_freq_mhz"))
    return {
        **_by_process(processor, clients),
        "frequency_mhz": frequency,
        **_intel_power(processor, directory),
    }


def _xe(processor: Processor, directory: Path, clients: DrmClients) -> _Counters:
    return {
        **_by_process(processor, clients),
        "frequency_mhz": NumberFile(directory / "tile0/gt0/freq0/act_freq"),
        **_intel_power(processor, directory),
    }


def _amdgpu(processor: Processor, directory: Path, clients: DrmClients) -> _Counters:
    hwmon = _hwmon(directory)
    clock = partial(_marked_clock, directory / "pp_dpm_sclk")
    return {
        **_by_process(processor, clients),
        "utilisation": NumberFile(directory / "gpu_busy_percent", 0.01),
        "memory_used_bytes": NumberFile(directory / "mem_info_vram_used"),
        "memory_total_bytes": NumberFile(directory / "mem_info_vram_total"),
        "frequency_mhz": NumberFile(hwmon / "freq1_input", 1e-6)
        if (hwmon / "freq1_input").exists()
        else clock,
        **(_hwmon_power(directory) or {}),
    }


def _nvidia(processor: Processor, directory: Path, clients: DrmClients) -> _Counters:
    from aipc.monitor import nvidia

    return nvidia.counters(processor, clients.own_pids)


def _unknown_driver(driver: str | None) -> _Counters:
    why = NotReadable(
        f"the monitor does not know the counters of the driver {driver}"
        if driver
        else "the kernel has no driver for it",
        "aipc doctor says which driver the device needs",
    )
    return dict.fromkeys(COUNTERS, why)


_DRIVERS: dict[str, Callable[[Processor, Path, DrmClients], _Counters]] = {
    "intel_vpu": _intel_npu,
    "amdxdna": _amd_npu,
    "i915": _i915,
    "xe": _xe,
    "amdgpu": _amdgpu,
    "nvidia": _nvidia,
}
_SEEN_BY_PROCESS = {"amdxdna", "i915", "xe"}


def _by_process(processor: Processor, clients: DrmClients) -> _Counters:
    """What the kernel tells of the processes that use a device."""
    address, discrete = str(processor.address), processor.kind == "discrete GPU"
    total = processor.memory_bytes
    counters: _Counters = {
        "utilisation": partial(clients.share, address, own=False),
        "own_utilisation": partial(clients.share, address, own=True),
        "memory_used_bytes": partial(clients.memory_bytes, address, own=False, discrete=discrete),
        "own_memory_bytes": partial(clients.memory_bytes, address, own=True, discrete=discrete),
    }
    if not discrete:
        counters["memory_total_bytes"] = _SHARED_MEMORY
    elif total is not None:
        counters["memory_total_bytes"] = lambda: total
    return counters


def _hwmon(directory: Path) -> Path:
    return next(iter(sorted(directory.glob("hwmon/hwmon*"))), directory / "hwmon/hwmon0")


def _hwmon_power(directory: Path) -> _Counters | None:
    """Power in microwatts: amdgpu's mean where it has one, else its present value."""
    for name in ("power1_average", "power1_input"):
        path = _hwmon(directory) / name
        if path.exists():
            return {"power_w": NumberFile(path, 1e-6), "energy_j": Integral(NumberFile(path, 1e-6))}
    return None


def _intel_power(processor: Processor, directory: Path) -> _Counters:
    """A card counts microjoules: the whole card's first, the chip's where that is all there is."""
    if processor.kind != "discrete GPU":
        return {"power_w": IN_THE_PACKAGE, "energy_j": IN_THE_PACKAGE}
    hwmon = _hwmon(directory)
    paths = (hwmon / "energy1_input", hwmon / "energy2_input")

    def energy_uj() -> NumberFile:
        return NumberFile.first_of(paths, missing=_OLD_KERNEL.format("6.2 for i915, 6.8 for xe"))

    return {"power_w": Rate(energy_uj(), 1e-6), "energy_j": Total(energy_uj(), scale=1e-6)}


def _marked_clock(path: Path) -> float:
    """The clock that a table of amdgpu marks: "1: 1200Mhz *"."""
    for line in read_text(path).splitlines():
        clock = line.partition(":")[2].split()
        if len(clock) == 2 and clock[1] == "*" and clock[0].lower().removesuffix("mhz").isdigit():
            return int(clock[0].lower().removesuffix("mhz"))
    raise CounterError(NotReadable(f"{path} marks no clock"))
