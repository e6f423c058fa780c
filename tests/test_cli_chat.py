"""The chat at a real terminal: typed keys in, the screen out."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import stand_in

if not hasattr(os, "openpty"):
    pytest.skip("pseudo-terminals are POSIX's", allow_module_level=True)

PROMPT = "> "
DEADLINE_S = 30.0
CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """The screen and the keys of a process at a pseudo-terminal."""

    def __init__(self, process: subprocess.Popen[bytes], controller: int) -> None:
        self.process = process
        self._controller = controller
        self._unread = ""

    def press(self, keys: str) -> None:
        os.write(self._controller, keys.encode())

    def read_until(self, marker: str, within_s: float = DEADLINE_S) -> str:
        """What the screen shows up to and with `marker`."""
        deadline_s = time.monotonic() + within_s
        while marker not in self._unread:
            ready, _, _ = select.select([self._controller], [], [], max(0.0, deadline_s - time.monotonic()))
            if not ready:
                raise TimeoutError(f"{marker!r} never came; the screen shows {self._unread!r}")
            self._unread += os.read(self._controller, 65536).decode()
        shown, self._unread = self._unread.split(marker, 1)
        return shown + marker

    def interrupt_until(self, marker: str) -> str:
        """Press Ctrl+C at the prompt, again if it was lost; what is shown up to and with `marker`.

        A signal that comes after the prompt is shown and before the interpreter's readline waits for
        a key is not seen until the next one.
        """
        for _ in range(10):
            self.press(CTRL_C)
            with suppress(TimeoutError):
                return self.read_until(marker, DEADLINE_S / 10)
        raise TimeoutError(f"{marker!r} never came; the screen shows {self._unread!r}")

    def ask(self, line: str) -> str:
        """Enter a line at the prompt; what is shown before the next prompt."""
        self.press(f"{line}\r")
        self.read_until(line or "\n")
        return self.read_until(PROMPT)

    def leave(self, keys: str) -> int:
        """Press the keys that shall end the program; its exit code."""
        self.press(keys)
        return self.process.wait(DEADLINE_S)


@contextmanager
def chat(*words: str) -> Iterator[Terminal]:
    """`aipc run demo` at a terminal of its own, at its first prompt."""
    controller, terminal = os.openpty()
    command = [sys.executable, stand_in.__file__, "--terminal", "run", "demo", *words]
    environment = stand_in.environment(TERM="dumb", INPUTRC=os.devnull, COLUMNS="200", NO_COLOR="1")
    process = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment, start_new_session=True
    )
    os.close(terminal)
    try:
        screen = Terminal(process, controller)
        screen.read_until("demo on CPU with OpenVINO GenAI, int4.")
        screen.read_until(PROMPT)
        yield screen
    finally:
        process.kill()
        process.wait()
        os.close(controller)


def test_a_chat_answers_and_says_how_fast() -> None:
    with chat() as terminal:
        shown = terminal.ask("What is an NPU?")
        assert "".join(stand_in.SENTENCE) in shown
        assert "[CPU · OpenVINO GenAI · int4 · first token 0.12 s · 50.0 tokens/s · 5 tokens]" in shown
        assert terminal.leave("/exit\r") == 0


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on() -> None:
    with chat() as terminal:
        terminal.press("wait\r")
        terminal.read_until("waiting")
        terminal.press(CTRL_C)
        assert "[stopped · 2 tokens]" in terminal.read_until(PROMPT)
        assert "user=wait; assistant=Once upon ; user=history; " in terminal.ask("history")
        assert terminal.leave(CTRL_D) == 0


def test_what_was_said_is_remembered_until_a_reset() -> None:
    with chat("--system", "Be short.") as terminal:
        terminal.ask("Hello")
        said = f"system=Be short.; user=Hello; assistant={''.join(stand_in.SENTENCE)}; user=history; "
        assert said in terminal.ask("history")
        terminal.ask("/reset")
        assert "\nsystem=Be short.; user=history; " in terminal.ask("history")


def test_ctrl_c_at_an_empty_prompt_leaves_at_the_second_time() -> None:
    with chat() as terminal:
        terminal.interrupt_until("Ctrl+C again leaves.")
        terminal.read_until(PROMPT)
        terminal.ask("Hello")
        terminal.interrupt_until("Ctrl+C again leaves.")
        terminal.read_until(PROMPT)
        terminal.interrupt_until("model closed")
        assert terminal.process.wait(DEADLINE_S) == 0


def test_ctrl_c_throws_a_typed_line_away_and_does_not_leave() -> None:
    pytest.importorskip("readline")
    with chat() as terminal:
        for _ in range(3):
            terminal.press("some words")
            terminal.read_until("some words")
            assert "leaves" not in terminal.interrupt_until(PROMPT)
        assert terminal.leave(CTRL_D) == 0


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("/help", "/reset  forget the conversation"),
        ("/rest", "error: there is no command '/rest'\r\nhint: did you mean /reset?"),
        ("fail", "Half \r\nerror: the device was lost\r\nhint: restart the computer"),
        ("", PROMPT),
    ],
)
def test_the_chat_goes_on_after(line: str, shown: str) -> None:
    with chat() as terminal:
        assert shown in terminal.ask(line)
        assert "frugal." in terminal.ask("Hello")


def test_a_full_context_is_said_with_the_way_out() -> None:
    with chat() as terminal:
        terminal.ask("Hello")
        shown = terminal.ask("too long")
        assert "error: the prompt has 5000 tokens; 4096 fit" in shown
        assert "/reset begins a new conversation." in shown
        assert "too long" not in terminal.ask("history")


def test_control_characters_of_a_model_do_not_reach_the_terminal() -> None:
    with chat() as terminal:
        assert "\N{REPLACEMENT CHARACTER}[2Jcleared" in terminal.ask("hostile")


@pytest.mark.parametrize("word", ["--json", "--raw"])
def test_a_chat_refuses_what_needs_a_prompt(word: str) -> None:
    controller, terminal = os.openpty()
    try:
        command = [sys.executable, str(Path(stand_in.__file__)), "run", "demo", word]
        done = subprocess.run(
            command,
            check=False,
            stdin=terminal,
            capture_output=True,
            timeout=DEADLINE_S,
            env=stand_in.environment(),
        )
    finally:
        os.close(terminal)
        os.close(controller)
    assert done.returncode == 2
    assert done.stderr.decode().splitlines()[0] == f"error: {word} is not for a chat"
