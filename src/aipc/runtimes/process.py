"""A runtime in a process of its own: token ids travel through its pipes, a line of JSON a message.

Why a process: `step()` of openvino-genai holds Python's lock while it computes, and so does
onnxruntime-genai. In the caller's process a long prompt would freeze every other thread for seconds:
a server, a progress bar, Ctrl+C. It costs some 20 microseconds a token, and gives more: native code
that crashes ends a stream and not the program, nothing it prints reaches stdout, and what it held is
free when it ends. A process that hangs, as it does with a device whose driver was reset, is ended too.

This file is the caller's side; aipc.runtimes.engine is the other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import queue
import signal
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

from aipc import errors
from aipc.errors import AipcError, EngineLostError, RuntimeFailedError
from aipc.runtimes.orphans import Lifeline, start_child
from aipc.types import Prefill, Sampling, ScoredToken, TokenStream

# On Windows a thread that waits without a limit does not hear Ctrl+C.
_WAIT_S = 0.2
_EXIT_S = 2.0

# The watchdog: so long may a process say nothing while it owes answers, and so much longer for each token
# of the prompts that it still reads; 10 tokens/s is what the slowest machine reads of the largest model.
SILENCE_S = 60.0
_READING_S_PER_TOKEN = 0.25
# And so long when it says that it compiles, or loads.
_BUSY_S = 1800.0

_NTSTATUS_ERROR = 0xC0000000

_Answers = queue.SimpleQueue[dict[str, Any]]


class EngineProcess:
    """Starts an engine, and gives each stream its own ids.

    module    holds the engine's `main`
    options   for the engine, in JSON's types
    silence_s how long it may say nothing while it owes answers
    at_end    called in a thread when the process has ended, whatever ended it
    ready     what the engine said of itself when it was loaded

    raises    what the engine raised while it loaded; EngineLostError if it ended instead
    """

    def __init__(
        self,
        module: str,
        options: Mapping[str, object],
        *,
        silence_s: float = SILENCE_S,
        at_end: Sequence[Callable[[], None]] = (),
    ) -> None:
        self._silence_s = silence_s
        self._hung = False
        self._telling = threading.Lock()
        self._last_words: list[str] | None = None
        # Of the requests without an answer yet: how many tokens are to be read.
        self._reading: dict[int, int] = {}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process writes to it
        self._process, line = start_child(module, self._log)
        self._router = _Router(cast("IO[bytes]", self._process.stdout), at_end)
        # Reentrant, because a stream that is collected as garbage may cancel itself in the middle of a send.
        self._sending = threading.RLock()
        # Garbage collection, the interpreter's exit and close() all end the process, whichever is first.
        self._end = weakref.finalize(self, _end, self._process, self._router, self._log, line)
        try:
            opening = self._router.open()
            self._send({"open": dict(options)})
            self.ready = cast("dict[str, Any]", self._receive(opening[1]))["ready"]
        except BaseException:
            self._process.kill()
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether it can take a request, as far as is known."""
        return self._end.alive and not self._router.ended and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> TokenStream:
        """The ids that follow `prompt`. Closing or cancelling the stream withdraws the request.

        raises   RuntimeFailedError, PromptTooLongError
        """
        cancelled, prefill = threading.Event(), Prefill()
        return TokenStream(self.ids(prompt, sampling, cancelled, prefill), cancelled, prefill)

    def ids(
        self, prompt: Sequence[int], sampling: Sampling, cancelled: threading.Event, prefill: Prefill
    ) -> Generator[int, None, None]:
        """The ids that follow `prompt`, until another thread sets `cancelled`; `prefill` is filled in."""
        fields = dataclasses.asdict(sampling) | {"stop_ids": sorted(sampling.stop_ids)}
        return self._exchange({"prompt": list(prompt), "sampling": fields}, len(prompt), cancelled, prefill)

    def write_scores(
        self, prompt: Sequence[int], following: Sequence[int], path: Path
    ) -> Generator[int, None, None]:
        """Write the scores at each token that follows `prompt`, [following, vocab_size] float32, as .npy.

        The file is there when the last token was given out; each is, when its scores are known.

        raises   RuntimeFailedError
        """
        forced = {"ids": list(following), "path": str(path)}
        sampling = dataclasses.asdict(Sampling(max_new_tokens=len(following))) | {"stop_ids": []}
        request = {"prompt": list(prompt), "sampling": sampling, "forced": forced}
        return self._exchange(request, len(prompt))

    def _exchange(
        self,
        request: Mapping[str, object],
        tokens: int,
        cancelled: threading.Event | None = None,
        prefill: Prefill | None = None,
    ) -> Generator[int, None, None]:
        """Ask, and give out what is answered.

        tokens   to be read before the first answer
        """
        number, answers = self._router.open()
        ended = False
        try:
            self._reading[number] = tokens
            self._send({"id": number, **request})
            while not ended:
                try:
                    answer = self._receive(answers, cancelled)
                except AipcError:
                    ended = True
                    raise
                if answer is None:
                    return
                self._reading.pop(number, None)
                ended = answer["end"]
                if prefill is not None and "cached" in answer:
                    prefill.cached_tokens = answer["cached"]
                yield from _scored(answer) if "scores" in answer else answer["ids"]
        finally:
            self._reading.pop(number, None)
            self._router.forget(number)
            if not ended:
                with contextlib.suppress(RuntimeFailedError):
                    self._send({"cancel": number})

    def close(self) -> None:
        """End the process; every running stream ends with RuntimeFailedError."""
        with self._telling:
            self._end()

    def bury(self) -> None:
        """Let go of a process that has died or hangs; its streams still learn what became of it."""
        if not self._hung:
            self._process.wait()
        with self._telling:
            if self._end.alive and not self._hung:
                self._keep_last_words()
            self._end()

    def _send(self, message: Mapping[str, object]) -> None:
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        pipe = cast("IO[bytes]", self._process.stdin)
        try:
            with self._sending:
                pipe.write(line)
                pipe.flush()
        except (OSError, ValueError) as exc:
            raise self._failed() from exc

    def _receive(self, answers: _Answers, cancelled: threading.Event | None = None) -> dict[str, Any] | None:
        """The next answer, or None once it is cancelled. Whoever waits here keeps the watch."""
        silent_s, heard = 0.0, self._router.heard
        while not (cancelled and cancelled.is_set()):
            try:
                answer = answers.get(timeout=_WAIT_S)
            except queue.Empty:
                # Waits are counted, and no clock is read: a machine that slept has not been silent.
                silent_s = silent_s + _WAIT_S if heard == self._router.heard else 0.0
                heard = self._router.heard
                if silent_s > self._patience_s():
                    self._give_up()
                continue
            if "error" in answer:
                raise _rebuilt(answer["error"])
            if "ended" in answer:
                raise self._failed()
            return answer
        return None

    def _patience_s(self) -> float:
        if self._router.busy:
            return _BUSY_S
        return self._silence_s + _READING_S_PER_TOKEN * sum([*self._reading.values()])

    def _give_up(self) -> None:
        """End a process that hangs; every stream is told, even if the system cannot end it."""
        self._hung = True
        self._process.kill()
        self._router.end()

    def _failed(self) -> RuntimeFailedError:
        """Why nothing more comes out of the process."""
        if self._hung:
            return EngineLostError(
                "the runtime's process gave no sign of life and was ended",
                hint="ask again, which starts it anew; if it happens again, the device's driver may hang",
            )
        if self._end.alive:
            self._process.wait()
        with self._telling:
            # Another stream may have found it dead before, and begun anew.
            if self._last_words is None and not self._end.alive:
                return RuntimeFailedError("the model was closed")
            words = self._keep_last_words()
        failure = EngineLostError(
            f"the runtime's process {_ending(self._process.returncode)}"
            + (f": {words[-1][:300]}" if words else ""),
            hint="ask again, which starts it anew; if it happens again, see what --verbose says",
        )
        failure.add_note("\n".join(words[-40:]))
        return failure

    def _keep_last_words(self) -> list[str]:
        """What the process has printed; read once, before the file is closed."""
        if self._last_words is None:
            self._log.seek(0)
            self._last_words = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return self._last_words


