"""The values of the monitor, and how they travel: a line of JSON a sample."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from aipc.errors import UsageError
from aipc.types import DeviceKind

# Between two samples. Nearer, the differences of counters that step by 10 ms say nothing; farther apart, an
# energy counter may have started anew twice.
SHORTEST_S, LONGEST_S = 0.02, 600.0

# The fields of a DeviceSample that are measured.
COUNTERS = (
    "utilisation",
    "own_utilisation",
    "memory_used_bytes",
    "memory_total_bytes",
    "own_memory_bytes",
    "frequency_mhz",
    "power_w",
    "energy_j",
)


@dataclass(frozen=True, slots=True)
class NotReadable:
    """Why a counter has no value.

    remedy   what makes it readable, or "" where nothing does
    """

    reason: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class DeviceSample:
    """A device at one moment. A counter that can't be read is None, and `not_readable` says why.

    id                  its PCI address, its LUID on Windows, or "CPU": the same in every sample
    utilisation         0 to 1, since the sample before: the share of time in which it was busy
    own_utilisation     0 to 1, the part of it that the watched process and its descendants cause
    memory_used_bytes   of the device's own memory, or of the system's where it has none
    own_memory_bytes    held by the watched process and its descendants
    power_w             mean since the sample before
    energy_j            since the sampling began
    note                what a reader of these figures must know, or ""
    """

    id: str
    name: str
    kind: DeviceKind
    utilisation: float | None
    own_utilisation: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    own_memory_bytes: int | None
    frequency_mhz: float | None
    power_w: float | None
    energy_j: float | None
    not_readable: Mapping[str, NotReadable]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """Every device at one moment.

    number       counts from 1; a gap tells of samples that were not kept
    time_s       seconds since the epoch
    interval_s   since the sample before
    """

    number: int
    time_s: float
    interval_s: float
    devices: tuple[DeviceSample, ...]

    def as_json(self) -> dict[str, Any]:
        """The object that is a line of a recording."""
        return asdict(self)

    @classmethod
    def parse(cls, line: str | bytes) -> Self:
        """A sample from a line of JSON.

        raises   ValueError, KeyError or TypeError for a line that is no sample
        """
        fields = json.loads(line)
        return cls(
            number=fields["number"],
            time_s=fields["time_s"],
            interval_s=fields["interval_s"],
            devices=tuple(map(_device, fields["devices"])),
        )


def read_recording(path: str | Path) -> Iterator[Sample]:
    """The samples of a recording, one after the other; a last line that was cut off is left out.

    raises   OSError; UsageError for a file that is no recording
    """
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                return
            try:
                yield Sample.parse(line)
            except (ValueError, KeyError, TypeError) as exc:
                raise UsageError(f"line {number} of {path} is not a sample of the monitor: {exc!r}") from exc


def _device(fields: dict[str, Any]) -> DeviceSample:
    reasons = {name: _shared(**why) for name, why in fields.pop("not_readable").items()}
    # Thousands of samples share the words that are in each.
    words = {key: sys.intern(value) for key, value in fields.items() if isinstance(value, str)}
    return DeviceSample(**{**fields, **words}, not_readable=reasons)


@lru_cache(maxsize=256)
def _shared(reason: str, remedy: str) -> NotReadable:
    """One object for a reason, in however many samples it is."""
    return NotReadable(reason, remedy)
