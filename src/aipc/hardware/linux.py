"""The processors of a Linux machine, read from sysfs and procfs.

source   Documentation/ABI/testing/sysfs-bus-pci, Documentation/accel and Documentation/gpu of Linux
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from aipc.hardware import names
from aipc.hardware.processor import DeviceNode, Processor
from aipc.types import DeviceKind

# The first bytes of a PCI class: "processing accelerator" and "display controller".
_ACCELERATOR, _DISPLAY = "12", "03"

_PCI_NAMES = ("usr/share/hwdata/pci.ids", "usr/share/misc/pci.ids")
_INTEL_INTEGRATED = "0000:00:02."
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
    about = dict(fields(root / "proc/cpuinfo", ":"))
    vendor = names.CPU_VENDORS.get(about.get("vendor_id", ""), "")
    name = about.get("model name") or platform.processor() or "CPU"
    total = dict(fields(root / "proc/meminfo", ":")).get("MemTotal", "").split()
    kib = int(total[0]) if total and total[0].isdecimal() else 0
    return Processor("CPU", vendor, name, memory_bytes=kib * 1024 or None)


def read_text(path: Path) -> str | None:
    """What a small file of the kernel holds, stripped; None if it is absent or may not be read."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode("utf-8", "replace").strip()
    except OSError:
        return None


def _pci_processor(folder: Path, root: Path) -> Processor | None:
    """The processor in a folder of /sys/bus/pci/devices, if it is one."""
    event = dict(fields(folder / "uevent", "="))
    pci_id = event.get("PCI_ID", "").lower()
    vendor = names.vendor(pci_id)
    # PCI_CLASS comes without leading zeros: 30000, and 120000.
    kind = _kind(folder, event.get("PCI_CLASS", "").zfill(6), pci_id)
    if not vendor or kind is None:
        return None
    driver = event.get("DRIVER")
    # What NVIDIA's driver says of a GPU; no other driver has this file.
    about = dict(fields(root / "proc/driver/nvidia/gpus" / folder.name / "information", ":"))
    return Processor(
        kind,
        vendor,
        names.NPUS.get(pci_id) or about.get("Model") or _listed_name(vendor, pci_id, root),
        address=folder.name,
        pci_id=pci_id,
        directory=folder,
        driver=driver,
        driver_version=read_text(root / "sys/module" / driver / "version") if driver else None,
        nodes=tuple(_nodes(folder, about, root)),
        memory_bytes=_vram_bytes(folder) if kind == "discrete GPU" else None,
    )


def _kind(folder: Path, pci_class: str, pci_id: str) -> DeviceKind | None:
    # AMD's NPUs call themselves signal processors, as many other devices do.
    if pci_id in names.NPUS or (pci_class.startswith(_ACCELERATOR) and pci_id.startswith("8086:")):
        return "NPU"
    if not pci_class.startswith(_DISPLAY):
        return None
    is_intel = pci_id.startswith("8086:")
    integrated = folder.name.startswith(_INTEL_INTEGRATED) if is_intel else _is_apu(folder)
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


def _listed_name(vendor: str, pci_id: str, root: Path) -> str:
    """The name in the list of PCI devices that most distributions install, or else the numbers."""
    for path in _PCI_NAMES:
        try:
            text = (root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        maker, _, device = pci_id.partition(":")
        section = re.search(rf"^{maker}  .*\n((?:[\t#].*\n|\n)*)", text, re.MULTILINE)
        line = re.search(rf"^\t{device}  (.+)$", section[1], re.MULTILINE) if section else None
        if line:
            return f"{vendor} {line[1].strip()}"
    return f"{vendor} device {pci_id}"


def _nodes(folder: Path, about: dict[str, str], root: Path) -> Iterator[DeviceNode]:
    """The nodes that computing needs: no display, hence no card*; CUDA has its own."""
    if about.get("Device Minor", "").isdecimal():
        found = [root / "dev" / name for name in (f"nvidia{about['Device Minor']}", "nvidiactl")]
    else:
        found = [root / "dev/accel" / path.name for path in sorted(folder.glob("accel/accel*"))]
        found += [root / "dev/dri" / path.name for path in sorted(folder.glob("drm/renderD*"))]
    for path in found:
        yield DeviceNode(path, os.access(path, os.R_OK | os.W_OK))


def _vram_bytes(folder: Path) -> int | None:
    """Of a discrete GPU: amdgpu's total, or the sum of xe's tiles; i915 and nvidia do not say here."""
    texts = [read_text(folder / "mem_info_vram_total")]
    if texts == [None]:
        texts = [read_text(path) for path in folder.glob("tile*/physical_vram_size_bytes")]
    return sum(int(text) for text in texts if text and text.isdecimal()) or None


def fields(path: Path, separator: str) -> Iterator[tuple[str, str]]:
    """Names and values of a file with one of each a line."""
    for line in (read_text(path) or "").splitlines():
        name, found, value = line.partition(separator)
        if found:
            yield name.strip(), value.strip()