class Worker:
    """An `EngineProcess`, and a fresh one for the request that comes after its death.

    silence_s how long it may say nothing while it owes answers
    ready     what the first engine said of itself when it was loaded

    raises    as EngineProcess
    """

    def __init__(self, module: str, options: Mapping[str, object], *, silence_s: float = SILENCE_S) -> None:
        # The threads that call these hold the list, and not the worker: it can be collected.
        self._at_end: list[Callable[[], None]] = []
        self._start = functools.partial(
            EngineProcess, module, dict(options), silence_s=silence_s, at_end=self._at_end
        )
        self._lock = threading.Lock()
        self._closed = False
        self._process = self._start()
        self.ready = self._process.ready

    @property
    def pid(self) -> int:
        """The number of the process that computes now."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process is there; else the next request starts a fresh one."""
        return self._process.alive

    def when_ended(self, call: Callable[[], None]) -> None:
        """Have this called in a thread whenever a process has ended, by itself or by `close`."""
        self._at_end.append(call)

    def stream(self, prompt: Sequence[int], sampling: Sampling) -> TokenStream:
        """The ids that follow `prompt`. Closing or cancelling the stream withdraws the request.

        raises   as EngineProcess, and what its loading raises where it must be started again
        """
        cancelled, prefill = threading.Event(), Prefill()
        return TokenStream(self._ids(prompt, sampling, cancelled, prefill), cancelled, prefill)

    def close(self) -> None:
        """End the process; every running stream ends with RuntimeFailedError."""
        self._closed = True
        self._process.close()

    def _ids(
        self, prompt: Sequence[int], sampling: Sampling, cancelled: threading.Event, prefill: Prefill
    ) -> Generator[int, None, None]:
        yield from self._living().ids(prompt, sampling, cancelled, prefill)

    def _living(self) -> EngineProcess:
        with self._lock:
            if not self._closed and not self._process.alive:
                self._process.bury()
                self._process = self._start()
                if self._closed:
                    # close() was called while it was loaded, and closed the one before.
                    self._process.close()
            return self._process


