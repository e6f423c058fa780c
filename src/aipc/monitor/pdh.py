"""Windows' performance counters: one value for each instance, by its name."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from typing import Protocol

from aipc.monitor.counters import CounterError
from aipc.monitor.sample import NotReadable


class Query(Protocol):
    """Counters that are read together."""

    def collect(self) -> None:
        """Read all of them; what `values` gives is from then on of this moment."""

    def values(self, path: str) -> Mapping[str, float]:
        """The value of each instance of a counter.

        path     in English, such as r"\\GPU Engine(*)\\Utilization Percentage"
        raises   CounterError
        """


if sys.platform == "win32":
    from ctypes import wintypes

    # PDH_FMT_DOUBLE, without the limit of 100.
    _FORMAT = 0x00000200 | 0x00008000
    _MORE_DATA = 0x800007D2
    _VALID = (0, 1)
    _REASONS = {
        0xC0000BB8: "this Windows has no such counters",
        0xC0000BB9: "this Windows has no such counter",
        0x800007D5: "nothing has used it yet",
        0x800007D6: "it takes a second sample",
        0xC0000BC6: "it takes a second sample",
    }
    _REBUILD = "lodctr /R as administrator rebuilds the performance counters"

    class _Value(ctypes.Structure):
        """PDH_FMT_COUNTERVALUE_ITEM_W of pdh.h."""

        _fields_ = (("name", wintypes.LPWSTR), ("status", wintypes.DWORD), ("value", ctypes.c_double))

    class PdhQuery:
        """A query of the Performance Data Helper."""

        def __init__(self) -> None:
            self._pdh = ctypes.WinDLL("pdh")
            self._query = wintypes.HANDLE()
            self._check(self._pdh.PdhOpenQueryW(None, ctypes.c_size_t(0), ctypes.byref(self._query)))
            self._counters: dict[str, wintypes.HANDLE] = {}
            self._missing: dict[str, NotReadable] = {}

        def collect(self) -> None:
            """Read all counters that were asked for."""
            self._pdh.PdhCollectQueryData(self._query)

        def values(self, path: str) -> Mapping[str, float]:
            """The value of each instance; see `Query.values`. A counter is read from its first use on."""
            counter = self._counters.get(path) or self._add(path)
            size, count = wintypes.DWORD(0), wintypes.DWORD(0)
            arguments = (counter, _FORMAT, ctypes.byref(size), ctypes.byref(count))
            status = self._pdh.PdhGetFormattedCounterArrayW(*arguments, None) & 0xFFFFFFFF
            if status != _MORE_DATA:
                self._check(status)
                return {}
            buffer = ctypes.create_string_buffer(size.value)
            self._check(self._pdh.PdhGetFormattedCounterArrayW(*arguments, buffer))
            found = ctypes.cast(buffer, ctypes.POINTER(_Value))
            items = (found[index] for index in range(count.value))
            # The names point into the buffer.
            return {str(item.name): item.value for item in items if item.status in _VALID}

        def _add(self, path: str) -> wintypes.HANDLE:
            if path in self._missing:
                raise CounterError(self._missing[path])
            counter = wintypes.HANDLE()
            status = self._pdh.PdhAddEnglishCounterW(
                self._query, ctypes.c_wchar_p(path), ctypes.c_size_t(0), ctypes.byref(counter)
            )
            try:
                self._check(status)
            except CounterError as exc:
                # Looking for it costs milliseconds, each time.
                self._missing[path] = exc.why
                raise
            self._counters[path] = counter
            self.collect()
            return counter

        def _check(self, status: int) -> None:
            status &= 0xFFFFFFFF
            if status:
                reason = _REASONS.get(status, f"Windows' counters answer with 0x{status:08X}")
                raise CounterError(NotReadable(reason, _REBUILD if status >= 0xC0000000 else ""))
