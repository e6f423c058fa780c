"""The processors that this machine has, as its operating system lists them. No runtime is asked."""

from __future__ import annotations

import sys

from aipc.hardware.processor import DeviceNode, Processor

__all__ = ["DeviceNode", "Processor", "processors"]


def processors() -> list[Processor]:
    """Every NPU, GPU and CPU here, in the order of their addresses, the CPU last."""
    if sys.platform == "win32":
        from aipc.hardware import windows

        return windows.processors()
    from aipc.hardware import linux

    return linux.processors()
