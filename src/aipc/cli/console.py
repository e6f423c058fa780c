"""What a person sees: answers on stdout, everything else on stderr. Only this module knows rich."""

from __future__ import annotations

import errno
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from aipc.cli.suspending import suspendable
from aipc.cli.windows_console import obeys_escapes
from aipc.errors import AipcError, StorageError
from aipc.types import Check, Progress

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

# A line for a terminal: pieces of text, each with its style, such as "bold" or "green".
Line = Sequence[tuple[str, str]]

SECONDS_BETWEEN_LINES = 10.0

# A model's words must not steer the terminal: of the control characters only tab and newline pass.
_CONTROL = dict.fromkeys([*range(32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}")
del _CONTROL[ord("\t")], _CONTROL[ord("\n")]


def is_terminal(stream: TextIO | None) -> bool:
    """Whether a person sits at the other end of a standard stream, which may be absent."""
    return stream is not None and not stream.closed and stream.isatty()


def can_redraw(stream: TextIO | None) -> bool:
    """Whether it is a terminal on which what was shown can be replaced."""
    if stream is None or not is_terminal(stream):
        return False
    terminal = _console(stream)
    return not (terminal.is_dumb_terminal or terminal.legacy_windows)


def write_answer(text: str) -> None:
    """Show a piece of an answer at once.

    raises   BrokenPipeError if the reader has gone, StorageError if the file it goes to is full
    """
    if is_terminal(sys.stdout):
        text = text.translate(_CONTROL)
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as exc:
        if exc.errno == errno.EINVAL:  # how Windows says that the reader of a pipe has gone
            raise BrokenPipeError from exc
        raise StorageError(f"the answer could not be written: {exc.strerror or exc}") from exc


def note(text: str) -> None:
    """Say a sentence beside the answer."""
    _say(text, style="dim")


def report_error(exc: Exception, *, verbose: bool) -> int:
    """Show an error in two lines, after its traceback if `verbose`, and return its exit code."""
    if verbose:
        traceback.print_exception(exc, file=sys.stderr)
    if isinstance(exc, AipcError):
        message, hint, code = exc.message, exc.hint, exc.exit_code
    else:
        message = f"aipc itself has failed, with {type(exc).__name__}: {exc}"
        hint = "report what aipc --verbose shows for the same command"
        code = AipcError.exit_code
    _say(_one_line(message), label="error: ")
    if hint:
        _say(_one_line(hint), label="hint: ")
    return code


def ask(prompt: str) -> str:
    """A line from the person at the terminal, with line editing where readline stands behind input().

    raises   EOFError at Ctrl+D (Ctrl+Z and Enter on Windows)
    """
    if is_terminal(sys.stdout):
        return input(prompt)
    sys.stderr.write(prompt)
    sys.stderr.flush()
    return input()


def end_line() -> None:
    """Leave a line at which ask() was broken off."""
    stream = sys.stdout if is_terminal(sys.stdout) else sys.stderr
    stream.write("\n")
    stream.flush()


def discarded_line() -> bool:
    """Whether Ctrl+C at ask() threw words away, as far as readline tells."""
    readline = sys.modules.get("readline")
    return bool(readline and readline.get_line_buffer())


@contextmanager
def progress(title: str) -> Iterator[Callable[[Progress], None]]:
    """Show on stderr how far a work is: a bar on a terminal, elsewhere a line now and then."""
    if is_terminal(sys.stderr):
        with _bar(title) as update:
            yield update
    else:
        note(title)
        yield SparseLines(note, time.monotonic)


@contextmanager
def steps(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Show on stderr which of so many steps are done: a bar on a terminal, elsewhere a line a step.

    Nothing is drawn between two calls: what is measured there has the machine for itself.
    """
    if not is_terminal(sys.stderr):
        note(title)
        yield lambda done, total, words: note(f"{done} of {total} · {words}")
        return
    from rich import progress as bars

    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(24), bars.MofNCompleteColumn())
    with bars.Progress(*columns, console=_console(), transient=True, auto_refresh=False) as display:
        task = display.add_task(title, total=None)

        def update(done: int, total: int, words: str) -> None:
            display.update(task, description=words, completed=done, total=total, refresh=True)

        yield update


class Pace:
    """The speed of a work and what is left of it, from the reports so far."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: Progress | None = None
        self._start_s = self._start_bytes = 0.0

    def take(self, now: Progress) -> None:
        """Take the next report, which may be the first of another piece of work."""
        last, self._last = self._last, now
        if last is None or last.total_bytes != now.total_bytes or now.done_bytes < last.done_bytes:
            self._start_s, self._start_bytes = self._clock(), now.done_bytes

    def bytes_per_s(self) -> float | None:
        """Since this piece of work began; None until two reports lie apart."""
        elapsed_s = self._clock() - self._start_s
        if self._last is None or elapsed_s <= 0 or self._last.done_bytes <= self._start_bytes:
            return None
        return (self._last.done_bytes - self._start_bytes) / elapsed_s

    def left_s(self) -> float | None:
        """Until this piece of work is done, if it goes on like this."""
        speed = self.bytes_per_s()
        return (self._last.total_bytes - self._last.done_bytes) / speed if self._last and speed else None


class SparseLines:
    """Progress for a log: one line each SECONDS_BETWEEN_LINES, none for what takes less."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float]) -> None:
        self._write = write
        self._clock = clock
        self._pace = Pace(clock)
        self._next_s = clock() + SECONDS_BETWEEN_LINES

    def __call__(self, now: Progress) -> None:
        self._pace.take(now)
        if self._clock() < self._next_s:
            return
        self._next_s = self._clock() + SECONDS_BETWEEN_LINES
        speed, left_s = self._pace.bytes_per_s(), self._pace.left_s()
        parts = [
            f"{100 * now.done_bytes // now.total_bytes} % of {_amount(now.total_bytes, now.unit)}"
            if now.total_bytes
            else "",
            now.tensor,
            f"{_amount(speed, now.unit)}/s" if speed else "",
            f"{left_s:.0f} s left" if left_s is not None else "",
        ]
        self._write(" · ".join(part for part in parts if part))


@contextmanager
def _bar(title: str) -> Iterator[Callable[[Progress], None]]:
    from rich import progress as bars
    from rich.table import Column

    name = bars.TextColumn("{task.description}", table_column=Column(ratio=1, no_wrap=True))
    columns = (
        name,
        bars.BarColumn(16),
        bars.TextColumn("{task.fields[pace]}", table_column=Column(no_wrap=True)),
    )
    pace = Pace(time.monotonic)
    with bars.Progress(*columns, console=_console(), transient=True, expand=True) as display:
        task = display.add_task(title, total=None, pace="")

        def update(now: Progress) -> None:
            pace.take(now)
            if now.done_bytes >= now.total_bytes:  # a start, or an end after which a compile has no measure
                description = title if now.total_bytes else now.tensor
                display.update(task, description=description, total=None, pace="")
                return
            speed, left_s = pace.bytes_per_s(), pace.left_s()
            whole = _amount(now.total_bytes, now.unit)
            words = f"{now.done_bytes if now.unit else size(now.done_bytes)} of {whole}"
            if speed and left_s is not None:
                words = f"{words} · {_amount(speed, now.unit)}/s · {clock_time(left_s)}"
            display.update(
                task,
                description=_short(now.tensor),
                completed=now.done_bytes,
                total=now.total_bytes,
                pace=words,
            )

        yield update


class Screen:
    """The whole terminal, drawn anew each time."""

    def __init__(self, live: Live) -> None:
        self._live = live

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows."""
        return self._live.console.size

    def show(self, lines: Sequence[Line]) -> None:
        """Replace what is shown; what is too long is cut off."""
        from rich.console import Group

        self._live.update(Group(*map(_text, lines)), refresh=True)


@contextmanager
def full_screen() -> Iterator[Screen]:
    """The terminal at stdout as a screen; what it showed before comes back at the end."""
    from rich.live import Live

    with Live(
        console=_console(sys.stdout),
        screen=True,
        auto_refresh=False,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as live:

        def leave() -> None:
            live.console.set_alt_screen(False)
            live.console.show_cursor(True)

        def enter() -> None:
            live.console.set_alt_screen(True)
            live.console.show_cursor(False)
            live.refresh()

        with suspendable(leave, enter):
            yield Screen(live)


class BottomLine:
    """The last row of the terminal at stderr, while text goes on in those above.

    The text scrolls in its own rows (DECSTBM), and the cursor is put back after each drawing. So whoever
    writes the text needs to know nothing of this line, and may be another program, at the end of a pipe.
    """

    def __init__(self) -> None:
        self._console = _console()
        self._height = 0
        self._text_line = ""
        # The thread that draws must not draw between the row's return and the stop.
        self._drawing = threading.RLock()

    @property
    def width(self) -> int:
        """The columns that may be used: text in the very last one would wrap on some terminals."""
        return self._console.width - 1

    def hear(self, text: str) -> None:
        """Take note of text that is about to be written above."""
        self._text_line = (self._text_line + text).rpartition("\n")[2]

    def show(self, line: Line) -> None:
        """Replace it, unless the terminal is too low, or the text stands at the end of a row just now."""
        with self._drawing:
            self._draw(line)

    def suspend(self) -> None:
        """Give the row back, and draw nothing until `go_on`."""
        self._drawing.acquire()
        self.remove()

    def go_on(self) -> None:
        """The next `show` takes the last row again."""
        self._height = 0
        self._drawing.release()

    def _draw(self, line: Line) -> None:
        height = self._console.height
        if height < 3 or self._at_the_end_of_a_row():
            return
        with self._console.capture() as captured:
            self._console.print(_text(line), end="", width=self.width)
        # In one piece: the text comes from another thread.
        self._write(f"{self._room(height)}\x1b7\x1b[{height};1H\x1b[2K{captured.get()}\x1b8")

    def remove(self) -> None:
        """Give the row back."""
        if self._height:
            self._write(f"\x1b7\x1b[r\x1b[{self._height};1H\x1b[2K\x1b8")

    def _at_the_end_of_a_row(self) -> bool:
        """There some terminals (tmux, for one) put the cursor back onto the last character."""
        from rich.cells import cell_len

        columns = cell_len(self._text_line.expandtabs())
        return columns > 0 and columns % self._console.width == 0

    def _room(self, height: int) -> str:
        """Keeps the last row free of text, at first and whenever the terminal has a new size."""
        if height == self._height:
            return ""
        self._height = height
        # One row down and up again makes room below; what lies there is only this line, of another size.
        return f"\x1bD\x1b[A\x1b[J\x1b7\x1b[1;{height - 1}r\x1b8"

    def _write(self, text: str) -> None:
        self._console.file.write(text)
        self._console.file.flush()


@contextmanager
def bottom_line() -> Iterator[BottomLine]:
    """The last row of the terminal at stderr, given back at the end."""
    line = BottomLine()
    try:
        with suspendable(line.suspend, line.go_on):
            yield line
    finally:
        line.remove()


def _amount(count: float, unit: str) -> str:
    """So much of what a `Progress` counts, for people."""
    return f"{count:.{1 if count < 10 else 0}f} {unit}" if unit else size(count)


def size(count: float) -> str:
    """Bytes for people, in powers of ten: "2.1 GB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table: each column as wide as its longest cell, the last as it is."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def check_lines(check: Check) -> list[str]:
    """A check for people, and below it what mends it."""
    fix = [f"        {check.fix}"] if check.fix else []
    return [f"{check.state:6}  {check.name}: {check.found}", *fix]


def clock_time(seconds: float) -> str:
    """Seconds for people: "1:05"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _short(tensor: str) -> str:
    """The part of a tensor's name that tells it from others."""
    return tensor.removeprefix("model.").removesuffix(".weight")


def _one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _say(text: str, *, label: str = "", style: str = "") -> None:
    if is_terminal(sys.stderr):
        from rich.text import Text

        _console().print(Text.assemble((label, "bold"), (text, style)), soft_wrap=True)
    elif sys.stderr is not None:
        sys.stderr.write(f"{label}{text}\n")
        sys.stderr.flush()


def _text(line: Line) -> Text:
    from rich.text import Text

    return Text.assemble(*line, no_wrap=True, overflow="ellipsis")


def _console(stream: TextIO | None = None) -> Console:
    """Of a stream, by default stderr."""
    from rich.console import Console

    stream = sys.stderr if stream is None else stream
    # rich asks the console behind stdout, whichever stream it writes to, and switches nothing on.
    legacy = is_terminal(stream) and not obeys_escapes(stream)
    return Console(file=stream, highlight=False, legacy_windows=legacy)
