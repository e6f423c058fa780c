"""What the numbers of processors mean."""

from __future__ import annotations

VENDORS = {"8086": "Intel", "1002": "AMD", "1022": "AMD", "10de": "NVIDIA", "17cb": "Qualcomm"}
CPU_VENDORS = {"GenuineIntel": "Intel", "AuthenticAMD": "AMD"}

# source   the tables of PCI devices in Linux's drivers ivpu and amdxdna
NPUS = {
    "8086:7d1d": "Intel AI Boost (Meteor Lake)",
    "8086:ad1d": "Intel AI Boost (Arrow Lake)",
    "8086:643e": "Intel AI Boost (Lunar Lake)",
    "8086:b03e": "Intel AI Boost (Panther Lake)",
    "8086:fd3e": "Intel AI Boost (Wildcat Lake)",
    "8086:d71d": "Intel AI Boost (Nova Lake)",
    "1022:1502": "AMD Ryzen AI (Phoenix, Hawk Point)",
    "1022:17f0": "AMD Ryzen AI (Strix, Krackan)",
}


def vendor(pci_id: str) -> str:
    """Who made a PCI device, or "" for a maker whose processors nobody computes on here."""
    return VENDORS.get(pci_id.partition(":")[0], "")
