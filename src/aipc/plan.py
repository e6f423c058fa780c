"""Which device and runtime to take, and the sentence that says why."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from aipc import inventory, selectors
from aipc.errors import DeviceError, MissingExtraError, UsageError
from aipc.inventory import Candidate
from aipc.runtimes.base import ONNXRUNTIME, OPENVINO, RUNTIMES, RuntimeInfo

# Measured with Phi-3-mini's shape on two cores: ONNX Runtime decoded 1.5 times as fast and was ready to
# answer in a third of the time, OpenVINO read long prompts 1.3 times as fast.
_CPU_PREFERENCE = (ONNXRUNTIME.name, OPENVINO.name)
# A GPU's maker's own runtime goes first.
_GPU_PREFERENCE = ("CUDA", "GPU", "DML")
_WHY_CPU = "on a CPU it decodes faster than OpenVINO; --runtime openvino reads long prompts faster"


# Puts what can be taken in order, and says why the first is the first, or "".
Order = Callable[[Sequence[Candidate]], tuple[list[Candidate], str]]


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
    device: str = selectors.AUTO,
    runtime: str | None = None,
    *,
    exact: bool = False,
    formats: Collection[str] | None = None,
    order: Order | None = None,
) -> Plan:
    """What to try for the words of a person; nothing is loaded yet.

    device    "auto", or in any case "NPU", "GPU" (the first one), "GPU.1", "CPU", "DML:0", "igpu", "dgpu"
    runtime   None for every one that is installed
    exact     float32 arithmetic, which no NPU has, and ONNX Runtime only for weights that are not quantised
    formats   runtimes that the model's folder is for; None if it can be converted for any
    order     None for the mission's
    raises    UsageError for an unknown runtime, or a word that names no kind of device or several devices
              here; DeviceError if there is no such device here; MissingExtraError
    """
    infos = _runtimes(runtime, formats, exact=exact)
    selector = selectors.parse(device, infos)
    if selector is not None and selector.family:
        infos = [info for info in infos if selector.family in info.devices]
    here, broken = inventory.candidates(infos)
    if not here and broken:
        raise broken[0][1]
    notes = [f"{info.title} is passed over: {exc.message}" for info, exc in broken]
    fitting = here
    if selector is not None:
        meant = selectors.select(selector, [item.device for item in here])
        fitting = [item for item in here if item.device in meant]
    if exact:
        fitting = [item for item in fitting if item.device.kind != "NPU"]
        if not fitting:
            raise UsageError(
                "no NPU computes in float32, which exact asks for", hint="take the CPU: --device CPU"
            )
    if not fitting:
        raise DeviceError("no runtime reaches a device here", hint='pip install "aipc[openvino]"')
    ordered, why = (order or mission_order)(fitting)
    if runtime is None and why:
        notes.append(why)
    return Plan(tuple(ordered), selector is not None, tuple(notes))


def mission_order(items: Sequence[Candidate]) -> tuple[list[Candidate], str]:
    """NPU, discrete GPU, integrated GPU, CPU; and why the first runtime is taken, where that needs a word."""
    ordered = sorted(items, key=_rank)
    chosen_for_speed = (
        len(ordered) > 1 and ordered[0].runtime is ONNXRUNTIME and ordered[0].device.kind == "CPU"
    )
    return ordered, f"{ONNXRUNTIME.title} is taken: {_WHY_CPU}" if chosen_for_speed else ""


def require_fast_load(plan: Plan) -> None:
    """Refuse to prepare weights for a device that takes them as they are.

    raises   UsageError
    """
    best = plan.candidates[0]
    if best.runtime is not ONNXRUNTIME or best.device.kind != "CPU":
        raise UsageError(
            f"{best} has no weights to prepare for a fast start; {ONNXRUNTIME.title} on a CPU has",
            hint=f"--device CPU --runtime {ONNXRUNTIME.name}",
        )


def _runtimes(name: str | None, formats: Collection[str] | None, *, exact: bool) -> list[RuntimeInfo]:
    """The runtimes that are asked for, or else are installed and take the folder."""
    if name is not None:
        if name.lower() not in RUNTIMES:
            close = difflib.get_close_matches(name.lower(), RUNTIMES, n=1, cutoff=0.4)
            hint = f"did you mean {close[0]}?" if close else ""
            raise UsageError(f"there is no runtime {name!r}; possible: {', '.join(RUNTIMES)}", hint)
        return [RUNTIMES[name.lower()]]
    fitting = [info for info in RUNTIMES.values() if formats is None or info.name in formats]
    installed = [info for info in inventory.installed_runtimes() if info in fitting]
    if not installed:
        names = " or ".join(info.title for info in fitting)
        raise MissingExtraError(
            f"this model needs {names}, which is not installed",
            hint=f'pip install "aipc[{fitting[0].extra}]"',
        )
    if exact and OPENVINO in installed:
        return [OPENVINO]
    return installed


def _rank(item: Candidate) -> tuple[int, int, str]:
    if item.device.kind == "CPU":
        preference = _CPU_PREFERENCE.index(item.runtime.name)
    else:
        family = item.device.family
        preference = _GPU_PREFERENCE.index(family) if family in _GPU_PREFERENCE else 0
    return inventory.ORDER.index(item.device.kind), preference, item.device.word