class _Router:
    """Reads the process's answers in a thread, and sorts them by request.

    at_end  called when the pipe has ended, and with it the process
    heard   how many messages have come
    busy    whether the process said that it is about to be silent for long, as it is while it loads
    """

    def __init__(self, pipe: IO[bytes], at_end: Sequence[Callable[[], None]] = ()) -> None:
        self._pipe = pipe
        self._at_end = at_end
        self._lock = threading.RLock()
        self._waiting: dict[int, _Answers] = {}
        self._last = -1
        self.heard = 0
        self.busy = True
        self.ended = False
        self._thread = threading.Thread(target=self._read, name="aipc-engine-answers", daemon=True)
        self._thread.start()

    def open(self) -> tuple[int, _Answers]:
        """A new number, and where its answers will be. The first, 0, is for the loading."""
        answers: _Answers = queue.SimpleQueue()
        with self._lock:
            self._last += 1
            self._waiting[self._last] = answers
            if self.ended:
                answers.put({"ended": True})
            return self._last, answers

    def forget(self, number: int) -> None:
        """Throw away what still comes for this request."""
        with self._lock:
            self._waiting.pop(number, None)

    def join(self) -> None:
        """Wait until all was read and every request knows of the end."""
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _read(self) -> None:
        try:
            for line in self._pipe:
                # A process that is killed may leave half a line.
                if line.endswith(b"\n"):
                    self._deliver(json.loads(line))
        finally:
            self.end()
            for call in self._at_end:
                call()

    def end(self) -> None:
        """Tell every request that no more answers come."""
        with self._lock:
            self.ended = True
            for answers in self._waiting.values():
                answers.put({"ended": True})

    def _deliver(self, answer: dict[str, Any]) -> None:
        self.heard += 1
        self.busy = answer.get("busy", False)
        if "busy" in answer:
            return
        with self._lock:
            answers = self._waiting.get(answer["id"])
        if answers is not None:
            answers.put(answer)


def _scored(answer: Mapping[str, Any]) -> list[int]:
    """The ids of an answer that tells how likely the first of them were."""
    ids, scores = answer["ids"], answer["scores"]
    likely = [ScoredToken(token, *score) for token, score in zip(ids, scores, strict=False)]
    return [*likely, *ids[len(likely) :]]


def _end(process: subprocess.Popen[bytes], router: _Router, log: IO[bytes], line: Lifeline) -> None:
    """The end of its input ends the engine; one that is deep in a compiler is stopped from outside."""
    with contextlib.suppress(OSError):
        cast("IO[bytes]", process.stdin).close()
    try:
        process.wait(_EXIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        try:
            process.wait(_EXIT_S)
        except subprocess.TimeoutExpired:
            # A driver holds it in the kernel: it ends when the driver lets go, and nothing waits for that.
            line.close()
            return
    line.close()
    router.join()
    cast("IO[bytes]", process.stdout).close()
    log.close()


def _ending(code: int) -> str:
    """How a process ended, for people."""
    if code < 0 and -code in set(signal.Signals):
        return f"was ended by {signal.Signals(-code).name}"
    # Windows' own reasons for an end, such as 0xC0000005 for an access violation, are known in hexadecimal.
    return f"ended with the code {f'0x{code:08X}' if code >= _NTSTATUS_ERROR else code}"


def _rebuilt(failure: Mapping[str, str]) -> AipcError:
    """The engine's error as it was raised there, with its traceback as a note."""
    kind = getattr(errors, failure["kind"], RuntimeFailedError)
    error: AipcError = kind(failure["message"], failure["hint"])
    error.add_note(failure["trace"])
    return error
