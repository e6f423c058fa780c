"""The counters of NVIDIA's GPUs, which NVIDIA's own library reads: pip install "aipc[nvidia]"."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

from aipc.errors import MissingExtraError, require
from aipc.hardware import Processor
from aipc.monitor.counters import Counter, CounterError, Rate, Total
from aipc.monitor.sample import COUNTERS, NotReadable


def counters(
    processor: Processor, own_pids: Callable[[], Collection[int]]
) -> dict[str, Counter | NotReadable]:
    """How to read a GPU; every counter is NotReadable where the library is not there."""
    try:
        nvml = require("pynvml", "nvidia")
    except MissingExtraError as exc:
        return dict.fromkeys(COUNTERS, NotReadable("NVIDIA's counters need a package", exc.hint))
    try:
        nvml.nvmlInit()
        gpu = _Gpu(nvml, _handle(nvml, processor), own_pids)
    except CounterError as exc:
        return dict.fromkeys(COUNTERS, exc.why)
    except nvml.NVMLError as exc:
        why = NotReadable(f"NVIDIA's library says: {exc}", "install NVIDIA's driver, or start it: nvidia-smi")
        return dict.fromkeys(COUNTERS, why)
    return {
        "utilisation": partial(gpu.read, gpu.utilisation),
        "own_utilisation": partial(gpu.read, gpu.own_utilisation),
        "memory_used_bytes": partial(gpu.read, gpu.memory_used_bytes),
        "memory_total_bytes": partial(gpu.read, gpu.memory_total_bytes),
        "own_memory_bytes": partial(gpu.read, gpu.own_memory_bytes),
        "frequency_mhz": partial(gpu.read, gpu.frequency_mhz),
        "power_w": Rate(partial(gpu.read, gpu.energy_mj), 1e-3),
        "energy_j": Total(partial(gpu.read, gpu.energy_mj), scale=1e-3),
    }


def _handle(nvml: Any, processor: Processor) -> Any:
    """NVML's handle of a GPU. It knows addresses of PCI, and no LUID.

    raises   CounterError where several are alike, or none is; NVMLError
    """
    if processor.directory is not None:
        return nvml.nvmlDeviceGetHandleByPciBusId(str(processor.address).encode())
    handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
    alike = [each for each in handles if _pci_id(nvml.nvmlDeviceGetPciInfo(each)) == processor.pci_id]
    if len(alike) != 1:
        raise CounterError(NotReadable(f"NVIDIA's library shows {len(alike)} GPUs of its kind"))
    return alike[0]


def _pci_id(info: Any) -> str:
    """Vendor and device, from the number that holds both."""
    return f"{info.pciDeviceId & 0xFFFF:04x}:{info.pciDeviceId >> 16:04x}"


class _Gpu:
    """A GPU behind its handle. Each method may raise an NVMLError; `read` makes it a CounterError."""

    def __init__(self, nvml: Any, handle: Any, own_pids: Callable[[], Collection[int]]) -> None:
        self._nvml = nvml
        self._handle = handle
        self._own_pids = own_pids
        self._seen_us = 0

    def read(self, counter: Counter) -> float:
        """What a counter of this GPU says.

        raises   CounterError
        """
        try:
            return counter()
        except self._nvml.NVMLError as exc:
            raise CounterError(NotReadable(f"NVIDIA's library says: {exc}")) from exc

    def utilisation(self) -> float:
        """Of the last sixth of a second to second, by the GPU's age."""
        return float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu) / 100

    def own_utilisation(self) -> float:
        """The mean of what was noted of the watched processes since the last call."""
        self._running()
        try:
            noted = self._nvml.nvmlDeviceGetProcessUtilization(self._handle, self._seen_us)
        except self._nvml.NVMLError_NotFound:
            return 0.0  # nothing ran since then
        self._seen_us = max((each.timeStamp for each in noted), default=self._seen_us)
        shares: dict[int, list[float]] = {}
        own = self._own_pids()
        for each in noted:
            if each.pid in own:
                shares.setdefault(each.pid, []).append(each.smUtil / 100)
        return min(sum(sum(share) / len(share) for share in shares.values()), 1.0)

    def memory_used_bytes(self) -> float:
        """Of all processes."""
        return float(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).used)

    def memory_total_bytes(self) -> float:
        """Of the board."""
        return float(self._nvml.nvmlDeviceGetMemoryInfo(self._handle).total)

    def own_memory_bytes(self) -> float:
        """Of the watched processes, where the driver tells it."""
        held = [each.usedGpuMemory for each in self._running()]
        if None in held:
            raise CounterError(NotReadable("the driver does not tell the memory of processes"))
        return float(sum(held))

    def _running(self) -> list[Any]:
        """The watched processes that compute here. None is no 0: in a container they have other numbers."""
        own = self._own_pids()
        every = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)
        found = [each for each in every if each.pid in own]
        if not found:
            raise CounterError(NotReadable("no watched process computes on it, as far as the driver tells"))
        return found

    def frequency_mhz(self) -> float:
        """Of the processors that compute."""
        return float(self._nvml.nvmlDeviceGetClockInfo(self._handle, self._nvml.NVML_CLOCK_SM))

    def energy_mj(self) -> float:
        """Since the driver was loaded."""
        return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle))
