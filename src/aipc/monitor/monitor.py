"""The caller's side of the sampling process: starts it, keeps what it writes, and sums it up for a run."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self, cast

from aipc.errors import RuntimeFailedError, StorageError, UsageError
from aipc.monitor.sample import LONGEST_S, SHORTEST_S, Sample
from aipc.monitor.usage import Usage, UsageMeter
from aipc.runtimes.orphans import Lifeline, start_child
from aipc.types import Chunk

# The first answer waits for the process to start, which a slow disk or a busy machine may delay.
_START_S = 30.0
# Nobody wants to wait at the end of an answer for a counter that hangs.
_LAST_SAMPLE_S = 2.0
_CLOSED = "the monitor was closed"
# On Windows a thread that waits without a limit does not hear Ctrl+C.
_WAIT_S = 0.2


class Monitor:
    """Samples every NPU, GPU and CPU in a process of its own, from the start of a `with` block to its end.

    interval_s   between two samples, 0.02 to 600
    history      how many of the latest samples are kept
    pid          of the process whose share is told apart, with its descendants; None for this one
    record       a file for every sample, a line of JSON each; one that is there is written anew

    raises       UsageError; when it starts, StorageError
    """

    def __init__(
        self,
        interval_s: float = 1.0,
        *,
        history: int = 3600,
        pid: int | None = None,
        record: str | Path | None = None,
    ) -> None:
        if not SHORTEST_S <= interval_s <= LONGEST_S:
            raise UsageError(f"the interval is {interval_s} s; it must be {SHORTEST_S} to {LONGEST_S:.0f} s")
        if history < 1:
            raise UsageError(f"the history is {history} samples; it must be 1 or more")
        self._options = {"interval_s": interval_s, "pid": os.getpid() if pid is None else pid}
        self._record = None if record is None else Path(record)
        self._intake = _Intake(history)
        self._end: weakref.finalize[Any, Any] | None = None

    @property
    def samples(self) -> list[Sample]:
        """The latest, oldest first: at most `history` of them."""
        return self._intake.samples()

    @property
    def failure(self) -> str:
        """Why no more samples come or none are recorded, or "" as long as they do."""
        return self._intake.failure

    def start(self) -> None:
        """Start sampling; the first sample comes after some tenths of a second.

        raises   StorageError if the recording can't be written
        """
        if self._end is not None:
            raise UsageError("a monitor is started once", hint="make another one")
        recording = None if self._record is None else _open_recording(self._record)
        log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process writes to it
        process, line = start_child("aipc.monitor.sampler", log)
        self._pipe = cast("IO[bytes]", process.stdin)
        reader = threading.Thread(
            target=self._intake.read, args=(process, recording, log), name="aipc-monitor", daemon=True
        )
        # Garbage collection, the interpreter's exit and close() all end the process, whichever is first.
        self._end = weakref.finalize(self, _end, process, self._intake, reader, line, log)
        reader.start()
        self._send(self._options)

    def close(self) -> None:
        """Stop sampling. What was sampled stays."""
        if self._end is not None:
            self._end()

    def sample(self) -> Sample:
        """A sample of now.

        raises   RuntimeFailedError if the process has ended or does not answer
        """
        return self._intake.wait_for(self._ask(), _START_S)

    def follow(self) -> Iterator[Sample]:
        """Each new sample as it comes, until the monitor is closed or fails."""
        number = 0
        while (sample := self._intake.next_after(number)) is not None:
            number = sample.number
            yield sample

    def watch(
        self, chunks: Iterator[Chunk], device: str, address: str | None = None
    ) -> Generator[Chunk, None, None]:
        """The same chunks; the Stats in the last tell how far the device was used, where that is readable.

        device    the word of the session that answers, such as "NPU"
        address   the device's, of PCI or the LUID, where it is known
        """
        meter = UsageMeter(device, address)
        # An answer is worth more than its figures: it comes also without them.
        with contextlib.suppress(RuntimeFailedError):
            self._ask(meter)
        try:
            for chunk in chunks:
                if chunk.stats is None:
                    yield chunk
                else:
                    usage = asdict(self._finish(meter))
                    yield replace(chunk, stats=replace(chunk.stats, **usage))
        finally:
            self._intake.remove_meter(meter)
            close = getattr(chunks, "close", None)
            if close is not None:
                close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _finish(self, meter: UsageMeter) -> Usage:
        # Without a sample of the end, the ones before must do.
        with contextlib.suppress(RuntimeFailedError):
            self._intake.wait_for(self._ask(), _LAST_SAMPLE_S)
        return meter.usage()

    def _ask(self, meter: UsageMeter | None = None) -> int:
        """The number of a request for a sample, which is the first one for the meter."""
        if self._end is None:
            raise UsageError(
                "the monitor has not been started", hint="use it in a with block, or call start()"
            )
        number = self._intake.new_request(meter)
        self._send(number)
        return number

    def _send(self, message: object) -> None:
        try:
            self._pipe.write(json.dumps(message).encode() + b"\n")
            self._pipe.flush()
        except (OSError, ValueError) as exc:
            raise RuntimeFailedError(self._intake.wait_for_end()) from exc


class _Intake:
    """What the process writes: read in a thread, kept, recorded, and added up for the runs of now."""

    def __init__(self, history: int) -> None:
        self._samples: deque[Sample] = deque(maxlen=history)
        self._changed = threading.Condition()
        self._meters: dict[UsageMeter, int] = {}
        self._asked = self._answered = -1
        self._ended = False
        self.closed = False
        self.failure = ""

    def samples(self) -> list[Sample]:
        """Those that are kept."""
        with self._changed:
            return list(self._samples)

    def new_request(self, meter: UsageMeter | None) -> int:
        """A number that no other request has; the meter is given each sample from its answer on."""
        with self._changed:
            self._asked += 1
            if meter is not None:
                self._meters[meter] = self._asked
            return self._asked

    def remove_meter(self, meter: UsageMeter) -> None:
        """Give it none any more."""
        with self._changed:
            self._meters.pop(meter, None)

    def wait_for(self, request: int, limit_s: float) -> Sample:
        """The sample that answers this request, or a later one.

        raises   RuntimeFailedError
        """
        give_up_s = time.monotonic() + limit_s
        with self._changed:
            while self._answered < request:
                if self._ended:
                    raise RuntimeFailedError(self.failure or _CLOSED)
                if time.monotonic() >= give_up_s:
                    raise RuntimeFailedError(f"the monitor's process has not answered for {limit_s:.0f} s")
                self._changed.wait(_WAIT_S)
            return self._samples[-1]

    def wait_for_end(self) -> str:
        """Why a process that takes no more requests has ended."""
        with self._changed:
            while not self._ended:
                self._changed.wait(_WAIT_S)
            return self.failure or _CLOSED

    def next_after(self, number: int) -> Sample | None:
        """The oldest kept sample with a higher number, waited for; None if no more come."""
        with self._changed:
            while not self._samples or self._samples[-1].number <= number:
                if self._ended:
                    return None
                self._changed.wait(_WAIT_S)
            return next(sample for sample in self._samples if sample.number > number)

    def read(self, process: subprocess.Popen[bytes], recording: IO[bytes] | None, log: IO[bytes]) -> None:
        """Take every line until the process ends."""
        try:
            for line in cast("IO[bytes]", process.stdout):
                # A process that is killed may leave half a line.
                if line.endswith(b"\n"):
                    asked, _, sample = line.partition(b" ")
                    recording = self._recorded(recording, sample)
                    self._take(int(asked), Sample.parse(sample))
            code = process.wait()
            if not self.closed:
                self.failure = f"the monitor's process ended with the code {code}: {_last_words(log)}"
        finally:
            if recording is not None:
                recording.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _recorded(self, recording: IO[bytes] | None, line: bytes) -> IO[bytes] | None:
        """Write a line; the recording to go on with, which is None after a disk was full."""
        if recording is None:
            return None
        try:
            recording.write(line)
        except OSError as exc:
            self.failure = f"the recording ended: {exc.strerror or exc}"
            with contextlib.suppress(OSError):
                recording.close()
            return None
        return recording

    def _take(self, asked: int, sample: Sample) -> None:
        with self._changed:
            self._samples.append(sample)
            self._answered = max(self._answered, asked)
            for meter, request in self._meters.items():
                meter.add(sample)
                if asked == request:
                    meter.start(sample)
            self._changed.notify_all()


def _open_recording(path: Path) -> IO[bytes]:
    try:
        return path.open("wb", buffering=0)
    except OSError as exc:
        raise StorageError(
            f"the recording {path} can't be written: {exc.strerror or exc}",
            hint="name a file in a folder of yours",
        ) from exc


def _end(
    process: subprocess.Popen[bytes],
    intake: _Intake,
    reader: threading.Thread,
    line: Lifeline,
    log: IO[bytes],
) -> None:
    """Killed, because there is nothing in it to save: that takes a millisecond."""
    intake.closed = True
    process.kill()
    process.wait()
    line.close()
    with contextlib.suppress(OSError):
        cast("IO[bytes]", process.stdin).close()
    if threading.current_thread() is not reader:
        reader.join()
    cast("IO[bytes]", process.stdout).close()
    log.close()


def _last_words(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode("utf-8", "replace").strip().rpartition("\n")[2][:300]
