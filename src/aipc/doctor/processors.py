"""Checks of NPU, GPUs and CPU: drivers, what reaches them, and instruction sets."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence

from aipc import hardware, inventory
from aipc.hardware import Processor
from aipc.hardware.drivers import driver_checks
from aipc.hardware.instructions import instruction_sets
from aipc.inventory import ListedDevice
from aipc.types import Check

# What a runtime makes of an instruction set, and what it does without.
_MEANING = {
    "AVX2": ("the runtimes' fast kernels need it", "the runtimes have only slow kernels without it"),
    "VNNI": ("products of int8 in one instruction", "products of int8 take three instructions"),
    "AMX": ("tiles of int8 and bfloat16, for long prompts", "it is in server processors only"),
    "BF16": ("OpenVINO computes in bfloat16", "OpenVINO computes in float32"),
}


def processor_checks() -> Iterator[Check]:
    """Each device with its drivers, then WSL, then the CPU's instruction sets."""
    processors = hardware.processors()
    found, _ = inventory.candidates(inventory.installed_runtimes())
    for device in inventory.merged(processors, found):
        yield from _device_checks(device, processors)
    if "microsoft" in platform.release().lower():
        yield _wsl_check()
    yield from _instruction_checks()


def _device_checks(device: ListedDevice, processors: Sequence[Processor]) -> Iterator[Check]:
    same = [item for item in processors if item.address == device.address and item.kind == device.kind]
    reached = bool(device.reached_by)
    known = [check for item in same for check in driver_checks(item, reached=reached)]
    if not reached:
        yield from (check for check in known if check.state != "failed")
        yield from device.lacks
        return
    words = " or ".join(dict.fromkeys(f"--device {reach.word}" for reach in device.reached_by))
    driver = f", driver {device.driver_version}" if device.driver_version else ""
    yield Check(device.kind, "passed", f"{device.name} is reached by {words}{driver}")
    yield from known


def _wsl_check() -> Check:
    if hardware.has_wsl_gpu():
        return Check(
            "WSL",
            "note",
            "Windows lends its GPUs through /dev/dxg, but no NPU: run aipc in Windows for that",
        )
    return Check("WSL", "failed", "Windows lends no GPU: /dev/dxg is missing", "in Windows: wsl --update")


def _instruction_checks() -> Iterator[Check]:
    sets = instruction_sets()
    if not sets:
        yield Check("CPU instructions", "note", "nothing is known of this processor's instruction sets")
    for name, here in sets.items():
        present, absent = _MEANING[name]
        if here is None:
            yield Check(f"CPU {name}", "note", "not readable on this system")
        else:
            yield Check(f"CPU {name}", "passed" if here else "note", present if here else f"absent: {absent}")
