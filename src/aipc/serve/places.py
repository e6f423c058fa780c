"""Where a served model may run, and which of these places a client asks for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from aipc import choice, prepare, selectors, verdicts
from aipc.errors import AipcError, DeviceError, UsageError
from aipc.inventory import Candidate, runtime_version
from aipc.plan import Plan
from aipc.runtimes.base import RUNTIMES
from aipc.serve.failures import RefusedError

# Asking OpenVINO for its devices takes a second where there is an NPU or a GPU.
_FRESH_S = 60.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client asks for: a served model, and where it shall run.

    device    a word as --device has them; None and "auto" leave it to the server
    runtime   None leaves it to the server
    """

    model: str
    device: str | None = None
    runtime: str | None = None

    @property
    def names_device(self) -> bool:
        """Whether no other device may be taken."""
        return self.device is not None and self.device.lower() != selectors.AUTO

    @property
    def anywhere(self) -> bool:
        """Whether all is left to the server."""
        return not self.names_device and self.runtime is None


class Places:
    """The places of each model, looked for anew after a minute.

    device, runtime   what the server was started with: no client can ask for another
    """

    def __init__(self, device: str = selectors.AUTO, runtime: str | None = None) -> None:
        self._device = device
        self._runtime = runtime
        self._found: dict[tuple[str, bool], tuple[float, Plan]] = {}

    def of(self, name: str, *, pinned: bool) -> Plan:
        """Where a model may run, best first. It may take seconds.

        pinned   whether a place that was pinned with `aipc plan` leaves no other
        raises   what choice.choose raises
        """
        asked_s, plan = self._found.get((name, pinned), (0.0, None))
        now_s = time.monotonic()
        if plan is None or now_s - asked_s > _FRESH_S:
            plan = choice.choose(name, self._device, self._runtime, pinned=pinned).plan
            self._found[name, pinned] = now_s, plan
        return plan


def wanted(plan: Plan, wish: Wish) -> Sequence[Candidate]:
    """The places that a wish leaves, best first; one alone where the device is named.

    raises   RefusedError (400) if there is none
    """
    runtime = None if wish.runtime is None else wish.runtime.lower()
    found = [item for item in plan.candidates if runtime in {None, item.runtime.name}]
    if wish.names_device:
        found = _on(str(wish.device), found)
    if not found:
        raise _not_here(plan, wish)
    return found[:1] if plan.named or wish.names_device else found


def warning(name: str, place: Candidate) -> str | None:
    """What `aipc verify` found wrong with the model in a place, as far as it is known without loading it."""
    try:
        ready = prepare.ready_here(name, place.runtime, place.device)
        if ready is None:
            return None
        return verdicts.warning(ready.folder, place.device, runtime_version(place.runtime))
    except AipcError:
        return None


def _on(device: str, places: Sequence[Candidate]) -> list[Candidate]:
    """Those on the device that a word means."""
    try:
        selector = selectors.parse(device, list(RUNTIMES.values()))
        assert selector is not None  # noqa: S101 - the word is not "auto"
        meant = selectors.select(selector, [place.device for place in places])
    except (DeviceError, UsageError):
        return []
    return [place for place in places if place.device in meant]


def _not_here(plan: Plan, wish: Wish) -> RefusedError:
    words = [f"device {wish.device[:40]!r}"] if wish.device is not None else []
    words += [f"runtime {wish.runtime[:40]!r}"] if wish.runtime is not None else []
    possible = "; ".join(f'"{item.device.word}" with "{item.runtime.name}"' for item in plan.candidates)
    return RefusedError(
        400,
        "device_not_here",
        f"{wish.model[:200]} cannot run here with {' and '.join(words)}",
        hint=f"possible are {possible}; aipc devices says what others lack, and --device and --runtime of "
        "aipc serve leave fewer",
        param="device" if wish.names_device else "runtime",
    )
