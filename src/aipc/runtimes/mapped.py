"""Pages of mapped files that were read once, and count as this process's memory until somebody needs it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

_SMAPS = Path("/proc/self/smaps")
_DONTNEED = 4


def let_go_of_files(folder: Path) -> None:
    """Take the pages of a folder's mapped files out of this process; what is read again comes back.

    A runtime maps the weights and packs them elsewhere. Of Linux only: nothing is done where pages may have
    been written to, and Windows takes such pages by itself.
    """
    if sys.platform != "linux" or not _SMAPS.is_file():
        return
    import ctypes

    names = {str(path.resolve()) for path in folder.iterdir()}
    libc = ctypes.CDLL(None)
    for start, end in list(_clean(_SMAPS.read_text(encoding="utf-8", errors="replace"), names)):
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)


def _clean(smaps: str, names: set[str]) -> Iterator[tuple[int, int]]:
    """Where these files are mapped with no page of our own, by addresses.

    smaps   as in proc_pid_smaps(5)
    """
    place: tuple[int, int] | None = None
    for line in smaps.splitlines():
        words = line.split(maxsplit=5)
        if "-" in words[0]:
            start, end = (int(word, 16) for word in words[0].split("-"))
            place = (start, end) if words[-1] in names else None
        elif words[0] == "Anonymous:" and place is not None and int(words[1]) == 0:
            yield place
