"""Whether programs under Wine still do anything, as Linux sees it.

A machine that others use may leave a program without a processor for minutes. Such a program waits for its
turn and will go on. One that is stuck sleeps, with all of its threads and with Wine's server.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Of a thread: it has a processor or waits for one, or it waits for a disk.
_BUSY = {"R", "D"}


@dataclass(frozen=True, slots=True)
class Pulse:
    """What some programs did up to now.

    busy    whether one of them, or Wine's server for them, runs or waits for a processor or a disk
    ticks   of processor time that they have used, those that live
    """

    busy: bool
    ticks: int


class Patience:
    """How long programs have done nothing.

    mark      a word in the environment of those that count
    prefix    the WINEPREFIX in whose server and services a program may wait
    """

    def __init__(self, mark: str, prefix: Path) -> None:
        self._mark = mark.encode()
        self._prefix = f"WINEPREFIX={prefix}".encode()
        self._last: Pulse | None = None
        self._since = 0.0

    def asleep_s(self, now: float) -> float:
        """Seconds for which nothing was done, as far as it was looked at; `now` is of a clock."""
        pulse = self.pulse()
        if self._last is None or pulse.busy or pulse.ticks != self._last.ticks:
            self._since = now
        self._last = pulse
        return now - self._since

    def pulse(self) -> Pulse:
        """As it is at this moment."""
        busy, ticks = False, 0
        for process in Path("/proc").glob("[0-9]*"):
            try:
                variables = (process / "environ").read_bytes().split(b"\0")
                if self._prefix not in variables:
                    continue
                threads = list(_threads(process))
            except OSError:
                # It has ended, or is somebody else's.
                continue
            busy |= any(state in _BUSY for state, _ in threads)
            if self._mark in variables:
                ticks += sum(used for _, used in threads)
        return Pulse(busy, ticks)


def _threads(process: Path) -> Iterator[tuple[str, int]]:
    """State and used ticks of each thread."""
    for task in (process / "task").iterdir():
        # The name in brackets may have spaces and brackets in it.
        fields = (task / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        yield fields[0], int(fields[11]) + int(fields[12])
