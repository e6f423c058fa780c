"""A console of Windows obeys escape sequences only where a program has asked it to.

source   "Console Virtual Terminal Sequences" of Microsoft's documentation
"""

from __future__ import annotations

import atexit
import ctypes
import sys
from typing import Any, TextIO

_ENABLE_VIRTUAL_TERMINAL_PROCESSING = 0x0004


def obeys_escapes(stream: TextIO) -> bool:
    """Whether the terminal at a stream obeys escape sequences; a console of Windows is told to, first."""
    if sys.platform != "win32":
        return True
    import msvcrt

    return switch_on(ctypes.WinDLL("kernel32"), msvcrt.get_osfhandle(stream.fileno()))


def switch_on(kernel: Any, handle: int) -> bool:
    """Have a console obey escape sequences until this process ends, and say whether it does.

    kernel   kernel32.dll
    """
    console, mode = ctypes.c_void_p(handle), ctypes.c_uint32()
    if not kernel.GetConsoleMode(console, ctypes.byref(mode)):
        return False
    if mode.value & _ENABLE_VIRTUAL_TERMINAL_PROCESSING:
        return True
    if not kernel.SetConsoleMode(console, ctypes.c_uint32(mode.value | _ENABLE_VIRTUAL_TERMINAL_PROCESSING)):
        return False
    # The mode is the console's: whatever runs there next would find it changed.
    atexit.register(kernel.SetConsoleMode, console, ctypes.c_uint32(mode.value))
    return True
