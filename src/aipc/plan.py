"""Which device and runtime to take, and the sentence that says why."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from aipc import inventory, selectors
from aipc.errors import DeviceError, MissingExtraError, UsageError
from aipc.inventory import Candidate
from aipc.runtimes.base import ONNXRUNTIME, OPENVINO, RUNTIMES, RuntimeInfo

# Measured with Phi-3-mini's shape on two cores: ONNX Runtime decoded 1.2 to twice as fast and was ready to
# answer in a third of the time, OpenVINO read prompts 1.3 to 1.7 times as fast.
_CPU_PREFERENCE = (ONNXRUNTIME.name, OPENVINO.name)
# A GPU's maker's own runtime goes first.
_GPU_PREFERENCE = ("CUDA", "GPU", "DML")
_WHY_CPU = "on a CPU it decodes faster than OpenVINO; --runtime openvino reads long prompts faster"


@dataclass(frozen=True, slots=True)
class Needs:
    """What a person asks for that not every runtime has on every device.

    exact           float32 arithmetic
    kv_cache        what the KV cache holds, such as "u8"
    context_length  tokens of prompt and answer together
    fast_load       weights that are packed for the processor
    """

    exact: bool = False
    kv_cache: str | None = None
    context_length: int | None = None
    fast_load: bool = False


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
    needs: Needs = Needs(),
    formats: Collection[str] | None = None,
    order: Order | None = None,
) -> Plan:
    """What to try for the words of a person; nothing is loaded yet.

    device    "auto", or in any case "NPU", "GPU" (the first one), "GPU.1", "CPU", "DML:0", "igpu", "dgpu"
    runtime   None for every one that is installed
    needs     candidates without one of them are passed over, with a note
    formats   runtimes that the model's folder is for; None if it can be converted for any
    order     None for the mission's
    raises    UsageError for an unknown runtime, a word that names no kind of device or several devices here,
              or needs that nothing here meets; DeviceError if there is no such device here; MissingExtraError
    """
    infos = _runtimes(runtime, formats)
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
    if not fitting:
        raise DeviceError("no runtime reaches a device here", hint='pip install "aipc[openvino]"')
    usual, _ = (order or mission_order)(fitting)
    lacks = {str(item): lack for item in usual if (lack := _lack(item, needs, usual)) is not None}
    fitting = [item for item in fitting if str(item) not in lacks]
    if not fitting:
        elsewhere, _ = inventory.candidates(_runtimes(runtime, formats))
        raise _unmet(lacks, [item for item in elsewhere if _lack(item, needs, elsewhere) is None])
    ordered, why = (order or mission_order)(fitting)
    # Those that would have come later are of no interest.
    before = usual[: next(place for place, item in enumerate(usual) if item in fitting)]
    notes += [f"{item} is passed over: {lacks[str(item)]}" for item in before]
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


def _lack(item: Candidate, needs: Needs, others: Sequence[Candidate]) -> str | None:
    """What is asked for and not to be had of a candidate, as a sentence."""
    runtime, family = item.runtime, item.device.family
    if needs.exact and family not in runtime.exact:
        return "it does not compute in float32, which exact asks for"
    if needs.exact and runtime is ONNXRUNTIME and any(other.runtime is OPENVINO for other in others):
        return "it is exact only with weights that are not quantised"
    held = runtime.kv_caches[family]
    if needs.kv_cache is not None and needs.kv_cache not in held:
        return f"its KV cache is {' or '.join(held)}, not {needs.kv_cache}"
    most = runtime.most_tokens.get(family)
    if most is not None and needs.context_length is not None and needs.context_length > most:
        return f"prompt and answer together take {most} tokens there, not {needs.context_length}"
    if needs.fast_load and family not in runtime.prepacks:
        return "it has no weights to prepare for a fast start"
    return None


def _unmet(lacks: Mapping[str, str], possible: Sequence[Candidate]) -> UsageError:
    """Nothing that is meant by the words has what is asked for; elsewhere it may be had."""
    found = "; ".join(f"{name}: {lack}" for name, lack in lacks.items())
    if not possible:
        return UsageError(f"nothing here has what is asked for: {found}", hint="leave the option out")
    best = min(possible, key=_rank)
    return UsageError(found, hint=f"--device {best.device.word} --runtime {best.runtime.name} has it")


def _runtimes(name: str | None, formats: Collection[str] | None) -> list[RuntimeInfo]:
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
    return installed


def _rank(item: Candidate) -> tuple[int, int, str]:
    if item.device.kind == "CPU":
        preference = _CPU_PREFERENCE.index(item.runtime.name)
    else:
        family = item.device.family
        preference = _GPU_PREFERENCE.index(family) if family in _GPU_PREFERENCE else 0
    return inventory.ORDER.index(item.device.kind), preference, item.device.word
