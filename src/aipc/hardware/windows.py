"""The processors of a Windows machine: DXCore's adapters, and the NPU that has no driver yet."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence

from aipc.hardware import names
from aipc.hardware.directx import Adapter, adapters
from aipc.hardware.processor import Processor
from aipc.types import DeviceKind

# Where Windows notes every PCI device that it has met, with a driver or without.
_PCI_KEY = r"SYSTEM\CurrentControlSet\Enum\PCI"
_CPU_KEY = r"HARDWARE\DESCRIPTION\System\CentralProcessor\0"


def processors() -> list[Processor]:
    """Every NPU, GPU and CPU here."""
    return [*from_adapters(adapters(), _pci_ids()), cpu()]


def from_adapters(found: Sequence[Adapter], pci_ids: Sequence[str] = ()) -> list[Processor]:
    """The processors among adapters, and the NPUs among PCI devices for which there is no adapter.

    pci_ids   such as "8086:7d1d"
    """
    here = [_processor(adapter) for adapter in found if adapter.hardware]
    driven = {item.pci_id for item in here}
    missing = [pci_id for pci_id in dict.fromkeys(pci_ids) if pci_id in names.NPUS and pci_id not in driven]
    return here + [
        Processor("NPU", names.vendor(pci_id), names.NPUS[pci_id], pci_id=pci_id) for pci_id in missing
    ]


def cpu() -> Processor:
    """The CPU, with the system's memory."""
    import psutil

    name = _registry_text(_CPU_KEY, "ProcessorNameString") or platform.processor() or "CPU"
    vendor = names.CPU_VENDORS.get(_registry_text(_CPU_KEY, "VendorIdentifier"), "")
    return Processor("CPU", vendor, name, memory_bytes=psutil.virtual_memory().total)


def _processor(adapter: Adapter) -> Processor:
    pci_id = f"{adapter.vendor_id:04x}:{adapter.device_id:04x}"
    vendor = names.vendor(pci_id)
    kind: DeviceKind = "integrated GPU" if adapter.integrated else "discrete GPU"
    # NVIDIA makes no NPUs, but cards for data centres that do not draw.
    if not adapter.graphics and vendor != "NVIDIA":
        kind = "NPU"
    return Processor(
        kind,
        vendor,
        adapter.description,
        address=adapter.luid,
        pci_id=pci_id,
        driver="WDDM" if adapter.graphics else "MCDM",
        driver_version=adapter.driver_version,
        memory_bytes=adapter.dedicated_bytes or None if kind == "discrete GPU" else None,
    )


def _registry_text(key: str, name: str) -> str:
    """A text in the registry, or "" where there is none."""
    if sys.platform != "win32":
        return ""
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as opened:
            return str(winreg.QueryValueEx(opened, name)[0]).strip()
    except OSError:
        return ""


def _pci_ids() -> list[str]:
    """Of every PCI device that this Windows has met; the keys read VEN_8086&DEV_7D1D&SUBSYS_..."""
    found: list[str] = []
    if sys.platform != "win32":
        return found
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, _PCI_KEY) as opened:
            for number in range(winreg.QueryInfoKey(opened)[0]):
                key = winreg.EnumKey(opened, number)
                parts = dict(part.partition("_")[::2] for part in key.split("&"))
                found.append(f"{parts.get('VEN')}:{parts.get('DEV')}".lower())
    except OSError:
        return found
    return found
