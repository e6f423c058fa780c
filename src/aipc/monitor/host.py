"""The processor and the system's memory, and the share of the watched process in them."""

from __future__ import annotations

import os
import time

import psutil

from aipc.monitor.counters import Counter, CounterError, Probe
from aipc.monitor.sample import NotReadable

# Finding descendants looks at every process of the machine.
_LOOK_AGAIN_S = 10.0

# Linux counts guests in user and nice, Windows interrupts and deferred calls in system.
_IN_OTHERS = {"guest", "guest_nice", "interrupt", "dpc"}

_GONE = (psutil.NoSuchProcess, psutil.AccessDenied)


class WatchedProcesses:
    """A process and its descendants, without the sampler itself."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._found: list[psutil.Process] = []
        self._look_at_s = 0.0
        self.look_again()

    def pids(self) -> frozenset[int]:
        """Those that were there when it was last looked."""
        return frozenset(process.pid for process in self.processes())

    def processes(self) -> list[psutil.Process]:
        """Those that were there when it was last looked."""
        if time.perf_counter() >= self._look_at_s:
            self.look_again()
        return self._found

    def look_again(self) -> None:
        """Find the descendants of now."""
        self._look_at_s = time.perf_counter() + _LOOK_AGAIN_S
        try:
            root = psutil.Process(self._pid)
            tree = [root, *root.children(recursive=True)]
        except _GONE:
            tree = []
        self._found = [each for each in tree if each.pid != os.getpid()]


def probe_cpu(name: str, watched: WatchedProcesses, energy: dict[str, Counter | NotReadable]) -> Probe:
    """The processor.

    energy   its counters of power, which are not psutil's
    """
    counters: dict[str, Counter | NotReadable] = {
        "utilisation": _CpuShare(),
        "own_utilisation": _OwnCpuShare(watched),
        "memory_used_bytes": _used_bytes,
        "memory_total_bytes": lambda: psutil.virtual_memory().total,
        "own_memory_bytes": lambda: _resident(watched),
        "frequency_mhz": _frequency_mhz,
        **energy,
    }
    return Probe("CPU", name, "CPU", counters)


def _used_bytes() -> float:
    memory = psutil.virtual_memory()
    return float(memory.total - memory.available)


def _frequency_mhz() -> float:
    try:
        found = psutil.cpu_freq()
    except (OSError, NotImplementedError, RuntimeError) as exc:
        raise CounterError(NotReadable(f"the system does not tell it: {exc}")) from exc
    if found is None or not found.current:
        raise CounterError(NotReadable("the system does not tell it, as in most virtual machines"))
    return float(found.current)


class _CpuShare:
    """The busy share of all processors together."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None

    def __call__(self) -> float:
        times = psutil.cpu_times()._asdict()
        total = sum(seconds for name, seconds in times.items() if name not in _IN_OTHERS)
        # Waiting for a disk is idle time.
        busy = total - times["idle"] - times.get("iowait", 0.0)
        last, self._last = self._last, (busy, total)
        if last is None or total <= last[1]:
            raise CounterError(NotReadable("it takes a second sample"))
        return float(min(max((busy - last[0]) / (total - last[1]), 0.0), 1.0))


class _OwnCpuShare:
    """The share of the watched processes in the time of all processors."""

    def __init__(self, watched: WatchedProcesses) -> None:
        self._watched = watched
        self._processors = psutil.cpu_count() or 1
        self._last_s: float | None = None
        self._busy_s: dict[psutil.Process, float] = {}

    def __call__(self) -> float:
        now = time.perf_counter()
        busy_s = {}
        for process in self._watched.processes():
            try:
                times = process.cpu_times()
            except _GONE:
                continue
            busy_s[process] = times.user + times.system
        before_s, self._busy_s = self._busy_s, busy_s
        last_s, self._last_s = self._last_s, now
        if last_s is None:
            raise CounterError(NotReadable("it takes a second sample"))
        if not busy_s:
            raise CounterError(NotReadable("the watched process has ended"))
        # Of a process that is new to us, nobody knows how much of its time lies before the last sample.
        rise = sum(max(busy - before_s[each], 0.0) for each, busy in busy_s.items() if each in before_s)
        return float(min(rise / ((now - last_s) * self._processors), 1.0))


def _resident(watched: WatchedProcesses) -> float:
    found, total = 0, 0.0
    for process in watched.processes():
        try:
            total += process.memory_info().rss
        except _GONE:
            continue
        found += 1
    if not found:
        raise CounterError(NotReadable("the watched process has ended"))
    return total
