"""An engine of a few scripted answers, to be run by aipc.runtimes.process.EngineProcess.

The first id of a prompt says what happens: COUNT gives 1, 2, 3 … without an end, CRASH ends the process,
RAISE does so with a traceback, HOLD computes for a minute in native code that keeps Python's lock, anything
else gives the prompt back.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

from aipc.errors import SchemeError
from aipc.runtimes.engine import Inbox, Outbox, Request, serve

COUNT, CRASH, RAISE, HOLD = 100, 101, 102, 103


class ScriptedEngine:
    """Counts in all streams at once, one step each."""

    def __init__(self, options: dict[str, Any]) -> None:
        if options["fail"]:
            raise SchemeError("the weights do not fit", hint="convert them")
        print("noise of a native library")
        os.write(1, b"more of it\n")
        self.about = {"device": options["device"]}

    def run(self, inbox: Inbox, outbox: Outbox) -> None:
        counts: dict[int, int] = {}
        while not inbox.closed:
            for request in inbox.take(wait=not counts):
                self._start(request, counts, outbox)
            for number in list(counts):
                if inbox.withdrawn(number):
                    del counts[number]
                    inbox.forget(number)
                else:
                    counts[number] += 1
                    outbox.ids(number, [counts[number]], end=False)

    def _start(self, request: Request, counts: dict[int, int], outbox: Outbox) -> None:
        if request.prompt[0] == COUNT:
            counts[request.number] = 0
        elif request.prompt[0] == CRASH:
            sys.stderr.write("a native library fell over\n")
            sys.stderr.flush()
            os._exit(3)
        elif request.prompt[0] == RAISE:
            raise RuntimeError("a pipeline broke")
        elif request.prompt[0] == HOLD:
            outbox.ids(request.number, [os.getpid()], end=False)
            # A PyDLL, unlike a CDLL, does not let go of the lock.
            if sys.platform == "win32":
                ctypes.PyDLL("kernel32").Sleep(60_000)
            else:
                ctypes.PyDLL(None).sleep(60)
        else:
            guided = request.sampling.guidance
            text = [] if guided is None else [*guided.text.encode()]
            stop_ids = sorted(request.sampling.stop_ids)
            outbox.ids(request.number, [*request.prompt, *stop_ids, *text], end=True)


def main() -> None:
    serve(ScriptedEngine)
