"""Ctrl+Z: what was made of the terminal is undone before the program stops, and made again afterwards."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def suspendable(undo: Callable[[], object], redo: Callable[[], object]) -> Iterator[None]:
    """For as long as this lasts, SIGTSTP calls `undo`, stops the program, and calls `redo` after SIGCONT.

    These may lie in one another: what was made last is undone first. Windows has no such signal, and where a
    shell has it ignored it stays so.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTSTP)
    if before is signal.SIG_IGN or before is None:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        undo()
        # Ctrl+C may come first after the stop, and leaves a handler by an exception.
        try:
            if callable(before):
                before(number, frame)
            else:
                _stop_here(number)
        finally:
            redo()

    signal.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, before)


def _stop_here(number: int) -> None:
    installed = signal.signal(number, signal.SIG_DFL)
    try:
        signal.raise_signal(number)
    finally:
        signal.signal(number, installed)
