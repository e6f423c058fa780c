"""Windows' performance counters: one value for each instance, by its name.

source   pdh.h, and PdhGetFormattedCounterArrayW in Microsoft's documentation
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any, Protocol

from aipc.monitor.counters import CounterError
from aipc.monitor.sample import NotReadable

# PDH_FMT_DOUBLE, and PDH_FMT_NOCAP100 for more than 100.
_FORMAT = 0x00000200 | 0x00008000
_MORE_DATA = 0x800007D2
# PDH_CSTATUS_VALID_DATA and PDH_CSTATUS_NEW_DATA.
_VALID = (0, 1)
_SECOND_SAMPLE = "it takes a second sample"
_REASONS = {
    0xC0000BB8: "this Windows has no such counters",
    0xC0000BB9: "this Windows has no such counter",
    0x800007D5: "nothing has used it yet",
    0xC0000BBA: _SECOND_SAMPLE,
    0xC0000BC6: _SECOND_SAMPLE,
}
_REBUILD = "lodctr /R as administrator rebuilds the performance counters"


class Query(Protocol):
    """Counters that are read together."""

    def collect(self) -> None:
        """Read all of them: what `values` gives is from then on of this moment."""

    def values(self, path: str) -> Mapping[str, float]:
        r"""The value of each instance of a counter.

        path     in English, such as "\GPU Engine(*)\Utilization Percentage"
        raises   CounterError
        """


class _Item(ctypes.Structure):
    """PDH_FMT_COUNTERVALUE_ITEM_W."""

    _fields_ = (("name", ctypes.c_wchar_p), ("status", ctypes.c_uint32), ("value", ctypes.c_double))


class PdhQuery:
    """A query of Windows' Performance Data Helper.

    library   pdh.dll
    """

    def __init__(self, library: Any) -> None:
        self._pdh = library
        self._query = ctypes.c_void_p()
        self._counters: dict[str, ctypes.c_void_p] = {}
        self._missing: dict[str, NotReadable] = {}
        _check(library.PdhOpenQueryW(None, ctypes.c_size_t(0), ctypes.byref(self._query)))

    def collect(self) -> None:
        """Read all counters that were asked for."""
        self._pdh.PdhCollectQueryData(self._query)

    def values(self, path: str) -> Mapping[str, float]:
        """The value of each instance; see `Query.values`. A counter is read from its first use on."""
        counter = self._counters[path] if path in self._counters else self._add(path)
        size, count = ctypes.c_uint32(0), ctypes.c_uint32(0)
        arguments = (counter, _FORMAT, ctypes.byref(size), ctypes.byref(count))
        status = self._pdh.PdhGetFormattedCounterArrayW(*arguments, None) & 0xFFFFFFFF
        if status != _MORE_DATA:
            _check(status)
            return {}
        buffer = ctypes.create_string_buffer(size.value)
        _check(self._pdh.PdhGetFormattedCounterArrayW(*arguments, buffer))
        found = ctypes.cast(buffer, ctypes.POINTER(_Item))
        # The names lie in the buffer, too.
        items = (found[index] for index in range(count.value))
        return {str(item.name): float(item.value) for item in items if item.status in _VALID}

    def _add(self, path: str) -> ctypes.c_void_p:
        if path in self._missing:
            raise CounterError(self._missing[path])
        counter = ctypes.c_void_p()
        arguments = (self._query, ctypes.c_wchar_p(path), ctypes.c_size_t(0), ctypes.byref(counter))
        try:
            _check(self._pdh.PdhAddEnglishCounterW(*arguments))
        except CounterError as exc:
            # Looking for it takes milliseconds, each time.
            self._missing[path] = exc.why
            raise
        self._counters[path] = counter
        self.collect()
        return counter


def _check(status: int) -> None:
    """Raise a CounterError for a status that tells of a failure."""
    status &= 0xFFFFFFFF
    if status:
        reason = _REASONS.get(status, f"Windows' counters answer with 0x{status:08X}")
        remedy = _REBUILD if status in {0xC0000BB8, 0xC0000BB9} else ""
        raise CounterError(NotReadable(reason, remedy))
