"""Pages of this process's memory, on Linux: some are let go, and large areas are put into huge ones."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SMAPS = Path("/proc/self/smaps")
_TRANSPARENT_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")

# Of madvise(2).
_DONTNEED, _COLLAPSE = 4, 25

_HUGE_PAGE_BYTES = 2 * 2**20
# A huge page is memory as a whole: so much of it must be memory already.
_LEAST_IN_USE = 0.95


@dataclass(slots=True)
class _Area:
    """Addresses of one kind.

    name        of the mapped file, or empty
    own_bytes   of pages that are not a file's, or were written to
    """

    start: int
    end: int
    writable: bool
    name: str
    own_bytes: int = 0


def let_go_of_files(folder: Path) -> None:
    """Take the pages of a folder's mapped files out of this process; what is read again comes back.

    A runtime maps the weights and packs them elsewhere; what it read counts as this process's memory until
    somebody needs it. Of Linux only: nothing is done where pages may have been written to, and Windows takes
    such pages by itself.
    """
    names = {str(path.resolve()) for path in folder.iterdir()}
    for area in _areas():
        if area.name in names and not area.own_bytes:
            _advise(area.start, area.end, _DONTNEED)


def make_huge() -> Iterator[int]:
    """Put large areas of memory into huge pages, one more at each step, which takes milliseconds.

    A token reads all weights, and the processor looks up where they lie page by page. Of Linux 6.1 and later,
    unless somebody has switched huge pages off; it ends early where there is no room for another one.

    yields   bytes of the page
    """
    if not _may_be_huge():
        return
    for area in _areas():
        if area.name or not area.writable:
            continue
        first = -(-area.start // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
        for start in range(first, area.end - _HUGE_PAGE_BYTES + 1, _HUGE_PAGE_BYTES):
            if _share_in_use(start) < _LEAST_IN_USE:
                continue
            if not _advise(start, start + _HUGE_PAGE_BYTES, _COLLAPSE):
                return
            yield _HUGE_PAGE_BYTES


def _may_be_huge() -> bool:
    try:
        return "[never]" not in _TRANSPARENT_HUGE_PAGES.read_text(encoding="utf-8")
    except OSError:
        return False


def _share_in_use(start: int) -> float:
    """How much of what would be a huge page is memory."""
    import ctypes

    resident = ctypes.create_string_buffer(_HUGE_PAGE_BYTES // mmap.PAGESIZE)
    mincore = ctypes.CDLL(None).mincore
    if mincore(ctypes.c_void_p(start), ctypes.c_size_t(_HUGE_PAGE_BYTES), resident):
        return 0.0
    return sum(byte & 1 for byte in resident.raw) / len(resident)


def _advise(start: int, end: int, advice: int) -> bool:
    """Tell the system how these addresses are used; whether it follows."""
    import ctypes

    madvise = ctypes.CDLL(None).madvise
    return int(madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)) == 0


def _areas() -> list[_Area]:
    """Of this process, by address, as in proc_pid_smaps(5); none on another system."""
    if sys.platform != "linux" or not _SMAPS.is_file():
        return []
    found: list[_Area] = []
    for line in _SMAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split(maxsplit=5)
        if "-" in words[0]:
            start, end = (int(word, 16) for word in words[0].split("-"))
            found.append(_Area(start, end, "w" in words[1], words[5] if len(words) > 5 else ""))
        elif words[0] == "Anonymous:":
            found[-1].own_bytes = 1024 * int(words[1])
    return found
