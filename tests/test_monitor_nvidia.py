"""NVIDIA's counters, from a library that answers as NVML does."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from aipc.hardware import Processor
from aipc.monitor import COUNTERS, DeviceSample, NotReadable, counters, nvidia
from aipc.monitor.counters import Probe

OWN = 4242
CARD = Processor("discrete GPU", "NVIDIA", "GeForce", address="0000:01:00.0", directory=Path("/sys"))


class NVMLError(Exception):
    pass


class NotFoundError(NVMLError):
    pass


class Nvml:
    """The module pynvml, with one GPU."""

    NVML_CLOCK_SM = 1
    NVMLError, NVMLError_NotFound = NVMLError, NotFoundError

    def __init__(self) -> None:
        self.failing: dict[str, str] = {}
        self.energy_mj = 5_000_000
        self.noted: list[Any] = []
        self.kinds: list[str] = []
        self.running = [SimpleNamespace(pid=OWN, usedGpuMemory=3 * 2**30)]

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in object.__getattribute__(self, "failing"):

            def fail(*arguments: Any) -> None:
                raise NVMLError(self.failing[name])

            return fail
        return object.__getattribute__(self, name)

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByPciBusId(self, address: bytes) -> str:  # noqa: N802
        assert address == b"0000:01:00.0"
        return "a handle"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.kinds)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetPciInfo(self, handle: int) -> Any:  # noqa: N802
        vendor, _, device = self.kinds[handle].partition(":")
        return SimpleNamespace(pciDeviceId=int(device, 16) << 16 | int(vendor, 16))

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=87, memory=40)

    def nvmlDeviceGetProcessUtilization(self, handle: str, since_us: int) -> list[Any]:  # noqa: N802
        fresh = [each for each in self.noted if each.timeStamp > since_us]
        if not fresh:
            raise NotFoundError
        return fresh

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(used=4 * 2**30, total=16 * 2**30)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:  # noqa: N802
        return [*self.running, SimpleNamespace(pid=7, usedGpuMemory=2**30)]

    def nvmlDeviceGetClockInfo(self, handle: str, clock: int) -> int:  # noqa: N802
        return 2500 if clock == self.NVML_CLOCK_SM else 9000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        return self.energy_mj


def note(pid: int, at_us: int, percent: int) -> Any:
    return SimpleNamespace(pid=pid, timeStamp=at_us, smUtil=percent)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> Nvml:
    library = Nvml()
    monkeypatch.setitem(sys.modules, "pynvml", library)  # type: ignore[arg-type]
    return library


def probe() -> Probe:
    return Probe("0000:01:00.0", "GeForce", "discrete GPU", nvidia.counters(CARD, lambda: {OWN}))


def after(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> DeviceSample:
    """The second of two samples, two seconds and 600 J after the first."""
    clock = SimpleNamespace(now_s=5.0)
    monkeypatch.setattr(counters, "time", SimpleNamespace(perf_counter=lambda: clock.now_s))
    card = probe()
    card.read()
    clock.now_s += 2
    nvml.energy_mj += 600_000
    nvml.noted += [note(OWN, 20, 60), note(OWN, 30, 80), note(7, 30, 15)]
    return card.read()


def test_a_gpu(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml.noted = [note(OWN, 10, 1)]
    found = after(nvml, monkeypatch)
    assert (found.utilisation, found.own_utilisation) == (pytest.approx(0.87), pytest.approx(0.7))
    assert (found.memory_used_bytes, found.memory_total_bytes) == (4 * 2**30, 16 * 2**30)
    assert found.own_memory_bytes == 3 * 2**30
    assert (found.frequency_mhz, found.power_w, found.energy_j) == (2500, 300, 600)
    assert not found.not_readable


def test_nothing_of_ours_ran(nvml: Nvml) -> None:
    found = probe().read()
    assert (found.own_utilisation, found.own_memory_bytes) == (0, 3 * 2**30)
    # Perhaps the driver knows us by another number.
    nvml.running = []
    found = probe().read()
    assert (found.own_utilisation, found.own_memory_bytes) == (None, None)


def test_on_windows_a_gpu_is_known_by_its_kind(nvml: Nvml) -> None:
    nvml.kinds = ["10de:2d04", "10de:1234"]
    luid = "0x00000000_0x0000C9A5"

    def power(pci_id: str) -> object:
        found = nvidia.counters(
            Processor("discrete GPU", "NVIDIA", "GeForce", address=luid, pci_id=pci_id), set
        )
        return found["power_w"]

    assert isinstance(power("10de:2d04"), counters.Rate)
    assert power("10de:9999") == NotReadable("NVIDIA's library shows 0 GPUs of its kind")
    nvml.kinds = ["10de:2d04", "10de:2d04"]
    assert power("10de:2d04") == NotReadable("NVIDIA's library shows 2 GPUs of its kind")


def test_each_counter_fails_alone(nvml: Nvml, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = after(nvml, monkeypatch)
    names = {
        "nvmlDeviceGetUtilizationRates": {"utilisation"},
        "nvmlDeviceGetProcessUtilization": {"own_utilisation"},
        "nvmlDeviceGetMemoryInfo": {"memory_used_bytes", "memory_total_bytes"},
        "nvmlDeviceGetComputeRunningProcesses": {"own_memory_bytes", "own_utilisation"},
        "nvmlDeviceGetClockInfo": {"frequency_mhz"},
        "nvmlDeviceGetTotalEnergyConsumption": {"power_w", "energy_j"},
    }
    for function, touched in names.items():
        nvml.noted = [note(OWN, 10, 1)]
        nvml.failing = {function: "Not Supported"}
        found = after(nvml, monkeypatch)
        assert found.not_readable.keys() == touched
        for name in touched:
            assert found.not_readable[name].reason == "NVIDIA's library says: Not Supported"
        assert all(getattr(found, name) == getattr(whole, name) for name in set(COUNTERS) - touched)


def test_a_driver_that_tells_no_memory_of_processes(nvml: Nvml) -> None:
    nvml.running = [SimpleNamespace(pid=OWN, usedGpuMemory=None)]
    assert probe().read().own_memory_bytes is None


@pytest.mark.parametrize("function", ["nvmlInit", "nvmlDeviceGetHandleByPciBusId"])
def test_without_a_driver_every_counter_says_so(nvml: Nvml, function: str) -> None:
    nvml.failing = {function: "Driver Not Loaded"}
    found = probe().read()
    assert {why.reason for why in found.not_readable.values()} == {"NVIDIA's library says: Driver Not Loaded"}
    assert len(found.not_readable) == len(COUNTERS)
