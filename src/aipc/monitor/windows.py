"""The counters of Windows: every NPU and GPU is in the performance object "GPU Engine".

source   the instance names of Windows: pid_P_luid_0xH_0xL_phys_N_eng_N_engtype_T, luid_0xH_0xL_phys_N
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial

from aipc.hardware import Processor
from aipc.monitor import nvidia
from aipc.monitor.counters import Counter, CounterError, Probe, Rate, Total
from aipc.monitor.host import WatchedProcesses, probe_cpu
from aipc.monitor.pdh import Query
from aipc.monitor.sample import COUNTERS, NotReadable
from aipc.types import DeviceKind

ENGINES = r"\GPU Engine(*)\Utilization Percentage"
DEDICATED = r"\GPU Adapter Memory(*)\Dedicated Usage"
SHARED = r"\GPU Adapter Memory(*)\Shared Usage"
PROCESS_DEDICATED = r"\GPU Process Memory(*)\Dedicated Usage"
PROCESS_SHARED = r"\GPU Process Memory(*)\Shared Usage"
# In picowatt-hours.
ENERGY = r"\Energy Meter(*)\Energy"

_INSTANCE = re.compile(
    r"(?:pid_(?P<pid>\d+)_)?luid_(?P<luid>0x[0-9a-f]+_0x[0-9a-f]+)_phys_(?P<phys>\d+)"
    r"(?:_eng_(?P<engine>\d+)_engtype_(?P<type>.*))?",
    re.IGNORECASE,
)
_J_PER_PWH = 3600e-12
_NO_DRIVER = NotReadable("it has no driver", "aipc doctor says which one it needs")
_NO_COUNTER = NotReadable("Windows has no counter for it")


class WindowsDevices:
    """Those that Windows lists, and NPUs that only their counters show.

    found   the processors that are known, the CPU last
    """

    def __init__(self, found: Sequence[Processor], watched: WatchedProcesses, query: Query) -> None:
        self._query = query
        self._watched = watched
        self._engines = _Engines(self._query, watched)
        *others, cpu = found
        self._probes = {each.address.lower(): self._probe(each) for each in others if each.address}
        self._without_driver = [
            Probe(each.pci_id or each.name, each.name, each.kind, dict.fromkeys(COUNTERS, _NO_DRIVER))
            for each in others
            if not each.address
        ]
        self._cpu = probe_cpu(cpu.name, watched, _package_energy(self._query))

    def probes(self) -> Iterator[Probe]:
        """NPUs and GPUs, the CPU last."""
        self._query.collect()
        for luid in self._engines.npus():
            if luid.lower() not in self._probes:
                self._probes[luid.lower()] = self._probe(Processor("NPU", "", "NPU", address=luid))
        yield from self._probes.values()
        yield from self._without_driver
        yield self._cpu

    def _probe(self, processor: Processor) -> Probe:
        luid, kind = str(processor.address), processor.kind
        total = processor.memory_bytes
        counters: dict[str, Counter | NotReadable] = {
            "utilisation": partial(self._engines.share, luid, own=False),
            "own_utilisation": partial(self._engines.share, luid, own=True),
            "memory_used_bytes": partial(self._engines.memory_bytes, luid, kind),
            "own_memory_bytes": partial(self._engines.own_memory_bytes, luid, kind),
            "memory_total_bytes": NotReadable("it has no memory of its own, but uses the system's"),
            "frequency_mhz": _NO_COUNTER,
            "power_w": _NO_COUNTER,
            "energy_j": _NO_COUNTER,
        }
        if total is not None:
            counters["memory_total_bytes"] = lambda: total
        if processor.vendor == "NVIDIA":
            by_nvml = nvidia.counters(processor, self._watched.pids)
            counters |= {name: by_nvml[name] for name in ("frequency_mhz", "power_w", "energy_j")}
        return Probe(luid, processor.name, kind, counters)


class _Engines:
    """What Windows counts for each engine of each adapter, by process."""

    def __init__(self, query: Query, watched: WatchedProcesses) -> None:
        self._query = query
        self._watched = watched

    def npus(self) -> list[str]:
        """The LUIDs of adapters all of whose engines compute: an NPU draws, copies and decodes nothing."""
        types: dict[str, set[str]] = defaultdict(set)
        try:
            for luid, _, _, engine_type, _ in self._read(ENGINES):
                types[luid].add(engine_type.lower())
        except CounterError:
            return []
        return [luid for luid, known in types.items() if all(map(_computes, known))]

    def share(self, luid: str, *, own: bool) -> float:
        """The busy share of the busiest engine.

        raises   CounterError
        """
        pids = self._watched.pids()
        shares: dict[tuple[str, str], float] = defaultdict(float)
        for found, pid, engine, _, percent in self._read(ENGINES):
            if found.lower() == luid.lower() and (not own or pid in pids):
                shares[engine] += percent / 100
        return min(max(shares.values(), default=0.0), 1.0)

    def memory_bytes(self, luid: str, kind: DeviceKind) -> float:
        """What all processes hold.

        raises   CounterError
        """
        found = self._read(DEDICATED if kind == "discrete GPU" else SHARED)
        sizes = [value for seen, _, _, _, value in found if seen.lower() == luid.lower()]
        if not sizes:
            raise CounterError(NotReadable("Windows shows no memory counter for it"))
        return sum(sizes)

    def own_memory_bytes(self, luid: str, kind: DeviceKind) -> float:
        """What the watched processes hold.

        raises   CounterError
        """
        found = self._read(PROCESS_DEDICATED if kind == "discrete GPU" else PROCESS_SHARED)
        own = self._watched.pids()
        return sum(value for seen, pid, _, _, value in found if seen.lower() == luid.lower() and pid in own)

    def _read(self, path: str) -> Iterator[tuple[str, int, tuple[str, str], str, float]]:
        """LUID, process, engine, its type and the value of each instance."""
        for name, value in self._query.values(path).items():
            match = _INSTANCE.fullmatch(name)
            if match:
                engine = (match["phys"], match["engine"] or "")
                yield match["luid"], int(match["pid"] or 0), engine, match["type"] or "", value


def _computes(engine_type: str) -> bool:
    return engine_type.startswith("compute") or engine_type == "neural"


def _package_energy(query: Query) -> dict[str, Counter | NotReadable]:
    """Of all processor packages; on laptops whose maker put no other meter in."""

    def picowatt_hours() -> float:
        packages = [value for name, value in query.values(ENERGY).items() if _is_package(name)]
        if not packages:
            raise CounterError(NotReadable("this machine has no energy meter that Windows reads"))
        return sum(packages)

    return {
        "power_w": Rate(picowatt_hours, _J_PER_PWH),
        "energy_j": Total(picowatt_hours, scale=_J_PER_PWH),
    }


def _is_package(name: str) -> bool:
    return name.lower().startswith("rapl_package") and name.lower().endswith("_pkg")
