"""The chat of `aipc run`: a conversation with history, at a terminal."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from aipc.cli import console
from aipc.cli.answer import collect, summary
from aipc.cli.parser import unknown_word
from aipc.errors import AipcError, PromptTooLongError
from aipc.types import Message

if TYPE_CHECKING:
    from aipc.cli.watch import Stream
    from aipc.model import Model

COMMANDS = {
    "/help": "show this",
    "/reset": "forget the conversation, keep the instructions of --system",
    "/exit": f"leave, as {'Ctrl+Z and Enter do' if sys.platform == 'win32' else 'Ctrl+D does'}",
}
KEYS = "Ctrl+C stops an answer; at an empty prompt, twice, it leaves."


class Chat:
    """A conversation: what was said, and the loop that goes on with it.

    stream    Model.stream, or what stands in its place
    system    the instructions before it, which /reset keeps
    options   keywords for Model.stream
    """

    def __init__(
        self,
        model: Model,
        stream: Stream,
        system: list[Message],
        options: dict[str, Any],
        *,
        verbose: bool,
    ) -> None:
        self._model = model
        self._stream = stream
        self._system = system
        self._options = options
        self._verbose = verbose
        self._history: list[Message] = []

    def run(self) -> int:
        """Ask and answer until the person leaves."""
        with contextlib.suppress(ImportError):  # its import gives input() line editing; Windows has its own
            import readline  # noqa: F401
        model = self._model
        console.note(f"{model.name} on {model.device} with {model.runtime}, {model.precision}.")
        console.note("/help says what there is, /exit leaves.\n")
        leaving = False
        while True:
            try:
                line = console.ask("> ").strip()
                leaving = False
                if line == "/exit":
                    return 0
                self._take(line)
            except EOFError:
                console.end_line()
                return 0
            except KeyboardInterrupt:
                console.end_line()
                if console.discarded_line():
                    continue
                if leaving:
                    return 0
                leaving = True
                console.note("Ctrl+C again leaves.")

    def _take(self, line: str) -> None:
        try:
            if line.startswith("/"):
                self._command(line)
            elif line:
                self._answer(line)
        except AipcError as exc:
            console.report_error(exc, verbose=self._verbose)
            if isinstance(exc, PromptTooLongError) and self._history:
                console.note("/reset begins a new conversation.")

    def _command(self, word: str) -> None:
        if word == "/reset":
            self._history.clear()
            console.note("The conversation is forgotten.")
        elif word == "/help":
            for name, line in COMMANDS.items():
                console.note(f"{name:8}{line}")
            console.note(KEYS)
        else:
            raise unknown_word("command", word, COMMANDS, help_command="/help")

    def _answer(self, line: str) -> None:
        question = Message("user", line)
        chunks = self._stream([*self._system, *self._history, question], **self._options)
        answer = collect(chunks, show=console.write_answer)
        console.note(f"{summary(answer)}\n")
        if answer.text:  # of a stopped answer, what was seen counts as said
            self._history += [question, Message("assistant", answer.text)]
