"""Which device and runtime to take, and the sentence that says why."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from aipc.errors import DeviceError, UsageError
from aipc.runtimes.base import OPENVINO, RUNTIMES, Device, DeviceKind, RuntimeInfo

AUTO = "auto"

# The order of the mission: the NPU answers at the least energy, the CPU always works.
_ORDER: tuple[DeviceKind, ...] = ("NPU", "discrete GPU", "integrated GPU", "CPU")


@dataclass(frozen=True, slots=True)
class Plan:
    """A runtime, and the devices to try with it, best first.

    named   a person named the device: there is one, and no other is taken in its place
    """

    runtime: RuntimeInfo
    devices: tuple[Device, ...]
    named: bool


def make_plan(device: str = AUTO, runtime: str | None = None, *, exact: bool = False) -> Plan:
    """What to try for the words of a person; nothing is loaded yet.

    device   "auto", or a device word in any case: "NPU", "GPU" (the first one), "GPU.1", "CPU"
    exact    float32 arithmetic, which no NPU has
    raises   UsageError for an unknown runtime or a word that names no kind of device; DeviceError if
             there is no such device here; MissingExtraError
    """
    info = _runtime(runtime)
    kind = device.upper().partition(".")[0]
    if device.lower() != AUTO and kind not in info.devices:
        raise UsageError(*_unknown_device(device, info))
    here = runtime_module(info).available_devices()
    if device.lower() == AUTO:
        fitting = [item for item in here if not (exact and item.kind == "NPU")]
        return Plan(info, tuple(sorted(fitting, key=_rank)), named=False)
    if exact and kind == "NPU":
        raise UsageError(
            "no NPU computes in float32, which exact asks for", hint="take the CPU: --device CPU"
        )
    return Plan(info, (_find(device.upper(), here),), named=True)


def runtime_module(info: RuntimeInfo) -> ModuleType:
    """The module of a runtime.

    raises   MissingExtraError
    """
    return importlib.import_module(info.module)


def _runtime(name: str | None) -> RuntimeInfo:
    if name is None:
        return OPENVINO
    if name.lower() not in RUNTIMES:
        raise UsageError(f"there is no runtime {name!r}; possible: {', '.join(RUNTIMES)}")
    return RUNTIMES[name.lower()]


def _find(word: str, here: Sequence[Device]) -> Device:
    for item in here:
        if item.word in {word, f"{word}.0"}:
            return item
    reached = ", ".join(f"{item.word} ({item.name})" for item in here)
    hint = {
        "NPU": "an Intel NPU needs its driver: https://docs.openvino.ai, NPU device",
        "GPU": "an Intel GPU needs its driver: https://docs.openvino.ai, GPU device",
    }.get(word.partition(".")[0], "")
    raise DeviceError(f"there is no {word} here; OpenVINO reaches {reached}", hint=hint)


def _rank(device: Device) -> tuple[int, str]:
    return _ORDER.index(device.kind), device.word


def _unknown_device(word: str, info: RuntimeInfo) -> tuple[str, str]:
    possible = [AUTO, *info.devices]
    close = difflib.get_close_matches(word.upper(), [item.upper() for item in possible], n=1, cutoff=0.5)
    message = f"there is no device {word!r}; possible: {', '.join(possible)} (GPU.1 is a second GPU)"
    return message, f"did you mean {close[0]}?" if close else ""
