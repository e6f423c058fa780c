"""The processors of a Linux machine, read from sysfs and procfs.

source   Documentation/ABI/testing/sysfs-bus-pci, Documentation/accel and Documentation/gpu of Linux
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from aipc.hardware.processor import DeviceNode, Processor
from aipc.types import DeviceKind

VENDORS = {"8086": "Intel", "1002": "AMD", "1022": "AMD", "10de": "NVIDIA", "17cb": "Qualcomm"}

# The first bytes of a PCI class: "processing accelerator" and "display controller".
_ACCELERATOR, _DISPLAY = "12", "03"
# AMD's NPUs call themselves signal processors, as many other devices do.
_AMD_NPUS = {"1022:1502", "1022:17f0", "1022:17f1"}

_INTEL_NPU_NAMES = {
    "8086:7d1d": "Intel AI Boost (Meteor Lake)",
    "8086:ad1d": "Intel AI Boost (Arrow Lake)",
    "8086:643e": "Intel AI Boost (Lunar Lake)",
    "8086:b03e": "Intel AI Boost (Panther Lake)",
    "8086:fd3e": "Intel AI Boost (Wildcat Lake)",
    "8086:d71d": "Intel AI Boost (Nova Lake)",
}
_AMD_NPU_NAME = "AMD Ryzen AI"

_PCI_NAMES = ("usr/share/hwdata/pci.ids", "usr/share/misc/pci.ids")
_INTEL_INTEGRATED = "0000:00:02.0"
_MAX_BYTES = 2**16


def processors(root: Path = Path("/")) -> list[Processor]:
    """Every NPU, GPU and CPU below `root`, where sys, proc and dev are; a test's own, or the machine's."""
    try:
        folders = sorted((root / "sys/bus/pci/devices").iterdir())
    except OSError:
        folders = []
    found = (_pci_processor(folder, root) for folder in folders)
    return [*filter(None, found), cpu(root)]


def cpu(root: Path = Path("/")) -> Processor:
    """The CPU, with the system's memory."""
    fields = dict(_fields(root / "proc/cpuinfo", ":"))
    vendor = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}.get(fields.get("vendor_id", ""), "")
    name = fields.get("model name") or platform.processor() or "CPU"
    return Processor("CPU", vendor, name, memory_bytes=memory_bytes("MemTotal", root))


def memory_bytes(field: str, root: Path = Path("/")) -> int | None:
    """A figure of /proc/meminfo: "MemTotal", or "MemAvailable" without swapping."""
    words = dict(_fields(root / "proc/meminfo", ":")).get(field, "").split()
    return int(words[0]) * 1024 if words and words[0].isdecimal() else None


def read_text(path: Path) -> str | None:
    """What a small file of the kernel holds, stripped; None if it is absent or may not be read."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode("utf-8", "replace").strip()
    except OSError:
        return None


def _pci_processor(folder: Path, root: Path) -> Processor | None:
    """The processor in a folder of /sys/bus/pci/devices, if it is one."""
    event = dict(_fields(folder / "uevent", "="))
    pci_id = event.get("PCI_ID", "").lower()
    vendor = VENDORS.get(pci_id.partition(":")[0])
    # PCI_CLASS comes without leading zeros: 30000, and 120000.
    kind = _kind(folder, event.get("PCI_CLASS", "").zfill(6), pci_id)
    if vendor is None or kind is None:
        return None
    driver = event.get("DRIVER")
    # What NVIDIA's driver says of a GPU; no other driver has this file.
    about = dict(_fields(root / "proc/driver/nvidia/gpus" / folder.name / "information", ":"))
    return Processor(
        kind,
        vendor,
        about.get("Model") or _name(kind, vendor, pci_id, root),
        address=folder.name,
        pci_id=pci_id,
        directory=folder,
        driver=driver,
        driver_version=read_text(root / "sys/module" / driver / "version") if driver else None,
        nodes=tuple(_nodes(folder, about, root)),
        memory_bytes=_vram_bytes(folder) if kind == "discrete GPU" else None,
    )


def _kind(folder: Path, pci_class: str, pci_id: str) -> DeviceKind | None:
    if pci_id in _AMD_NPUS or (pci_class.startswith(_ACCELERATOR) and pci_id.startswith("8086:")):
        return "NPU"
    if not pci_class.startswith(_DISPLAY):
        return None
    integrated = folder.name == _INTEL_INTEGRATED if pci_id.startswith("8086:") else _is_apu(folder)
    return "integrated GPU" if integrated else "discrete GPU"


def _is_apu(folder: Path) -> bool:
    """Whether amdgpu's table of metrics is one of those for APUs: its third byte is the format, 2 or more.

    Where it is missing (another driver, or none) a GPU counts as discrete.
    """
    try:
        with (folder / "gpu_metrics").open("rb") as file:
            header = file.read(4)
    except OSError:
        return False
    return len(header) == 4 and header[2] >= 2


def _name(kind: DeviceKind, vendor: str, pci_id: str, root: Path) -> str:
    """The best name without asking a driver."""
    if kind == "NPU":
        return _INTEL_NPU_NAMES.get(pci_id, f"Intel NPU {pci_id}") if vendor == "Intel" else _AMD_NPU_NAME
    name = _listed_name(pci_id, root)
    return f"{vendor} {name}" if name else f"{vendor} GPU {pci_id}"


def _listed_name(pci_id: str, root: Path) -> str | None:
    """The name in the list of PCI devices that most distributions install."""
    vendor, _, device = pci_id.partition(":")
    for path in _PCI_NAMES:
        try:
            text = (root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        section = re.search(rf"^{vendor}  .*\n((?:[\t#].*\n|\n)*)", text, re.MULTILINE)
        line = re.search(rf"^\t{device}  (.+)$", section[1], re.MULTILINE) if section else None
        return line[1].strip() if line else None
    return None


def _nodes(folder: Path, about: dict[str, str], root: Path) -> Iterator[DeviceNode]:
    """The nodes that computing needs: no display, hence no card*."""
    found = [root / "dev/accel" / path.name for path in sorted(folder.glob("accel/accel*"))]
    found += [root / "dev/dri" / path.name for path in sorted(folder.glob("drm/renderD*"))]
    if about.get("Device Minor", "").isdecimal():
        found += [root / "dev" / name for name in (f"nvidia{about['Device Minor']}", "nvidiactl")]
    for path in found:
        yield DeviceNode(path, os.access(path, os.R_OK | os.W_OK))


def _vram_bytes(folder: Path) -> int | None:
    """Of a discrete GPU: amdgpu's total, or the sum of xe's tiles; i915 and nvidia do not say here."""
    texts = [read_text(folder / "mem_info_vram_total")]
    if texts == [None]:
        texts = [read_text(path) for path in folder.glob("tile*/physical_vram_size_bytes")]
    return sum(int(text) for text in texts if text and text.isdecimal()) or None


def _fields(path: Path, separator: str) -> Iterator[tuple[str, str]]:
    """Names and values of a file with one of each a line."""
    for line in (read_text(path) or "").splitlines():
        name, found, value = line.partition(separator)
        if found:
            yield name.strip(), value.strip()
