"""The record of a processor, the same for every operating system."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aipc.types import DeviceKind


def luid_word(luid: bytes) -> str:
    """The eight bytes of a LUID as performance counters write them, such as "0x00000000_0x0000C9A5"."""
    low, high = (int.from_bytes(half, "little") for half in (luid[:4], luid[4:]))
    return f"0x{high:08X}_0x{low:08X}"


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """A file through which programs reach a device, and whether this process may open it."""

    path: Path
    openable: bool


@dataclass(frozen=True, slots=True)
class Processor:
    """An NPU, a GPU or the CPU.

    vendor          "Intel", "AMD", "NVIDIA", "Qualcomm"; "" where nothing says so
    address         of PCI on Linux, such as "0000:00:0b.0"; the LUID on Windows, such as
                    "0x00000000_0x0000C9A5", as performance counters write it; None for the CPU
    pci_id          vendor and device, such as "8086:7d1d"
    directory       in sysfs, with the counters; None for the CPU and on Windows
    driver          the kernel's, such as "intel_vpu", or on Windows its model, "WDDM" or "MCDM"; None where
                    none is bound to the device
    driver_version  None where the kernel does not say, which is so for most of its own drivers
    memory_bytes    of its own; for the CPU the system's. None where it has none, or nothing says how much
    """

    kind: DeviceKind
    vendor: str
    name: str
    address: str | None = None
    pci_id: str | None = None
    directory: Path | None = None
    driver: str | None = None
    driver_version: str | None = None
    nodes: tuple[DeviceNode, ...] = ()
    memory_bytes: int | None = None

    @property
    def shares_memory(self) -> bool:
        """Whether it computes in the system's memory."""
        return self.kind != "discrete GPU"
