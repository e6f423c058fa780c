"""Draw what terminals show while real commands run: docs/images/run.svg and top.svg.

    python tools/make_picture.py [run] [top]

The commands run in pseudo-terminals, so this needs Linux or macOS; what they print is drawn as it came. For
top.svg, `aipc top` is looked at when a run beside it has just ended.
"""

from __future__ import annotations

import io
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path

import pyte
from rich.console import Console
from rich.text import Text

COLUMNS = 96
ROWS = 13
FOLDER = Path(__file__).parents[1] / "docs" / "images"
COMMANDS = (
    ["run", "demo", "Can you introduce yourself?"],
    ["run", "demo", "Why is my NPU better than the CPU for this?"],
    ["run", "demo", "hi", "--device", "NUP"],
    ["models"],
)


WATCHED = ["run", "demo", "Why is my NPU better than the CPU for this?", "--watch"]
# So many seconds of history has the view before the run, and so many after.
BEFORE_S, AFTER_S = 8.0, 0.5
DEADLINE_S = 120.0


def main() -> None:
    """Draw the pictures that are named, or all."""
    pictures = {"run": draw_run, "top": draw_top}
    for name in sys.argv[1:] or pictures:
        pictures[name]()


def draw_run() -> None:
    """Run the commands one after another and draw them on one screen."""
    console = recording_console()
    for words in COMMANDS:
        print_command(console, words)
        console.print(Text.from_ansi(screen_of(words)))
        console.print()
    save(console, "run")


def draw_top() -> None:
    """Run `aipc top` and an answer beside it, and draw one above the other."""
    view = Terminal(["top", "--interval", "0.25"])
    show([view], lambda: "memory" in view.text())
    show([view], seconds_from_now(BEFORE_S))
    answer = Terminal(WATCHED)
    show([view, answer], lambda: answer.ended)
    show([view], seconds_from_now(AFTER_S))
    console = recording_console()
    for terminal in (answer, view):
        print_command(console, terminal.words)
        console.print(terminal.drawn())
        terminal.end()
    save(console, "top")


def recording_console() -> Console:
    """A console that keeps what is printed, for a picture."""
    return Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)


def print_command(console: Console, words: list[str]) -> None:
    """What a person would have typed."""
    shown = " ".join(f'"{word}"' if " " in word else word for word in words)
    console.print(Text.assemble(("$ ", "bold green"), (f"aipc {shown}", "bold")))


def save(console: Console, name: str) -> None:
    """Write what the console kept as docs/images/NAME.svg."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    # rich would have the reader fetch its font; every machine has a monospaced one.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="aipc"), flags=re.DOTALL)
    (FOLDER / f"{name}.svg").write_text(picture.replace("Fira Code", "ui-monospace"), encoding="utf-8")


class Terminal:
    """`aipc` with these words at a terminal of its own, of which an emulator keeps the screen."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.controller, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        environment = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "aipc", *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**environment, "TERM": "xterm-256color"},
        )
        os.close(theirs)
        self.ended = False
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self._screen)

    def take(self) -> None:
        """Draw what has come."""
        try:
            self._stream.feed(os.read(self.controller, 65_536))
        except OSError:  # Linux's word for the end of a pseudo-terminal
            self.ended = True

    def text(self) -> str:
        """The screen without its colours."""
        return "\n".join(self._screen.display)

    def drawn(self) -> Text:
        """The screen, without the empty rows at its end."""
        drawn = Text()
        for row in range(len(self.text().rstrip().split("\n"))):
            for column in range(COLUMNS):
                cell = self._screen.buffer[row][column]
                style = "" if cell.fg == "default" else cell.fg.replace("brown", "yellow")
                drawn.append(cell.data, f"bold {style}" if cell.bold else style)
            drawn.append("\n")
        return drawn

    def end(self) -> None:
        """End the command."""
        self._process.terminate()
        self._process.wait()
        os.close(self.controller)


def show(terminals: list[Terminal], done: Callable[[], bool]) -> None:
    """Draw what comes to the terminals until it is done."""
    until_s = time.monotonic() + DEADLINE_S
    while not done():
        if time.monotonic() > until_s:
            raise TimeoutError("\n".join(terminal.text() for terminal in terminals))
        ready, _, _ = select.select([each.controller for each in terminals], [], [], 0.1)
        for terminal in terminals:
            if terminal.controller in ready:
                terminal.take()


def seconds_from_now(seconds: float) -> Callable[[], bool]:
    """Whether so much time has passed."""
    until_s = time.monotonic() + seconds
    return lambda: time.monotonic() >= until_s


def screen_of(words: list[str]) -> str:
    """What is left on a terminal after `aipc` with these words."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-m", "aipc", *words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    output = b""
    while True:
        try:
            piece = os.read(ours, 65_536)
        except OSError:  # Linux's word for the end of a pseudo-terminal
            break
        if not piece:
            break
        output += piece
    process.wait()
    os.close(ours)
    text = output.decode("utf-8").replace("\r\n", "\n")
    # A progress display goes up a line and erases it when it is done.
    text = re.sub(r"\x1b\[\?25[hl]", "", text)
    text = re.sub(r"[^\n]*\n\r?\x1b\[1A\x1b\[2K", "", text)
    return "\n".join(line for line in text.split("\n") if line.strip())


if __name__ == "__main__":
    main()
