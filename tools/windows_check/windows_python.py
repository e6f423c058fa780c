"""Programs of Windows' Python under Wine: begun, heard, and ended where they are stuck."""

from __future__ import annotations

import dataclasses
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).parents[1]))

import packed_python
from pulse import Patience

from windows import Wine, kill, require_debian_packages, windows_path

# How often a program is started of which Wine does not come to the first line.
_STARTS = 3
# A program that does nothing for as long is stuck; how often it is looked at.
_ASLEEP_S, _LOOK_S = 60, 1
_SMALL_LIMIT_S = 120


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a program.

    code      None where it was ended, and then `why` says why
    anew      how often Wine did not get as far as the program's first line, and was started anew
    """

    code: int | None
    stdout: str
    stderr: str
    why: str = ""
    anew: int = 0


class WindowsPython:
    """CPython for Windows with aipc's packages, under Wine; made ready in `cache`.

    source   the folder that aipc is imported from
    models   aipc's cache
    raises   NotHereError
    """

    def __init__(self, cache: Path, *, source: Path, models: Path) -> None:
        packed_python.require_this_version()
        require_debian_packages()
        environment = {
            "PYTHONPATH": windows_path(source),
            "PYTHONDONTWRITEBYTECODE": "1",
            "AIPC_CACHE_DIR": windows_path(models),
            # What is set for this Python is not meant for that one.
            "PYTHONHOME": "",
            "VIRTUAL_ENV": "",
        }
        self._wine = Wine(cache, native=packed_python.NATIVE, environment=environment)
        self._program = packed_python.made(cache) / "python.exe"

    @contextmanager
    def up(self) -> Iterator[None]:
        """Programs can be run within it, and no other process runs any with this cache."""
        with self._wine.up():
            # Wine pretends to be Windows 7 by default, on which Python 3.11 does not run.
            words = ["add", r"HKCU\Software\Wine", "/v", "Version", "/d", "win10", "/f"]
            self._wine.run(Path("reg"), words, _SMALL_LIMIT_S)
            yield

    def run(self, words: Sequence[str], limit_s: float) -> Ran:
        """Run python.exe with these words, or end it after `limit_s` or when it does nothing any more.

        A program of which Wine has not come to the first line is started anew, a few times. One that has
        begun is never: what it does is aipc's affair.
        """
        anew = 0
        while True:
            with tempfile.TemporaryDirectory(prefix="aipc-began-") as folder:
                began = Path(folder) / "began"
                ran = self._once(words, limit_s, began)
                if ran.code is None:
                    # It may have started others.
                    self._wine.restart()
                if ran.code is not None or began.exists() or anew + 1 == _STARTS:
                    return dataclasses.replace(ran, anew=anew)
            anew += 1

    def _once(self, words: Sequence[str], limit_s: float, began: Path) -> Ran:
        # Over pipes: of a file of Linux, Wine does not tell what Python wants to know of its streams.
        mark = f"AIPC_CHECK_BEGAN={windows_path(began)}"
        environment = dict([mark.split("=", 1)])
        process = self._wine.start(self._program, words, subprocess.PIPE, environment)
        patience = Patience(mark, self._wine.prefix)
        out, err, why = _listen(process, limit_s, patience)
        if why:
            why += "" if began.exists() else ", before its first line"
            return Ran(None, out, err, why)
        return Ran(process.returncode, out, err)


def _listen(process: subprocess.Popen[bytes], limit_s: float, patience: Patience) -> tuple[str, str, str]:
    """What a program writes until it ends, or why it was ended.

    What Wine starts beside it holds the same pipes for longer, so their end is not waited for.
    """
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    process.stdin.close()
    heard = {process.stdout: bytearray(), process.stderr: bytearray()}
    ended = os.pidfd_open(process.pid)
    started, why = time.monotonic(), ""
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(ended, selectors.EVENT_READ)
            for stream in heard:
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ)
            while process.poll() is None and not why:
                events = selector.select(_LOOK_S)
                for key, _ in events:
                    if key.fileobj in heard and not _take(key.fileobj, heard[key.fileobj]):
                        selector.unregister(key.fileobj)
                if time.monotonic() - started > limit_s:
                    why = f"took more than {limit_s:.0f} s"
                elif not events and patience.asleep_s(time.monotonic()) > _ASLEEP_S:
                    why = f"did nothing for {_ASLEEP_S} s"
    finally:
        kill(process)
        os.close(ended)
    for stream, text in heard.items():
        while _take(stream, text):
            pass
        stream.close()
    out, err = (text.decode("utf-8", "replace") for text in heard.values())
    return out, err, why


def _take(stream: IO[bytes], text: bytearray) -> bool:
    """Whether there was something to read."""
    try:
        some = os.read(stream.fileno(), 1 << 16)
    except BlockingIOError:
        return False
    text += some
    return bool(some)
