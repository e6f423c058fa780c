"""How a counter is read. Each fails on its own, with a reason: what can't be read is never 0."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from aipc.monitor.sample import COUNTERS, DeviceSample, NotReadable
from aipc.types import DeviceKind

Counter = Callable[[], float]

NO_SUCH_COUNTER = NotReadable("its driver has no such counter")


class CounterError(Exception):
    """A counter that can't be read, for the reason that it carries."""

    def __init__(self, why: NotReadable) -> None:
        super().__init__(why.reason)
        self.why = why


@dataclass(frozen=True, slots=True)
class Probe:
    """A device, and how to read it.

    counters   a name of COUNTERS each; what is missing here, the device's driver doesn't count
    """

    id: str
    name: str
    kind: DeviceKind
    counters: Mapping[str, Counter | NotReadable]
    note: str = ""

    def read(self) -> DeviceSample:
        """The device now."""
        values: dict[str, Any] = {}
        reasons: dict[str, NotReadable] = {}
        for name in COUNTERS:
            try:
                value = _value(self.counters.get(name, NO_SUCH_COUNTER))
                values[name] = int(value) if name.endswith("_bytes") else value
            except CounterError as exc:
                values[name], reasons[name] = None, exc.why
        return DeviceSample(self.id, self.name, self.kind, **values, not_readable=reasons, note=self.note)


def _value(counter: Counter | NotReadable) -> float:
    if isinstance(counter, NotReadable):
        raise CounterError(counter)
    try:
        return counter()
    except OSError as exc:
        # A device may vanish between any two reads.
        raise CounterError(NotReadable(f"reading it failed: {exc.strerror or exc}")) from exc


class NumberFile:
    """A file of the kernel that holds one number.

    scale     of its unit
    remedy    what to do where the right to read it is missing
    missing   why the file may not be there, for people
    """

    def __init__(self, path: Path, scale: float = 1, *, remedy: str = "", missing: str = "") -> None:
        self._path = path
        self._scale = scale
        self._remedy = remedy
        self._missing = missing

    def __call__(self) -> float:
        """The number.

        raises   CounterError
        """
        return number(read_text(self._path, self._remedy, self._missing), self._path) * self._scale

    @classmethod
    def first_of(cls, paths: tuple[Path, ...], scale: float = 1, **words: str) -> Self:
        """The first that is there; kernels of different age have it in different places."""
        return cls(next((path for path in paths if path.exists()), paths[0]), scale, **words)


def read_text(path: Path, remedy: str = "", missing: str = "") -> str:
    """A file of the kernel.

    raises   CounterError
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError as exc:
        if not path.parent.exists():
            raise CounterError(NotReadable("the device is gone, or its driver was unloaded")) from exc
        raise CounterError(NotReadable(f"there is no {path}", missing)) from exc
    except PermissionError as exc:
        raise CounterError(NotReadable(f"there is no right to read {path}", remedy)) from exc
    except OSError as exc:
        words = _OF_ERRNO.get(exc.errno or 0, exc.strerror or str(exc))
        raise CounterError(NotReadable(f"reading {path} failed: {words}")) from exc


_OF_ERRNO = {
    errno.ENODEV: "the device is gone or switched off",
    errno.EOPNOTSUPP: "this device does not support it",
    errno.EBUSY: "the device is busy",
}


def number(text: str, source: object) -> int:
    """A number that the kernel wrote.

    raises   CounterError
    """
    if text.isascii() and text.isdigit() and len(text) <= 20:
        return int(text)
    raise CounterError(NotReadable(f"{source} holds {text[:40]!r}, which is not a number"))


class Total:
    """A total since the first call, from a counter that starts again at 0 when it is full.

    full_at   the highest value it shows; None for one that never gets there
    scale     of its unit
    """

    def __init__(self, counter: Counter, full_at: Counter | None = None, *, scale: float = 1) -> None:
        self._counter = counter
        self._full_at = full_at
        self._scale = scale
        self._last: float | None = None
        self._sum = 0.0

    def __call__(self) -> float:
        """What was counted since the first call.

        raises   CounterError
        """
        now, last = self._counter(), self._last
        if last is not None and now < last:
            if self._full_at is None:
                # The driver was loaded again: what it counted before is kept.
                last = 0.0
            else:
                last -= self._full_at() + 1
        self._last = now
        self._sum += now - last if last is not None else 0.0
        return self._sum * self._scale


class Integral:
    """What a rate comes to since the first call: joules from watts."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._last_s: float | None = None
        self._sum = 0.0

    def __call__(self) -> float:
        """The sum of the rate over the time; what it was between two calls is taken from the later one.

        raises   CounterError
        """
        value, now_s = self._counter(), time.perf_counter()
        self._sum += value * (now_s - self._last_s) if self._last_s is not None else 0.0
        self._last_s = now_s
        return self._sum


class Rate:
    """How much a counter rises a second: the busy share of a device, its power.

    most   of the rate; two clocks that disagree a little make a share of 1.001
    """

    def __init__(self, counter: Counter, scale: float = 1, *, most: float | None = None) -> None:
        self._counter = counter
        self._scale = scale
        self._most = most
        self._last: tuple[float, float] | None = None

    def __call__(self) -> float:
        """The rate since the call before.

        raises   CounterError, for the first call, too
        """
        try:
            now, value = time.perf_counter(), self._counter()
        except CounterError:
            self._last = None
            raise
        last, self._last = self._last, (now, value)
        if last is None or now <= last[0]:
            raise CounterError(NotReadable("it takes a second sample"))
        if value < last[1]:
            raise CounterError(NotReadable("the counter started anew"))
        rate = (value - last[1]) * self._scale / (now - last[0])
        return rate if self._most is None else min(rate, self._most)
