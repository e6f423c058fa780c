"""Every processor of this machine, and which runtime reaches it: one record a device, whoever names it."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType

from aipc import hardware, selectors
from aipc.errors import AipcError, MissingExtraError
from aipc.hardware import Processor
from aipc.hardware.drivers import driver_checks
from aipc.runtimes import packages
from aipc.runtimes.base import ONNXRUNTIME, RUNTIMES, Device, RuntimeInfo
from aipc.types import Check, DeviceKind

# The order of the mission: the NPU answers at the least energy, the CPU always works.
ORDER: tuple[DeviceKind, ...] = ("NPU", "discrete GPU", "integrated GPU", "CPU")

# Whose processors a family of device words reaches; DML only on Windows.
_MAKERS = {
    "NPU": {"Intel"},
    "GPU": {"Intel"},
    "CUDA": {"NVIDIA"},
    "DML": {"Intel", "AMD", "NVIDIA", "Qualcomm"},
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A runtime on a device."""

    runtime: RuntimeInfo
    device: Device

    def __str__(self) -> str:
        return f"{self.device.word} with {self.runtime.title}"


@dataclass(frozen=True, slots=True)
class Reach:
    """A runtime's way to a device: its name, and the exact word for --device."""

    runtime: str
    word: str


@dataclass(frozen=True, slots=True)
class ListedDevice:
    """A processor of this machine.

    vendor, address, kernel_driver   as `hardware.Processor` has them
    memory_bytes    of its own; for the CPU the system's; None where it has none or nothing says how much
    shares_memory   whether it computes in the system's memory
    driver_version  of the driver that its runtime uses, else of the kernel's; None where neither says
    reached_by      empty where no runtime reaches it
    selectors       every word for --device that means this device and no other
    lacks           why it is not reached, with what mends it; a note where nothing can
    """

    name: str
    kind: DeviceKind
    vendor: str
    address: str | None
    memory_bytes: int | None
    shares_memory: bool
    kernel_driver: str | None
    driver_version: str | None
    reached_by: tuple[Reach, ...]
    selectors: tuple[str, ...]
    lacks: tuple[Check, ...] = ()


def devices() -> list[ListedDevice]:
    """Every NPU, GPU and CPU here, in the order in which "auto" takes them; no model is loaded."""
    found, _ = candidates(installed_runtimes())
    return merged(hardware.processors(), found)


def runtime_module(info: RuntimeInfo) -> ModuleType:
    """The module of a runtime.

    raises   MissingExtraError
    """
    return importlib.import_module(info.module)


def runtime_version(info: RuntimeInfo) -> str:
    """Which package of a runtime is installed, such as "openvino-genai 2026.4.1".

    raises   MissingExtraError
    """
    version: str = runtime_module(info).version()
    return version


def installed_runtimes() -> list[RuntimeInfo]:
    """The runtimes whose packages are here, whole or not."""
    return [info for info in RUNTIMES.values() if importlib.util.find_spec(info.packages[-1]) is not None]


def candidates(infos: Iterable[RuntimeInfo]) -> tuple[list[Candidate], list[tuple[RuntimeInfo, AipcError]]]:
    """What runtimes reach, and those that are broken."""
    found: list[Candidate] = []
    broken: list[tuple[RuntimeInfo, AipcError]] = []
    for info in infos:
        try:
            found += [Candidate(info, device) for device in runtime_module(info).available_devices()]
        except MissingExtraError as exc:
            broken.append((info, exc))
    return found, broken


def merged(processors: Sequence[Processor], found: Sequence[Candidate]) -> list[ListedDevice]:
    """One record for each processor, and for each device that only a runtime knows, as in WSL."""
    listed = []
    left = list(found)
    for processor in processors:
        reached = [item for item in left if _is(processor, item.device, processors)]
        left = [item for item in left if item not in reached]
        listed.append(_listed(processor, reached))
    for place in dict.fromkeys(_place(item.device) for item in left):
        reached = [item for item in left if _place(item.device) == place]
        device = reached[0].device
        processor = Processor(device.kind, "", device.name, address=device.address)
        listed.append(_listed(processor, reached))
    return [_with_kind_word(item, listed) for item in sorted(listed, key=lambda item: ORDER.index(item.kind))]


