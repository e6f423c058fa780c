"""A child process never outlives this one, also when this one is killed and can say no farewell.

The end of its stdin tells a child that its parent is gone, but only once it runs Python again: native code
that computes for minutes and holds Python's lock would be an orphan for so long. What is here is done by the
operating system: on Windows by a job object, elsewhere by a signal that a pipe sends when its writer is gone.

Why not prctl(PR_SET_PDEATHSIG): it fires when the *thread* ends that started the child.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from typing import IO, Any, Protocol

# The caller's path, without the current folder: nothing that lies there is imported by accident.
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from aipc.runtimes.orphans import end_with_parent; end_with_parent(sys.argv[2]); "
    "from {module} import main; main()"
)


def start_child(module: str, log: IO[bytes]) -> tuple[subprocess.Popen[bytes], Lifeline]:
    """A Python process that runs `main()` of a module, with pipes for stdin and stdout.

    log       its stderr
    returns   the process, and what ends it with this one; to be closed when it has ended
    """
    line = lifeline()
    process = subprocess.Popen(
        [
            sys.executable,
            "-P",
            "-c",
            _CHILD.format(module=module),
            json.dumps([part for part in sys.path if part]),
            line.word,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        **line.options,
    )
    line.hold(process)
    return process, line


def leave_interrupts_to_parent() -> None:
    """Called by the child: Ctrl+C and Ctrl+Break reach every process of a terminal, and the parent says
    what they mean. The end of stdin is what ends the child."""
    for name in ("SIGINT", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None:
            signal.signal(number, signal.SIG_IGN)


class Lifeline(Protocol):
    """Held by the parent as long as the child may live.

    word      for the child's command line, where it hands it to `end_with_parent`
    options   for subprocess.Popen
    """

    word: str
    options: dict[str, Any]

    def hold(self, process: subprocess.Popen[bytes]) -> None:
        """Called when the child has been started."""

    def close(self) -> None:
        """Called when it has ended; else it ends now."""


if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    _KILL_ON_JOB_CLOSE = 0x2000
    _EXTENDED_LIMITS = 9

    class _BasicLimits(ctypes.Structure):
        """JOBOBJECT_BASIC_LIMIT_INFORMATION of winnt.h."""

        _fields_ = (
            ("PerProcessUserTimeLimit", ctypes.c_int64),
            ("PerJobUserTimeLimit", ctypes.c_int64),
            ("LimitFlags", wintypes.DWORD),
            ("MinimumWorkingSetSize", ctypes.c_size_t),
            ("MaximumWorkingSetSize", ctypes.c_size_t),
            ("ActiveProcessLimit", wintypes.DWORD),
            ("Affinity", ctypes.c_size_t),
            ("PriorityClass", wintypes.DWORD),
            ("SchedulingClass", wintypes.DWORD),
        )

    class _ExtendedLimits(ctypes.Structure):
        """JOBOBJECT_EXTENDED_LIMIT_INFORMATION of winnt.h."""

        _fields_ = (
            ("BasicLimitInformation", _BasicLimits),
            ("IoInfo", ctypes.c_uint64 * 6),
            ("ProcessMemoryLimit", ctypes.c_size_t),
            ("JobMemoryLimit", ctypes.c_size_t),
            ("PeakProcessMemoryUsed", ctypes.c_size_t),
            ("PeakJobMemoryUsed", ctypes.c_size_t),
        )

    class _Job:
        """Its last handle closes with the parent, and then Windows ends what is in it."""

        word = ""

        def __init__(self) -> None:
            self.options: dict[str, Any] = {}
            self._kernel = ctypes.WinDLL("kernel32", use_last_error=True)
            self._kernel.CreateJobObjectW.restype = wintypes.HANDLE
            self._job = wintypes.HANDLE(self._kernel.CreateJobObjectW(None, None))
            limits = _ExtendedLimits()
            limits.BasicLimitInformation.LimitFlags = _KILL_ON_JOB_CLOSE
            self._kernel.SetInformationJobObject(
                self._job, _EXTENDED_LIMITS, ctypes.byref(limits), ctypes.sizeof(limits)
            )

        def hold(self, process: subprocess.Popen[bytes]) -> None:
            # Where a job forbids others inside it, the end of stdin is what is left.
            started: Any = process
            self._kernel.AssignProcessToJobObject(self._job, wintypes.HANDLE(int(started._handle)))

        def close(self) -> None:
            if self._job:
                self._kernel.CloseHandle(self._job)
                self._job = wintypes.HANDLE()

    def lifeline() -> Lifeline:
        """One for a child that is about to be started."""
        return _Job()

    def end_with_parent(word: str) -> None:
        """Called by the child as early as possible: there is nothing to do on Windows."""

else:
    import fcntl

    class _Pipe:
        """Nothing is ever written to it: its only event is its end."""

        def __init__(self) -> None:
            self._reader, self._writer = os.pipe()
            self.word = str(self._reader)
            self.options: dict[str, Any] = {"pass_fds": (self._reader,)}

        def hold(self, process: subprocess.Popen[bytes]) -> None:
            os.close(self._reader)
            self._reader = -1

        def close(self) -> None:
            for end in (self._reader, self._writer):
                if end >= 0:
                    os.close(end)
            self._reader = self._writer = -1

    def lifeline() -> Lifeline:
        """One for a child that is about to be started."""
        return _Pipe()

    def end_with_parent(word: str) -> None:
        """Called by the child as early as possible, with the `word` of its command line."""
        pipe = int(word)
        # What SIGIO does by default is to end the process: no Python has to run for it.
        signal.signal(signal.SIGIO, signal.SIG_DFL)
        fcntl.fcntl(pipe, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(pipe, fcntl.F_SETFL, fcntl.fcntl(pipe, fcntl.F_GETFL) | os.O_ASYNC)
        ended = select.poll()
        ended.register(pipe)
        if ended.poll(0):
            # The parent was gone before the signal was asked for.
            os._exit(1)
