"""A file of tensors at aligned offsets, written by several threads in any order."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

_ALIGNMENT_BYTES = 64


class Blob:
    """Space in a file is reserved first, when only sizes are known, and filled later.

    path   an existing file, whose content stays in front, or a new one
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("r+b" if path.exists() else "w+b", buffering=0)
        self._end = path.stat().st_size
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes reserved so far."""
        return self._end

    def reserve(self, nbytes: int) -> int:
        """The offset of `nbytes` bytes of new, aligned space."""
        offset = -(-self._end // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self._end = offset + nbytes
        return offset

    def write(self, offset: int, data: np.ndarray) -> None:
        """Write an array's bytes at an offset within reserved space."""
        view = np.ascontiguousarray(data).reshape(-1).view(np.uint8).data
        if offset + len(view) > self._end:
            raise ValueError(f"{len(view)} bytes at {offset} exceed the {self._end} reserved")
        # Seek and write under a lock, because there is no pwrite on Windows.
        with self._lock:
            self._file.seek(offset)
            while len(view):
                view = view[self._file.write(view) :]

    def close(self) -> None:
        """Give the file its full size, also where nothing was written at its end."""
        if not self._file.closed:
            self._file.truncate(self._end)
            self._file.close()
