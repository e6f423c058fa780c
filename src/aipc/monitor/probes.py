"""Every device of this machine that has counters."""

from __future__ import annotations

import platform

from aipc.monitor.counters import Probe
from aipc.monitor.host import WatchedProcesses, probe_cpu


def all_probes(watched: WatchedProcesses) -> list[Probe]:
    """NPUs and GPUs first, the CPU last."""
    return [probe_cpu(platform.processor() or "CPU", watched, {})]
