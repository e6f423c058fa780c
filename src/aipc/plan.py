"""Which device and runtime to take, and the sentence that says why."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import ModuleType

from aipc.errors import AipcError, DeviceError, MissingExtraError, UsageError
from aipc.runtimes.base import ONNXRUNTIME, OPENVINO, RUNTIMES, Device, RuntimeInfo
from aipc.types import DeviceKind

AUTO = "auto"

# The order of the mission: the NPU answers at the least energy, the CPU always works.
_ORDER: tuple[DeviceKind, ...] = ("NPU", "discrete GPU", "integrated GPU", "CPU")

# Measured with Phi-3-mini's shape on two cores: ONNX Runtime decoded 1.5 times as fast and was ready to
# answer in a third of the time, OpenVINO read long prompts 1.3 times as fast.
_CPU_PREFERENCE = (ONNXRUNTIME.name, OPENVINO.name)
# A GPU's maker's own runtime goes first.
_GPU_PREFERENCE = ("CUDA", "GPU", "DML")
_WHY_CPU = "on a CPU it decodes faster than OpenVINO; --runtime openvino reads long prompts faster"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A runtime on a device."""

    runtime: RuntimeInfo
    device: Device

    def __str__(self) -> str:
        return f"{self.device.word} with {self.runtime.title}"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to try, best first.

    named   a person named the device: no other is taken in its place
    notes   why, for people
    """

    candidates: tuple[Candidate, ...]
    named: bool
    notes: tuple[str, ...] = ()


def make_plan(
    device: str = AUTO,
    runtime: str | None = None,
    *,
    exact: bool = False,
    formats: Collection[str] | None = None,
) -> Plan:
    """What to try for the words of a person; nothing is loaded yet.

    device    "auto", or a device word in any case: "NPU", "GPU" (the first one), "GPU.1", "CPU", "DML:0"
    runtime   None for every one that is installed
    exact     float32 arithmetic, which no NPU has, and ONNX Runtime only for weights that are not quantised
    formats   runtimes that the model's folder is for; None if it can be converted for any
    raises    UsageError for an unknown runtime or a word that names no kind of device; DeviceError if
              there is no such device here; MissingExtraError
    """
    infos = _runtimes(runtime, formats, exact=exact)
    kind = _kind_of_word(device, infos)
    if exact and kind == "NPU":
        raise UsageError(
            "no NPU computes in float32, which exact asks for", hint="take the CPU: --device CPU"
        )
    here, notes = _candidates(infos if kind is None else [i for i in infos if kind in i.devices])
    if kind is None:
        fitting = [item for item in here if not (exact and item.device.kind == "NPU")]
    else:
        fitting = _named(device.upper(), here)
    ordered = tuple(sorted(fitting, key=_rank))
    if not ordered:
        raise DeviceError("no runtime reaches a device here", hint='pip install "aipc[openvino]"')
    chosen_for_speed = (
        len(ordered) > 1 and ordered[0].runtime is ONNXRUNTIME and ordered[0].device.kind == "CPU"
    )
    if runtime is None and chosen_for_speed:
        notes.append(f"{ONNXRUNTIME.title} is taken: {_WHY_CPU}")
    return Plan(ordered, kind is not None, tuple(notes))


def runtime_module(info: RuntimeInfo) -> ModuleType:
    """The module of a runtime.

    raises   MissingExtraError
    """
    return importlib.import_module(info.module)


def _runtimes(name: str | None, formats: Collection[str] | None, *, exact: bool) -> list[RuntimeInfo]:
    """The runtimes that are asked for, or else are installed and take the folder."""
    if name is not None:
        if name.lower() not in RUNTIMES:
            close = difflib.get_close_matches(name.lower(), RUNTIMES, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]}?" if close else ""
            raise UsageError(f"there is no runtime {name!r}; possible: {', '.join(RUNTIMES)}", hint)
        return [RUNTIMES[name.lower()]]
    fitting = [info for info in RUNTIMES.values() if formats is None or info.name in formats]
    installed = [info for info in fitting if importlib.util.find_spec(info.packages[-1]) is not None]
    if not installed:
        names = " or ".join(info.title for info in fitting)
        raise MissingExtraError(
            f"this model needs {names}, which is not installed",
            hint=f'pip install "aipc[{fitting[0].extra}]"',
        )
    if exact and OPENVINO in installed:
        return [OPENVINO]
    return installed


def _kind_of_word(device: str, infos: Sequence[RuntimeInfo]) -> str | None:
    """The first part of a device word, or None for "auto".

    raises   UsageError for a word that no runtime at hand knows
    """
    if device.lower() == AUTO:
        return None
    kind = device.upper().replace(":", ".").partition(".")[0]
    if any(kind in info.devices for info in infos):
        return kind
    for other in RUNTIMES.values():
        if kind in other.devices:
            extra = {"CUDA": "cuda", "DML": "directml"}.get(kind, other.extra)
            raise UsageError(
                f"{kind} is reached by {other.title}, which is not installed, not what --runtime asks for, "
                "or not what this folder is for",
                hint=f'pip install "aipc[{extra}]", then --runtime {other.name}',
            )
    possible = [AUTO, *dict.fromkeys(word for info in infos for word in info.devices)]
    close = difflib.get_close_matches(kind, [word.upper() for word in possible], n=1, cutoff=0.5)
    raise UsageError(
        f"there is no device {device!r}; possible: {', '.join(possible)} (GPU.1 is a second GPU)",
        hint=f"did you mean {close[0].replace(AUTO.upper(), AUTO)}?" if close else "",
    )


def _candidates(infos: Sequence[RuntimeInfo]) -> tuple[list[Candidate], list[str]]:
    """What the runtimes reach. One that is broken is passed over aloud, if there is another."""
    found: list[Candidate] = []
    notes: list[str] = []
    failure: AipcError | None = None
    for info in infos:
        try:
            found += [Candidate(info, device) for device in runtime_module(info).available_devices()]
        except MissingExtraError as exc:
            failure = exc
            notes.append(f"{info.title} is passed over: {exc.message}")
    if not found and failure is not None:
        raise failure
    return found, notes


def _named(word: str, here: Sequence[Candidate]) -> list[Candidate]:
    """The candidates on the device that a word names; a kind alone means its first device."""
    words = {word, f"{word}.0", f"{word}:0"}
    found = [item for item in here if item.device.word in words]
    if found:
        return found
    reached = ", ".join(dict.fromkeys(f"{item.device.word} ({item.device.name})" for item in here)) or "none"
    raise DeviceError(f"there is no {word} here; there is: {reached}", hint=_HINTS.get(word[:3], ""))


_HINTS = {
    "NPU": "an Intel NPU needs its driver: https://docs.openvino.ai, NPU device",
    "GPU": "an Intel GPU needs its driver: https://docs.openvino.ai, GPU device",
    "CUD": 'CUDA needs NVIDIA\'s driver, and pip install "aipc[cuda]": docs/directml.md',
    "DML": 'DirectML needs Windows, and pip install "aipc[directml]": docs/directml.md',
}


def _rank(item: Candidate) -> tuple[int, int, str]:
    kind = item.device.word.replace(":", ".").partition(".")[0]
    if item.device.kind == "CPU":
        preference = _CPU_PREFERENCE.index(item.runtime.name)
    else:
        preference = _GPU_PREFERENCE.index(kind) if kind in _GPU_PREFERENCE else 0
    return _ORDER.index(item.device.kind), preference, item.device.word
