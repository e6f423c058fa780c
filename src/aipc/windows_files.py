"""What Windows does with files that other systems do not; harmless elsewhere.

source   "Naming Files, Paths, and Namespaces" and "MoveFileExW function" of Microsoft's documentation
"""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

# In any folder and before any ending: "nul.json" is the null device, and "con.json" the keyboard.
_DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE)

# Scanners and indexers open what has just been written, and let it go within a second or two.
_WAITS_S = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)

# The most characters of a path, where the system was not told to allow more.
LONGEST_PATH = 259


def is_device_name(name: str) -> bool:
    """Whether Windows takes a file's name for that of a device, whatever folder it stands in."""
    return _DEVICES.fullmatch(name) is not None


def move(source: Path, target: Path) -> None:
    """Rename a file or a folder, in place of a file that is there.

    Windows renames no folder in which any file is open, nor replaces an open file. Other programs open new
    files for a moment; so it is tried again, for some three seconds.

    raises   OSError
    """
    for wait_s in _WAITS_S if sys.platform == "win32" else ():
        try:
            source.replace(target)
        except PermissionError:
            time.sleep(wait_s)
        else:
            return
    source.replace(target)


def too_long(path: Path) -> bool:
    """Whether a path is longer than Windows allows as it comes."""
    return sys.platform == "win32" and len(str(path.absolute())) > LONGEST_PATH
