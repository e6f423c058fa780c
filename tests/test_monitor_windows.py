"""The counters of Windows, from instance names as Windows writes them, and the calls of pdh.dll."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from aipc.hardware import Processor
from aipc.monitor import COUNTERS, DeviceSample, counters, windows
from aipc.monitor.counters import CounterError
from aipc.monitor.host import WatchedProcesses
from aipc.monitor.pdh import PdhQuery
from aipc.monitor.sample import NotReadable
from aipc.monitor.windows import WindowsDevices

OWN = 8684
NPU, IGPU, CARD = "0x00000000_0x0000BB15", "0x00000000_0x0000C9A5", "0x00000000_0x00010A2F"

LAPTOP = [
    Processor("integrated GPU", "Intel", "Intel(R) Arc(TM) Graphics", address=IGPU),
    Processor("discrete GPU", "NVIDIA", "GeForce RTX 4050", address=CARD, memory_bytes=6 * 2**30),
    Processor("NPU", "Intel", "Intel(R) AI Boost", address=NPU),
    Processor("CPU", "Intel", "Intel(R) Core(TM) Ultra 7 155H"),
]


def engine(pid: int, luid: str, number: int, kind: str) -> str:
    return f"pid_{pid}_luid_{luid}_phys_0_eng_{number}_engtype_{kind}"


ENGINES = {
    engine(OWN, NPU, 0, "Compute"): 61.5,
    engine(1234, NPU, 0, "Compute"): 10.0,
    engine(OWN, NPU, 1, "Neural"): 3.0,
    engine(OWN, IGPU, 0, "3D"): 1.0,
    engine(4, IGPU, 0, "3D"): 12.0,
    engine(1234, IGPU, 0, "3D"): 8.0,
    engine(OWN, IGPU, 5, "Compute_0"): 15.0,
    engine(OWN, IGPU, 1, "VideoDecode"): 0.0,
    engine(OWN, CARD, 3, "High Priority Compute"): 0.0,
    engine(OWN, CARD, 0, "3D"): 104.2,
    # What is no instance of an adapter is left out.
    "_Total": 99.0,
    "pid_x_luid_0x0_phys_0_eng_0_engtype_3D": 99.0,
}


class Recorded:
    """A query of counters that were written down."""

    def __init__(self) -> None:
        self.collected = 0
        self.counters: dict[str, Mapping[str, float] | str] = {
            windows.ENGINES: dict(ENGINES),
            windows.DEDICATED: {f"luid_{CARD}_phys_0": 3e9, f"luid_{IGPU}_phys_0": 0.0},
            windows.SHARED: {f"luid_{NPU}_phys_0": 2e9, f"luid_{IGPU}_phys_0": 7e8},
            windows.PROCESS_DEDICATED: {f"pid_{OWN}_luid_{CARD}_phys_0": 1e9},
            windows.PROCESS_SHARED: {
                f"pid_{OWN}_luid_{NPU}_phys_0": 1.5e9,
                f"pid_4_luid_{NPU}_phys_0": 5e8,
            },
            windows.ENERGY: {
                "RAPL_Package0_PKG": 2.0e15,
                "RAPL_Package0_PP0": 1.9e15,
                "RAPL_Package1_PKG": 1.0e15,
                "_Total": 9e15,
            },
        }

    def collect(self) -> None:
        self.collected += 1

    def values(self, path: str) -> Mapping[str, float]:
        found = self.counters[path]
        if isinstance(found, str):
            raise CounterError(NotReadable(found))
        return found


@pytest.fixture(autouse=True)
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


class Watching(WatchedProcesses):
    def __init__(self) -> None:
        pass

    def processes(self) -> list[psutil.Process]:
        return []

    def pids(self) -> frozenset[int]:
        return frozenset({OWN})


def read(devices: WindowsDevices) -> dict[str, DeviceSample]:
    return {each.id: each for each in (probe.read() for probe in devices.probes())}


def test_the_busiest_engine_counts_and_the_watched_process_is_told_apart() -> None:
    query = Recorded()
    found = read(WindowsDevices(LAPTOP, Watching(), query))
    assert [each.kind for each in found.values()] == ["integrated GPU", "discrete GPU", "NPU", "CPU"]
    assert query.collected == 1
    npu, igpu, card = found[NPU], found[IGPU], found[CARD]
    assert (npu.utilisation, npu.own_utilisation) == (pytest.approx(0.715), pytest.approx(0.615))
    assert (igpu.utilisation, igpu.own_utilisation) == (pytest.approx(0.21), pytest.approx(0.15))
    assert card.utilisation == 1.0
    assert (npu.memory_used_bytes, npu.own_memory_bytes) == (2_000_000_000, 1_500_000_000)
    assert (card.memory_used_bytes, card.own_memory_bytes) == (3_000_000_000, 1_000_000_000)
    assert (card.memory_total_bytes, npu.memory_total_bytes) == (6 * 2**30, None)
    assert npu.not_readable["frequency_mhz"].reason == "Windows has no counter for it"
    # What Windows does not count, NVIDIA's library does, where it is installed.
    assert card.not_readable["power_w"].remedy == 'pip install "aipc[nvidia]"'


def test_an_npu_that_nothing_lists_is_known_by_its_engines() -> None:
    query = Recorded()
    idle = {name: value for name, value in ENGINES.items() if NPU not in name}
    query.counters[windows.ENGINES] = idle
    devices = WindowsDevices([LAPTOP[0], LAPTOP[-1]], Watching(), query)
    assert list(read(devices)) == [IGPU, "CPU"]
    # It shows up with its first use; the card, which draws as well as it computes, is no NPU.
    query.counters[windows.ENGINES] = ENGINES
    found = read(devices)
    assert [(each.id, each.kind) for each in found.values()] == [
        (IGPU, "integrated GPU"),
        (NPU, "NPU"),
        ("CPU", "CPU"),
    ]
    assert found[NPU].utilisation == pytest.approx(0.715)
    query.counters[windows.ENGINES] = idle
    assert read(devices)[NPU].utilisation == 0


def test_the_energy_of_every_package(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now_s=5.0)
    monkeypatch.setattr(counters, "time", SimpleNamespace(perf_counter=lambda: clock.now_s))
    query = Recorded()
    devices = WindowsDevices(LAPTOP, Watching(), query)
    read(devices)
    clock.now_s += 2
    # 20 W and 5 W for two seconds: a picowatt-hour is 3.6e-9 J.
    query.counters[windows.ENERGY] = {
        "RAPL_Package0_PKG": 2.0e15 + 40 / 3.6e-9,
        "RAPL_Package1_PKG": 1.0e15 + 10 / 3.6e-9,
    }
    cpu = read(devices)["CPU"]
    assert (cpu.energy_j, cpu.power_w) == (pytest.approx(50.0), pytest.approx(25.0))


def test_each_counter_that_is_missing_fails_alone() -> None:
    readable = {
        windows.ENGINES: {"utilisation", "own_utilisation"},
        windows.DEDICATED: {"memory_used_bytes"},
        windows.PROCESS_DEDICATED: {"own_memory_bytes"},
        windows.ENERGY: set(),
    }
    for path, names in readable.items():
        query = Recorded()
        before = read(WindowsDevices(LAPTOP, Watching(), query))[CARD]
        query.counters[path] = "this Windows has no such counters"
        now = read(WindowsDevices(LAPTOP, Watching(), query))[CARD]
        for name in COUNTERS:
            if name in names:
                assert now.not_readable[name].reason == "this Windows has no such counters"
            else:
                assert getattr(now, name) == getattr(before, name)


def test_an_adapter_without_instances_and_a_device_without_a_driver() -> None:
    query = Recorded()
    query.counters = {path: {} for path in query.counters}
    found = read(
        WindowsDevices(
            [Processor("NPU", "Intel", "Intel AI Boost", pci_id="8086:7d1d"), *LAPTOP], Watching(), query
        )
    )
    # Nothing uses it: that is known to be 0; what memory it holds is not known.
    assert (found[IGPU].utilisation, found[IGPU].memory_used_bytes) == (0, None)
    assert found["8086:7d1d"].utilisation is None
    assert {why.reason for why in found["8086:7d1d"].not_readable.values()} == {"it has no driver"}
    assert found["CPU"].not_readable["energy_j"].reason.startswith("this machine has no energy meter")


class Pdh:
    """Stands for pdh.dll: writes where the pointers say, as the real one does."""

    def __init__(self) -> None:
        self.added: list[str] = []
        self.asked = 0
        self.instances: list[tuple[str, int, float]] = []
        self.names: list[Any] = []
        self.status = 0

    def PdhOpenQueryW(self, source: None, user: Any, query: Any) -> int:  # noqa: N802
        query._obj.value = 0x1234
        return 0

    def PdhAddEnglishCounterW(self, query: Any, path: Any, user: Any, counter: Any) -> int:  # noqa: N802
        self.asked += 1
        if "Energy" in path.value:
            return 0xC0000BB8 - 2**32  # ctypes gives a status as a signed number
        self.added.append(path.value)
        counter._obj.value = len(self.added)
        return 0

    def PdhCollectQueryData(self, query: Any) -> int:  # noqa: N802
        assert query.value == 0x1234
        return 0

    def PdhGetFormattedCounterArrayW(  # noqa: N802
        self, counter: Any, kind: int, size: Any, count: Any, buffer: Any
    ) -> int:
        if self.status:
            return self.status
        needed = 24 * len(self.instances)
        if size._obj.value < needed:
            size._obj.value = needed
            return 0x800007D2 - 2**32
        for index, (name, status, value) in enumerate(self.instances):
            at = ctypes.addressof(buffer) + 24 * index
            self.names.append(ctypes.create_unicode_buffer(name))
            ctypes.c_void_p.from_address(at).value = ctypes.addressof(self.names[-1])
            ctypes.c_uint32.from_address(at + 8).value = status
            ctypes.c_double.from_address(at + 16).value = value
        count._obj.value = len(self.instances)
        return 0


def test_what_pdh_writes_is_read_from_its_buffer() -> None:
    library = Pdh()
    library.instances = [("a", 0, 1.5), ("an ended process", 0xC0000BBA, 7.0), ("b", 1, 250.0)]
    query = PdhQuery(library)
    assert query.values(windows.ENGINES) == {"a": 1.5, "b": 250.0}
    assert query.values(windows.ENGINES) == {"a": 1.5, "b": 250.0}
    assert library.added == [windows.ENGINES]
    library.instances = []
    assert query.values(windows.ENGINES) == {}


def test_what_pdh_refuses_has_a_reason_and_is_asked_for_once() -> None:
    library = Pdh()
    query = PdhQuery(library)
    for _ in range(2):
        with pytest.raises(CounterError, match="no such counters") as caught:
            query.values(windows.ENERGY)
        assert "lodctr" in caught.value.why.remedy
    assert library.asked == 1
    library.status = 0xC0000BC6 - 2**32
    with pytest.raises(CounterError, match="second sample"):
        query.values(windows.ENGINES)
    library.status = 0xC0000001 - 2**32
    with pytest.raises(CounterError, match="0xC0000001"):
        query.values(windows.ENGINES)
