"""The energy of the processor's packages, in which integrated GPU and NPU are included.

source   Documentation/power/powercap/powercap.rst of Linux
"""

from __future__ import annotations

from pathlib import Path

from aipc.monitor.counters import Counter, CounterError, NumberFile, Rate, Total, read_text
from aipc.monitor.sample import NotReadable

IN_THE_PACKAGE = NotReadable("it is part of the processor package, whose power stands with the CPU")


def package_energy(root: Path = Path("/")) -> dict[str, Counter | NotReadable]:
    """The counters of power and energy of all packages together."""
    zones = [zone for zone in sorted(root.glob("sys/class/powercap/intel-rapl:*")) if _is_package(zone)]
    if not zones:
        why = NotReadable(
            "the kernel shows no energy counter of the processor",
            "sudo modprobe intel_rapl_msr; a virtual machine has none",
        )
        return {"power_w": why, "energy_j": why}
    return {"power_w": Rate(_Sum(zones)), "energy_j": _Sum(zones)}


def _is_package(zone: Path) -> bool:
    """Whether it is a package, and not the part of one or the whole machine."""
    try:
        return read_text(zone / "name").startswith("package")
    except CounterError:
        return False


class _Sum:
    """Joules of all packages since the first call."""

    def __init__(self, zones: list[Path]) -> None:
        self._totals = [
            Total(
                NumberFile(
                    zone / "energy_uj",
                    remedy=f"sudo chmod a+r {zone}/energy_uj, until the next start; see docs/monitor.md",
                ),
                NumberFile(zone / "max_energy_range_uj"),
                scale=1e-6,
            )
            for zone in zones
        ]

    def __call__(self) -> float:
        return sum(total() for total in self._totals)
