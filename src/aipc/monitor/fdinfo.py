"""What processes make of a GPU or an NPU, as the kernel tells in /proc/PID/fdinfo of an open device.

Without root only a person's own processes are seen; so these figures leave out what others do.

source   Documentation/gpu/drm-usage-stats.rst of Linux
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aipc.monitor.counters import CounterError
from aipc.monitor.sample import NotReadable

# To look through the open files of every process takes tens of milliseconds on a desktop, and more on a
# virtual machine: it may take no more than this share of the time.
_LOOK_AGAIN_S = 30.0
_LOOK_SHARE = 0.003
# The counters of one sample share a reading.
_SAME_READING_S = 0.01

_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
# The newest kernels tell the first, the oldest the last.
_MEMORY = ("drm-resident-", "drm-memory-", "drm-total-")
_OWN_MEMORY = ("vram", "local")


@dataclass(frozen=True, slots=True)
class Client:
    """An opened device.

    id         the device's PCI address, and a number: a file that was inherited or sent has it, too
    busy       for each engine, nanoseconds or cycles
    cycles     for each engine that counts cycles, how many there were, busy or not
    capacity   how many of an engine there are, where there is more than one
    memory     bytes in each region
    """

    id: tuple[str, str]
    busy: dict[str, int]
    cycles: dict[str, int]
    capacity: dict[str, int]
    memory: dict[str, int]


def parse(text: str) -> Client | None:
    """The client of an fdinfo file, or None where it is of no device."""
    keys = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.startswith("drm-"):
            keys[key] = value.strip()
    if "drm-pdev" not in keys or "drm-client-id" not in keys:
        return None
    capacity = _numbers(keys, "drm-engine-capacity-")
    nanoseconds = _numbers(keys, "drm-engine-")
    return Client(
        id=(keys["drm-pdev"].lower(), keys["drm-client-id"]),
        busy={
            **{engine: busy for engine, busy in nanoseconds.items() if not engine.startswith("capacity-")},
            **_numbers(keys, "drm-cycles-"),
        },
        cycles=_numbers(keys, "drm-total-cycles-"),
        capacity=capacity,
        memory=next(filter(None, (_numbers(keys, prefix) for prefix in _MEMORY)), {}),
    )


def _numbers(keys: dict[str, str], prefix: str) -> dict[str, int]:
    """The numbers of the keys with this prefix; what is no number is left out."""
    found = {}
    for key, value in keys.items():
        number, _, unit = value.partition(" ")
        if key.startswith(prefix) and number.isascii() and number.isdigit() and len(number) <= 20:
            found[key.removeprefix(prefix)] = int(number) * _UNITS.get(unit.strip(), 1)
    return found


@dataclass(frozen=True, slots=True)
class _Reading:
    time_s: float
    clients: dict[tuple[str, str], Client]
    own: frozenset[tuple[str, str]]


class DrmClients:
    """Every opened device that this user may see.

    own     gives the ids of the processes that are told apart
    proc    the folder /proc
    """

    def __init__(
        self,
        own: Callable[[], Collection[int]],
        proc: Path = Path("/proc"),
    ) -> None:
        self.own_pids = own
        self._proc = proc
        self._others: list[Path] = []
        self._look_at_s = -1.0
        self._before: _Reading | None = None
        self._now: _Reading | None = None

    def share(self, address: str, *, own: bool) -> float:
        """The busy share of a device between the last two readings: that of its busiest engine.

        raises   CounterError
        """
        self._read()
        if self._before is None or self._now is None:
            raise CounterError(NotReadable("it takes a second sample"))
        visible = self._clients(address, own=False)
        if visible and not any(client.busy for client in visible):
            raise CounterError(
                NotReadable(
                    "this kernel's driver does not count how long processes use it",
                    "a newer kernel does: Linux 5.19 for i915, 6.11 for xe; for amdxdna, AMD's own driver",
                )
            )
        elapsed_ns = (self._now.time_s - self._before.time_s) * 1e9
        shares: dict[str, float] = defaultdict(float)
        for client in self._clients(address, own=own):
            # Of a client that is new to us, nobody knows how much lies before the last reading.
            last = self._before.clients.get(client.id, client)
            for engine in client.busy:
                shares[engine] += _share(engine, client, last, elapsed_ns)
        return min(max(shares.values(), default=0.0), 1.0)

    def memory_bytes(self, address: str, *, own: bool, discrete: bool) -> float:
        """What the clients of a device hold: of its own memory where it has some, else of the system's.

        raises   CounterError
        """
        self._read()
        clients = self._clients(address, own=own)
        if clients and not any(client.memory for client in clients):
            raise CounterError(NotReadable("this kernel's driver does not count the memory of processes"))
        return sum(
            size
            for client in clients
            for region, size in client.memory.items()
            if not discrete or region.startswith(_OWN_MEMORY)
        )

    def _clients(self, address: str, *, own: bool) -> list[Client]:
        """Those of a device at the last reading."""
        now = self._now
        clients = now.clients.values() if now else ()
        return [
            each for each in clients if each.id[0] == address and (not own or (now and each.id in now.own))
        ]

    def _read(self) -> None:
        """Read everything anew, unless another counter of the same sample has just done so."""
        time_s = time.perf_counter()
        if self._now is not None and time_s - self._now.time_s < _SAME_READING_S:
            return
        own = self.own_pids()
        if time_s >= self._look_at_s:
            self._others = list(_device_files(self._proc, _all_pids(self._proc, own)))
            took_s = time.perf_counter() - time_s
            self._look_at_s = time_s + max(_LOOK_AGAIN_S, took_s / _LOOK_SHARE)
        own_clients = dict(_clients_of(_device_files(self._proc, own)))
        self._before = self._now
        self._now = _Reading(time_s, dict(_clients_of(self._others)) | own_clients, frozenset(own_clients))


def _share(engine: str, now: Client, last: Client, elapsed_ns: float) -> float:
    """The share of one engine that one client had."""
    span = elapsed_ns
    if engine in now.cycles:
        span = now.cycles[engine] - last.cycles.get(engine, 0)
    span *= now.capacity.get(engine, 1)
    rise = now.busy[engine] - last.busy.get(engine, now.busy[engine])
    return rise / span if rise > 0 and span > 0 else 0.0


def _all_pids(proc: Path, but: Collection[int]) -> Iterator[int]:
    try:
        names = [entry.name for entry in os.scandir(proc)]
    except OSError:
        return
    yield from (int(name) for name in names if name.isdigit() and int(name) not in but)


def _device_files(proc: Path, pids: Iterable[int]) -> Iterator[Path]:
    """The fdinfo files of opened devices. Processes of others may not be looked at; any may end meanwhile."""
    for pid in pids:
        try:
            entries = list(os.scandir(proc / str(pid) / "fd"))
        except OSError:
            continue
        for entry in entries:
            try:
                target = os.readlink(entry.path)  # noqa: PTH115 - of thousands; a Path costs more than the call
            except OSError:
                continue
            if target.startswith(("/dev/dri/", "/dev/accel/")):
                yield proc / str(pid) / "fdinfo" / entry.name


def _clients_of(files: Iterable[Path]) -> Iterator[tuple[tuple[str, str], Client]]:
    for path in files:
        try:
            client = parse(path.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
        if client is not None:
            yield client.id, client
