"""The processors that this machine has, as its operating system lists them. No runtime is asked."""

from __future__ import annotations

import sys
from pathlib import Path

from aipc.hardware.processor import DeviceNode, Processor, luid_word

__all__ = ["DeviceNode", "Processor", "cpu", "has_wsl_gpu", "luid_word", "processors"]

if sys.platform == "win32":
    from aipc.hardware.windows import cpu, processors
else:
    from aipc.hardware.linux import cpu, processors


def has_wsl_gpu(root: Path = Path("/")) -> bool:
    """Whether Windows lends its GPUs to this Linux: they are no PCI devices of a maker then."""
    return (root / "dev/dxg").exists()
