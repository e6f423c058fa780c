"""The other side of aipc.runtimes.process: what runs in the process that computes."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, NoReturn, Protocol

from aipc.errors import AipcError
from aipc.runtimes.orphans import leave_interrupts_to_parent
from aipc.types import Guidance, Sampling, ScoredToken


@dataclass(frozen=True, slots=True)
class Forced:
    """An answer that is given: what is asked are the scores at each of its tokens.

    path   of the .npy file to write, [ids, vocab_size] float32
    """

    ids: list[int]
    path: str


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt that asks for its continuation, or for the scores of one. `number` is the caller's."""

    number: int
    prompt: list[int]
    sampling: Sampling
    forced: Forced | None = None


class Engine(Protocol):
    """A loaded model.

    about   what the caller is told of it, in JSON's types: its device, notes for people, and as "logprobs" of
            how many alternatives to a token it can tell, if it can tell of the token itself
    """

    about: Mapping[str, object]

    def run(self, inbox: Inbox, outbox: Outbox) -> None:
        """Answer requests until the inbox is closed."""


class Inbox:
    """What the caller asks. A thread reads it, so that a cancel is heard while native code computes."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._requests: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._withdrawn: set[int] = set()
        self._pipe = pipe
        self.closed = False
        self.options: dict[str, Any] = json.loads(pipe.readline() or b'{"open": {}}')["open"]
        threading.Thread(target=self._read, name="aipc-engine-inbox", daemon=True).start()

    def take(self, *, wait: bool) -> Iterator[Request]:
        """The requests that have come; with `wait`, at least one, or none if the inbox was closed."""
        with contextlib.suppress(queue.Empty):
            while True:
                request = self._requests.get(block=wait)
                if request is None:
                    return
                yield request
                wait = False

    def again(self, request: Request) -> None:
        """Have `take` give a request once more; from any thread."""
        self._requests.put(request)

    def withdrawn(self, number: int) -> bool:
        """Whether nobody waits for this request any more."""
        return self.closed or number in self._withdrawn

    def forget(self, number: int) -> None:
        """Called at the end of a request."""
        self._withdrawn.discard(number)

    def _read(self) -> None:
        for line in self._pipe:
            message = json.loads(line)
            if "cancel" in message:
                self._withdrawn.add(message["cancel"])
            else:
                self._requests.put(_request(message))
        self.closed = True
        self._requests.put(None)


class Outbox:
    """What the engine answers."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe

    def ready(self, about: Mapping[str, object]) -> None:
        """The model is loaded."""
        self._send({"id": 0, "ready": dict(about)})

    def compiling(self, *, begins: bool) -> None:
        """A device's compiler begins, and nothing will be heard for minutes; or it has ended."""
        self._send({"id": 0, "busy": begins})

    def ids(self, number: int, ids: list[int], *, end: bool, cached: int | None = None) -> None:
        """New ids of a request, and whether they are its last.

        ids      those that are a `ScoredToken` first
        cached   how many tokens of the prompt had not to be computed, said with the first ids
        """
        answer: dict[str, object] = {"id": number, "ids": ids, "end": end}
        scores = [(one.logprob, one.likeliest) for one in ids if isinstance(one, ScoredToken)]
        if scores:
            answer["scores"] = scores
        if cached is not None:
            answer["cached"] = cached
        self._send(answer)

    def error(self, number: int, error: AipcError) -> None:
        """The end of a request, or with number 0 of the loading."""
        trace = "".join(traceback.format_exception(error))
        failure = {"kind": type(error).__name__, "message": error.message, "hint": error.hint, "trace": trace}
        self._send({"id": number, "error": failure})

    def _send(self, answer: Mapping[str, object]) -> None:
        self._pipe.write(json.dumps(answer, separators=(",", ":")).encode() + b"\n")
        self._pipe.flush()


def serve(load: Callable[[dict[str, Any]], Engine]) -> NoReturn:
    """Load an engine and let it answer, until the caller is gone."""
    leave_interrupts_to_parent()
    outbox = Outbox(claim_stdout())
    inbox = Inbox(sys.stdin.buffer)
    code = 0
    try:
        engine = load(inbox.options)
        outbox.ready(engine.about)
        engine.run(inbox, outbox)
    except AipcError as error:
        outbox.error(0, error)
    except BrokenPipeError:
        # The caller is gone, and nobody reads what there is to say.
        code = 1
    except Exception:  # noqa: BLE001 - the caller reads the last words of a process that ends
        traceback.print_exc()
        code = 1
    # Nothing is left to save, and the farewells of native libraries have crashed before.
    sys.stderr.flush()
    os._exit(code)


def _request(message: Mapping[str, Any]) -> Request:
    forced = message.get("forced")
    return Request(
        message["id"],
        message["prompt"],
        _sampling(message["sampling"]),
        None if forced is None else Forced(**forced),
    )


def _sampling(fields: Mapping[str, Any]) -> Sampling:
    """What dataclasses.asdict and JSON made of it, undone."""
    guidance = fields["guidance"]
    rebuilt = {
        "stop_ids": frozenset(fields["stop_ids"]),
        "guidance": None if guidance is None else Guidance(**guidance),
    }
    return Sampling(**{**fields, **rebuilt})


def claim_stdout() -> IO[bytes]:
    """The pipe to the caller, for us alone: what native code prints goes to stderr instead."""
    pipe = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return pipe
