"""From a stream that blocks to the event loop: a thread reads it, and what it read comes in batches."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncGenerator, Callable

from aipc.types import Chunk, Stream

# A client that reads slower than the device writes stops the reading of its own stream, not the device.
_MOST_UNREAD = 256


class _Threads:
    """One for each work at a time, kept for the next: the event loop would wait while a thread starts."""

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)

    def run(self, work: Callable[[], None]) -> None:
        """Have a thread do it, now."""
        self._work.put(work)
        if not self._idle.acquire(blocking=False):
            # Not those of concurrent.futures: the program's end would wait for them.
            threading.Thread(target=self._serve, name="aipc-answer", daemon=True).start()

    def _serve(self) -> None:
        while True:
            self._work.get()()
            self._idle.release()


_THREADS = _Threads()


async def read(open_stream: Callable[[], Stream[Chunk]]) -> AsyncGenerator[list[Chunk], None]:
    """The chunks of a stream, those that have come together in one list.

    Closing the generator, or cancelling who waits for it, stops the work.

    open_stream   called in the thread: it may take its time
    raises        what the stream raises
    """
    reader = _Reader(open_stream)
    try:
        while not reader.ended:
            yield await reader.take()
        if reader.failure is not None:
            raise reader.failure
    finally:
        reader.cancel()


class _Reader:
    def __init__(self, open_stream: Callable[[], Stream[Chunk]]) -> None:
        self._open = open_stream
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._lock = threading.Lock()
        self._room = threading.Semaphore(_MOST_UNREAD)
        self._unread: list[Chunk] = []
        self._stream: Stream[Chunk] | None = None
        self._finished = False
        self._cancelled = False
        self.failure: BaseException | None = None
        _THREADS.run(self._run)

    @property
    def ended(self) -> bool:
        """Whether all was taken."""
        with self._lock:
            return self._finished and not self._unread

    async def take(self) -> list[Chunk]:
        """What has come, once something has; empty at the end."""
        await self._news.wait()
        with self._lock:
            self._news.clear()
            taken, self._unread = self._unread, []
            if self._finished:
                self._news.set()
        for _ in taken:
            self._room.release()
        return taken

    def cancel(self) -> None:
        """Stop the thread, whether it waits for the device or for the reader."""
        with self._lock:
            self._cancelled = True
            stream = self._stream
        self._room.release()
        if stream is not None:
            stream.cancel()

    def _run(self) -> None:
        try:
            stream = self._open()
            with self._lock:
                self._stream = stream
                if self._cancelled:
                    stream.cancel()
            with contextlib.closing(stream):
                for chunk in stream:
                    self._room.acquire()
                    if self._cancelled:
                        return
                    self._add(chunk)
        except BaseException as exc:  # noqa: BLE001 - raised again where the stream is read
            self.failure = exc
        finally:
            self._add(None)

    def _add(self, chunk: Chunk | None) -> None:
        """Give a chunk to the loop, or tell it of the end."""
        with self._lock:
            if chunk is None:
                self._finished = True
            else:
                self._unread.append(chunk)
            wake = chunk is None or len(self._unread) == 1
        if wake:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
                self._loop.call_soon_threadsafe(self._news.set)
