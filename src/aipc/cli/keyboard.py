"""Single keys from the person at the terminal, without Enter."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from aipc.cli import console
from aipc.cli.suspending import suspendable

# Windows has no wait for a key with a limit.
_LOOK_AGAIN_S = 0.05
_BEGINS_A_LONG_KEY = {"\0", "\xe0"}


@contextmanager
def single_keys() -> Iterator[Callable[[float], str]]:
    """A function that waits for a key, at most so many seconds, and returns it, or "" for none.

    Ctrl+C stays what it is. Where stdin is no terminal, no key ever comes.
    """
    if not console.is_terminal(sys.stdin):
        yield _no_key
    elif sys.platform == "win32":
        import msvcrt

        yield windows_keys(msvcrt)
    else:
        import termios
        import tty

        terminal = sys.stdin.fileno()
        before = termios.tcgetattr(terminal)

        def restore() -> None:
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)

        try:
            tty.setcbreak(terminal)
            with suspendable(restore, lambda: tty.setcbreak(terminal)):
                yield _posix_key
        finally:
            restore()


def _no_key(limit_s: float) -> str:
    time.sleep(limit_s)
    return ""


def windows_keys(keyboard: Any) -> Callable[[float], str]:
    """What waits for a key at a console of Windows.

    keyboard   msvcrt
    """
    # An arrow or a function key is two characters, and the second may be a letter: PgDn ends with "Q".
    is_half = False

    def wait(limit_s: float) -> str:
        nonlocal is_half
        until_s = time.monotonic() + limit_s
        while not keyboard.kbhit():
            if time.monotonic() >= until_s:
                return ""
            time.sleep(_LOOK_AGAIN_S)
        key: str = keyboard.getwch()
        if key == "\x03":
            # getwch hears Ctrl+C as a character, where it comes in the moment of reading.
            raise KeyboardInterrupt
        was_half, is_half = is_half, not is_half and key in _BEGINS_A_LONG_KEY
        return "" if was_half or is_half else key

    return wait


if sys.platform != "win32":

    def _posix_key(limit_s: float) -> str:
        # The descriptor itself: what Python has buffered of stdin, select does not see.
        terminal = sys.stdin.fileno()
        ready, _, _ = select.select([terminal], [], [], limit_s)
        return os.read(terminal, 1).decode("ascii", "replace") if ready else ""
