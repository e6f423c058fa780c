"""The process that samples: reads every counter when it is time or when it is asked, and writes a line.

A line on its stdin is the number of a request for a sample now; the end of stdin ends it. A line on its
stdout is the number of the request that it answers, -1 for none, and the sample.
"""

from __future__ import annotations

import contextlib
import json
import queue
import sys
import threading
import time
from typing import IO

from aipc.monitor.host import WatchedProcesses
from aipc.monitor.probes import Devices, devices
from aipc.monitor.sample import SHORTEST_S, Sample
from aipc.runtimes.orphans import leave_interrupts_to_parent

_FIRST_S = 0.1

_Requests = queue.SimpleQueue[int | None]


def main() -> None:
    """Sample until stdin ends or nobody reads any more."""
    leave_interrupts_to_parent()
    options = json.loads(sys.stdin.buffer.readline() or b"null")
    if options is None:
        return
    requests: _Requests = queue.SimpleQueue()
    threading.Thread(target=_hear, args=(sys.stdin.buffer, requests), daemon=True).start()
    watched = WatchedProcesses(options["pid"])
    with contextlib.suppress(BrokenPipeError):
        _sample(Sampler(devices(watched)), options["interval_s"], requests, watched, sys.stdout.buffer)


class Sampler:
    """Reads all devices. Sample 0 is taken at once and shown to nobody: without it no rate is known."""

    def __init__(self, devices: Devices) -> None:
        self._devices = devices
        self._number = 0
        self.last_s = 0.0
        self.sample()

    def sample(self) -> Sample:
        """Every device now."""
        now_s = time.perf_counter()
        read = tuple(probe.read() for probe in self._devices.probes())
        sample = Sample(self._number, time.time(), now_s - self.last_s, read)
        self._number, self.last_s = self._number + 1, now_s
        return sample


def _hear(pipe: IO[bytes], requests: _Requests) -> None:
    for line in pipe:
        requests.put(int(line))
    requests.put(None)


def _sample(
    sampler: Sampler, interval_s: float, requests: _Requests, watched: WatchedProcesses, out: IO[bytes]
) -> None:
    due_s = sampler.last_s + min(interval_s, _FIRST_S)
    while True:
        asked: int | None = -1
        with contextlib.suppress(queue.Empty):
            asked = requests.get(timeout=max(due_s - time.perf_counter(), 0.0))
        if asked is None:
            return
        if asked >= 0:
            # A model that was just loaded has a process that is new.
            watched.look_again()
        time.sleep(max(sampler.last_s + SHORTEST_S - time.perf_counter(), 0.0))
        sample = sampler.sample()
        # Asked for a sample or not: the next one is due a whole interval later.
        due_s = sampler.last_s + interval_s
        out.write(f"{asked} {json.dumps(sample.as_json(), separators=(',', ':'))}\n".encode())
        out.flush()