def lacking(processor: Processor) -> list[Check]:
    """Why no runtime reaches a processor."""
    family = next((name for name in _MAKERS if _may_reach(name, processor)), None)
    if processor.kind == "CPU":
        family = "CPU"
    name = f"{processor.kind} runtime"
    if family is None:
        system = "Windows" if sys.platform == "win32" else "Linux"
        return [Check(name, "note", f"no runtime of aipc reaches {processor.name} on {system}")]
    failed = [check for check in driver_checks(processor) if check.state == "failed"]
    runtime = _runtime_check(name, family)
    if runtime.state == "failed":
        failed.append(runtime)
    if failed:
        return failed
    return [
        Check(
            name,
            "failed",
            f"its driver and its runtime are here, but the runtime does not list {processor.name}",
            "update its driver, then restart",
        )
    ]


def _runtime_check(name: str, family: str) -> Check:
    """Whether what computes on a family of devices is installed."""
    infos = [info for info in RUNTIMES.values() if family in info.devices]
    installed = installed_runtimes()
    info = next((info for info in infos if info in installed), infos[0])
    if info is ONNXRUNTIME:
        try:
            packages.require_provider(family)
        except AipcError as exc:
            return Check(name, "failed", exc.message, exc.hint)
    elif info not in installed:
        fix = f'pip install "aipc[{info.devices[family]}]"'
        return Check(name, "failed", f"{info.title} is not installed", fix)
    return Check(name, "passed", f"{info.title} is installed")


def _may_reach(family: str, processor: Processor) -> bool:
    """Whether a family of device words is for processors like this one."""
    return (
        processor.vendor in _MAKERS[family]
        and (family == "NPU") == (processor.kind == "NPU")
        and (family != "DML" or sys.platform == "win32")
    )


def _is(processor: Processor, device: Device, processors: Sequence[Processor]) -> bool:
    """Whether a runtime's device is this processor."""
    if device.kind == "CPU" or processor.kind == "CPU":
        return device.kind == processor.kind
    if device.address is not None:
        return device.address == processor.address
    # A runtime that does not say where its device is can only mean the one of its kind.
    alike = [item for item in processors if item.kind == device.kind and _may_reach(device.family, item)]
    return alike == [processor]


def _listed(processor: Processor, reached: Sequence[Candidate]) -> ListedDevice:
    about = [item.device for item in reached]
    words = tuple(dict.fromkeys(device.word for device in about))
    return ListedDevice(
        # A maker's own name says more than a number of PCI, but runtimes differ in the CPU's.
        name=about[0].name if about and processor.kind != "CPU" else processor.name,
        kind=processor.kind,
        vendor=processor.vendor,
        address=processor.address,
        memory_bytes=processor.memory_bytes or next((d.memory_bytes for d in about if d.memory_bytes), None),
        shares_memory=processor.shares_memory,
        kernel_driver=processor.driver,
        driver_version=next((d.driver for d in about if d.driver), processor.driver_version),
        reached_by=tuple(Reach(item.runtime.name, item.device.word) for item in reached),
        selectors=words,
        lacks=() if reached else tuple(lacking(processor)),
    )


def _with_kind_word(device: ListedDevice, listed: Sequence[ListedDevice]) -> ListedDevice:
    """The record with "igpu" or "dgpu" among its words, if that means no other."""
    reached = [item for item in listed if item.kind == device.kind and item.reached_by]
    words = [word for word, kind in selectors.KINDS.items() if kind == device.kind]
    if reached != [device] or not words:
        return device
    return dataclasses.replace(device, selectors=(*device.selectors, *words))


def _place(device: Device) -> str:
    return device.address or device.word
