"""What NPU, GPU and CPU are doing: sampled in a process of its own, beside every run.

with Monitor(interval_s=0.5) as monitor:
    completion = model.generate("Hello", monitor=monitor)
completion.stats.mean_utilisation, completion.stats.energy_j
monitor.samples[-1].devices
"""

from __future__ import annotations

from aipc.monitor.monitor import Monitor
from aipc.monitor.sample import COUNTERS, DeviceSample, NotReadable, Sample, read_recording

__all__ = ["COUNTERS", "DeviceSample", "Monitor", "NotReadable", "Sample", "read_recording"]
