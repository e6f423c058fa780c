"""A model of scripted answers behind aipc.load, for tests of what is in front of it.

As a script it is `aipc` with this model:  python tests/stand_in.py run demo "Hello"
The prompt says what happens: "wait" stops in the middle until it is cancelled, "endless" never stops,
"fail" breaks, "history" tells what the model was given; anything else is answered with a sentence.
So does the name of the model: "wait", "missing" and "buggy" are what loading comes to, "echo"
answers with the prompt, and "slow" with a word of it every hundredth of a second.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aipc
from aipc.errors import ModelNotFoundError, PromptTooLongError, RuntimeFailedError
from aipc.types import Chunk, Message, Progress, Stats

SENTENCE = ("An NPU ", "is ", "a processor ", "for neural nets — ", "frugal.")


class ScriptedModel:
    """Stands where aipc.model.Model would."""

    name, device, runtime, precision, context_length = "demo", "CPU", "OpenVINO GenAI", "int4", 4096
    address = None
    notes = ("CPU: the only device here",)

    def __init__(self, **given: Any) -> None:
        self.given = given
        self.asked: list[Any] = []
        self.options: dict[str, Any] = {}
        self.stopped = 0
        self.closed = False

    def stream(self, prompt: str | Sequence[Message], **options: Any) -> Iterator[Chunk]:
        self.asked.append(prompt)
        self.options = options
        text = prompt if isinstance(prompt, str) else prompt[-1].content
        if text == "too long":
            raise PromptTooLongError("the prompt has 5000 tokens; 4096 fit", hint="shorten the prompt")
        return self._answer(text, prompt)

    def _answer(self, text: str, prompt: str | Sequence[Message]) -> Iterator[Chunk]:
        if text == "history":
            words: Iterator[str] = iter([f"{m.role}={m.content}; " for m in prompt if isinstance(m, Message)])
        elif self.given.get("source") == "echo":
            words = iter([text])
        elif self.given.get("source") == "slow":
            words = slowly(text.split(" "))
        elif text == "endless":
            words = repeat("again\n")
        elif text == "wait":
            words = wait_after("Once ", "upon ")
        elif text == "fail":
            words = fail_after("Half ")
        elif text == "hostile":
            words = iter(["\x1b[2J", "cleared"])
        else:
            words = iter(SENTENCE)
        count = 0
        try:
            for word in words:
                yield Chunk(word, (count,))
                count += 1
        except (KeyboardInterrupt, GeneratorExit):
            self.stopped += 1
            raise
        yield Chunk(
            "", (), "stop", Stats(7, count, 1.5, 0.125, 0.02, self.device, self.runtime, self.precision)
        )

    def close(self) -> None:
        self.closed = True
        if sys.stderr.isatty():
            say("model closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def say(word: str) -> None:
    """Tell the test, on stderr, how far this process is."""
    sys.stderr.write(f"{word}\n")
    sys.stderr.flush()


def wait_after(*words: str) -> Iterator[str]:
    """These words, and then nothing until the reader is interrupted."""
    yield from words
    say("waiting")
    threading.Event().wait()


def slowly(words: Sequence[str]) -> Iterator[str]:
    """These words, at the pace of a model."""
    for number, word in enumerate(words):
        time.sleep(0.01)
        yield f" {word}" if number else word


def fail_after(*words: str) -> Iterator[str]:
    """These words, and then the runtime breaks."""
    yield from words
    raise RuntimeFailedError("the device was lost", hint="restart the computer")


def load(source: str, *, progress: Callable[[Progress], None], **given: Any) -> ScriptedModel:
    """In place of aipc.load."""
    if source == "missing":
        raise ModelNotFoundError("there is no model 'missing'", hint="possible are demo, phi-3-mini")
    if source == "buggy":
        raise KeyError("a fault of ours")
    if source == "wait":
        try:
            say("waiting")
            threading.Event().wait()
        finally:
            say("unwound")
    progress(Progress("model.layers.0.mlp.down_proj.weight", 10, 20))
    return ScriptedModel(source=source, **given)


def convert(source: str, out: Path, *, progress: Callable[[Progress], None], **given: Any) -> Path:
    """In place of aipc.convert: a folder that says what was asked for."""
    progress(Progress("model.layers.0.mlp.down_proj.weight", 10, 20))
    out.mkdir(parents=True)
    (out / "asked.txt").write_text(repr({"source": source, **given}), encoding="utf-8")
    return out


def environment(**more: str) -> dict[str, str]:
    """For a child process that shall find the same aipc."""
    return {**os.environ, "PYTHONPATH": str(Path(aipc.__file__).parents[1]), **more}


def become_terminal_session() -> None:
    """Make stdin, a pseudo-terminal, the terminal whose Ctrl+C this process gets."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--terminal"]:
        del sys.argv[1]
        become_terminal_session()
    # Tests that run in the background of a shell inherit an ignored Ctrl+C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    vars(aipc).update(load=load, convert=convert)
    from aipc.cli import main

    sys.exit(main())
