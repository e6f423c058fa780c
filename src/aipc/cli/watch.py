"""A run with a monitor beside it, and the live line of `aipc run --watch`."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from aipc.cli import console
from aipc.types import Chunk

if TYPE_CHECKING:
    from aipc.cli.console import Line
    from aipc.cli.device_view import Glyphs
    from aipc.model import Model
    from aipc.monitor import DeviceSample, Monitor

Stream = Callable[..., Iterator[Chunk]]

# Intel recommends to read the NPU's busy time no more than once a second.
_NPU_INTERVAL_S, _INTERVAL_S = 1.0, 0.25
_REDRAW_S = 0.1
_HISTORY_WIDTH = 16


@contextmanager
def watched(model: Model, *, live: bool) -> Iterator[Stream]:
    """Model.stream with a monitor, by which the Stats say whether NPU or GPU computed.

    Without `live`, a CPU has none: there is no doubt, and the process that samples would delay the answer.

    live   whether a line at the bottom of the terminal shows the device while it answers
    """
    if model.device == "CPU" and not live:
        yield model.stream
        return
    from aipc.monitor import Monitor

    interval_s = _INTERVAL_S if live and model.device != "NPU" else _NPU_INTERVAL_S
    with Monitor(interval_s, history=_HISTORY_WIDTH) as monitor:
        stream = partial(model.stream, monitor=monitor)
        if live and console.can_redraw(sys.stderr):
            yield lambda *args, **options: _with_live_line(stream(*args, **options), model, monitor)
        else:
            if live:
                console.note("--watch needs a terminal; the last line will say how busy the device was.")
            yield stream


@dataclass(slots=True)
class Pace:
    """How far an answer is. Its clock starts when it is made.

    ttft_s         None until the first token
    tokens_per_s   of the tokens after the first ones; None until there are some
    """

    clock: Callable[[], float] = time.perf_counter
    tokens: int = 0
    ttft_s: float | None = None
    tokens_per_s: float | None = None
    _start_s: float = 0.0
    _first_tokens: int = 0

    def __post_init__(self) -> None:
        self._start_s = self.clock()

    def take(self, chunk: Chunk) -> None:
        """Count the tokens of the next piece."""
        if not chunk.token_ids:
            return
        now_s = self.clock() - self._start_s
        self.tokens += len(chunk.token_ids)
        if self.ttft_s is None:
            self.ttft_s, self._first_tokens = now_s, len(chunk.token_ids)
        elif now_s > self.ttft_s:
            self.tokens_per_s = (self.tokens - self._first_tokens) / (now_s - self.ttft_s)

    def words(self) -> list[str]:
        """It for people, the most important first."""
        if self.ttft_s is None:
            return [f"waiting for the first token, {self.clock() - self._start_s:.1f} s"]
        speed = "" if self.tokens_per_s is None else f"{self.tokens_per_s:.1f} tokens/s"
        return [speed, f"first token {self.ttft_s:.2f} s", f"{self.tokens} tokens"]


def _with_live_line(chunks: Iterator[Chunk], model: Model, monitor: Monitor) -> Iterator[Chunk]:
    """The same chunks, with a line on stderr for as long as they come."""
    from aipc.cli.device_view import glyphs_for
    from aipc.monitor.usage import find_device

    pace, ended, glyphs = Pace(), threading.Event(), glyphs_for(sys.stderr)

    def redraw() -> None:
        while not ended.wait(_REDRAW_S):
            seen = [find_device(each.devices, model.device, model.address) for each in monitor.samples]
            line.show(live_line(pace, model.device, seen, line.width, glyphs))

    with console.bottom_line() as line:
        # A thread, because the first token may take long.
        drawer = threading.Thread(target=redraw, name="aipc-live-line", daemon=True)
        drawer.start()
        try:
            for chunk in chunks:
                pace.take(chunk)
                line.hear(chunk.text)
                yield chunk
        finally:
            ended.set()
            drawer.join()
            close = getattr(chunks, "close", None)
            if close is not None:
                close()


def live_line(pace: Pace, word: str, seen: Sequence[DeviceSample | None], width: int, glyphs: Glyphs) -> Line:
    """The device that answers and the pace of the answer; the less important left out where it is narrow.

    word   for the device
    seen   of it, oldest first; None where a sample lacks it
    """
    from aipc.cli.device_view import history_of, memory, percent

    now = seen[-1] if seen else None
    utilisation = now.utilisation if now else None
    device, history = f"{word} {percent(utilisation, glyphs):>5} ", ""
    if utilisation is not None:
        history = history_of([each.utilisation if each else None for each in seen], _HISTORY_WIDTH, glyphs)
    chosen: list[str] = []
    # In the order of their importance, which is that of their places, too.
    for part in [*pace.words(), memory(now) if now else "", _why_unknown(now)]:
        if part and len(device + history + glyphs.between.join(["", *chosen, part])) <= width:
            chosen.append(part)
    return [(device, "bold"), (history, "cyan"), (glyphs.between.join(["", *chosen]), "dim")]


def _why_unknown(device: DeviceSample | None) -> str:
    """The reason why its utilisation is not known, or ""."""
    why = device and device.not_readable.get("utilisation")
    return why.reason if why else ""
