"""Every device of this machine that has counters."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from aipc.hardware import linux, processors
from aipc.monitor.counters import Probe
from aipc.monitor.energy import package_energy
from aipc.monitor.fdinfo import DrmClients
from aipc.monitor.host import WatchedProcesses, probe_cpu
from aipc.monitor.linux import probe


class Devices(Protocol):
    """What there is to read."""

    def probes(self) -> Iterable[Probe]:
        """NPUs and GPUs first, the CPU last. Called for each sample: devices come and go."""


class LinuxDevices:
    """Those that the kernel lists when it is started.

    root   where sys, proc and dev are: a test's own, or the machine's
    """

    def __init__(self, watched: WatchedProcesses, root: Path = Path("/")) -> None:
        clients = DrmClients(watched.pids, root / "proc")
        *found, cpu = linux.processors(root)
        self._probes = [
            *(probe(each, clients) for each in found),
            probe_cpu(cpu.name, watched, package_energy(root)),
        ]

    def probes(self) -> list[Probe]:
        """The same ones each time: one that was unplugged says so."""
        return self._probes


def devices(watched: WatchedProcesses) -> Devices:
    """Those of this machine."""
    if sys.platform == "win32":
        import ctypes

        from aipc.monitor.pdh import PdhQuery
        from aipc.monitor.windows import WindowsDevices

        return WindowsDevices(processors(), watched, PdhQuery(ctypes.WinDLL("pdh")))
    return LinuxDevices(watched)
