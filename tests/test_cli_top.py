"""The live views: what they draw of samples, and what a real pseudo-terminal shows of them."""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import stand_in
from aipc.cli.device_view import ASCII, BLOCKS, Glyphs, live_lines, table_lines
from aipc.cli.watch import Pace, live_line
from aipc.monitor import DeviceSample, NotReadable, Sample, read_recording
from aipc.types import Chunk, DeviceKind

DEADLINE_S = 60.0
NO_METER = NotReadable("there is no right to read energy_uj", "sudo chmod a+r energy_uj")
NO_COUNTER = NotReadable("its driver has no such counter")


def device(kind: DeviceKind, name: str, busy: float | None, **more: Any) -> DeviceSample:
    values: dict[str, Any] = dict.fromkeys(
        (
            "own_utilisation",
            "memory_used_bytes",
            "memory_total_bytes",
            "own_memory_bytes",
            "frequency_mhz",
            "power_w",
            "energy_j",
        )
    )
    return DeviceSample(name, name, kind, busy, **{**values, "not_readable": {}, **more})


def sample(number: int, busy: float) -> Sample:
    """A machine with an NPU of an old driver, two GPUs and a CPU without the right to its meter."""
    return Sample(
        number,
        1_795_372_138.0 + number,
        1.0,
        (
            device(
                "CPU",
                "Core Ultra 7",
                0.125,
                memory_used_bytes=8_000_000_000,
                memory_total_bytes=32_000_000_000,
                frequency_mhz=2596.1,
                not_readable={"power_w": NO_METER, "energy_j": NO_METER},
            ),
            device("integrated GPU", "Arc", 0.0, frequency_mhz=300.0, power_w=1.25, note="own work only"),
            device(
                "discrete GPU",
                "RTX 4070",
                busy,
                memory_used_bytes=2_000_000_000,
                memory_total_bytes=12_000_000_000,
                frequency_mhz=2475.0,
                power_w=150.0,
            ),
            device(
                "NPU",
                "AI Boost",
                None,
                not_readable=dict.fromkeys(
                    ("utilisation", "memory_used_bytes", "frequency_mhz", "power_w"), NO_COUNTER
                ),
            ),
        ),
    )


SAMPLES = [sample(number, busy) for number, busy in enumerate((0.0, 0.5, 1.0), 1)]


def drawn(width: int, height: int, glyphs: Glyphs = BLOCKS) -> list[str]:
    lines = ["".join(text for text, _ in line) for line in live_lines(SAMPLES, width, height, glyphs)]
    assert len(lines) <= height
    return lines


@pytest.mark.parametrize("width", [40, 80, 200])
def test_each_device_is_drawn_in_order_within_the_width(width: int) -> None:
    lines = drawn(width, 60)
    kinds = [line.split("  ")[0] for line in lines if line and not line.startswith(" ")][:4]
    assert kinds == ["NPU", "discrete GPU", "integrated GPU", "CPU"]
    assert max(map(len, lines)) <= width
    busy = lines[lines.index("discrete GPU  RTX 4070") + 1]
    assert busy.startswith("  100 % █")
    assert busy.endswith(" ▁▅█")
    assert len(busy) == width


def test_what_is_not_readable_is_a_dash_with_its_reason_and_never_0() -> None:
    lines = drawn(100, 24)
    npu = lines.index("NPU  AI Boost")
    assert lines[npu + 1].split() == ["–"]
    assert lines[npu + 2] == "  memory – · frequency – · power –"
    assert not any(digit in "".join(lines[npu : npu + 3]) for digit in "0123456789█░▁")
    assert "NPU, utilisation and memory and frequency and power: its driver has no such counter" in lines
    assert "CPU, power: there is no right to read energy_uj (sudo chmod a+r energy_uj)" in lines
    assert "integrated GPU: own work only" in lines
    assert "  memory 8.0 of 32.0 GB · 2596 MHz · power –" in lines


def test_a_low_terminal_gets_a_line_a_device_and_then_fewer() -> None:
    low = drawn(80, 10)
    assert [line.split()[0] for line in low[:4]] == ["NPU", "discrete", "integrated", "CPU"]
    assert "100 %              ▁▅█ 2.0 of 12.0 GB · 2475 MHz · 150.0 W · RTX 4070" in low[1]
    assert drawn(80, 3)[-1] == "2 more: aipc top --once shows all"


def test_a_terminal_without_unicode_is_drawn_in_ascii() -> None:
    for lines in (drawn(80, 24, ASCII), table_lines(SAMPLES[-1], ASCII)):
        assert "\n".join(lines).isascii()


def test_the_table_has_a_row_a_device() -> None:
    header, npu, *rest = table_lines(SAMPLES[-1], BLOCKS)
    assert header.split() == ["DEVICE", "NAME", "BUSY", "MEMORY", "FREQUENCY", "POWER"]
    assert npu.split() == ["NPU", "AI", "Boost", "–", "–", "–", "–"]
    assert " ".join(rest[0].split()) == "discrete GPU RTX 4070 100 % 2.0 of 12.0 GB 2475 MHz 150.0 W"


# The line of a run


def pace_after(*seconds: float) -> Pace:
    """An answer that began at 0 and had a token at each of these times."""
    clock = iter([0.0, *seconds, 9.0])
    pace = Pace(lambda: next(clock))
    for _ in seconds:
        pace.take(Chunk("a", (1,)))
    return pace


def line_of(pace: Pace, kind: DeviceKind, width: int) -> str:
    seen = [next(each for each in sample.devices if each.kind == kind) for sample in SAMPLES]
    return "".join(text for text, _ in live_line(pace, kind, seen, width, BLOCKS))


def test_the_live_line_of_a_run() -> None:
    pace = pace_after(0.5, 0.75, 1.0)
    wide = line_of(pace, "discrete GPU", 120)
    assert wide.startswith("discrete GPU 100 % ")
    assert wide.endswith("▁▅█ · 4.0 tokens/s · first token 0.50 s · 3 tokens · 2.0 of 12.0 GB")
    assert line_of(pace, "discrete GPU", 60).endswith("▁▅█ · 4.0 tokens/s")
    assert line_of(pace_after(), "NPU", 80) == (
        "NPU     –  · waiting for the first token, 9.0 s · its driver has no such counter"
    )
    assert "0 %" not in line_of(pace_after(0.5), "NPU", 80)


# At a terminal


class Screen:
    """What a terminal shows of a process at a pseudo-terminal, and its keys.

    before   the terminal's modes before the process had it
    """

    def __init__(
        self, process: subprocess.Popen[bytes], controller: int, before: list[Any], columns: int, rows: int
    ) -> None:
        pyte = pytest.importorskip("pyte")
        self.process = process
        self.controller = controller
        self.before = before
        self.screen = pyte.HistoryScreen(columns, rows, history=1000, ratio=0.5)
        self._stream = pyte.ByteStream(self.screen)
        self.output = b""

    def press(self, keys: str) -> None:
        os.write(self.controller, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        set_size(self.controller, columns, rows)
        self.screen.resize(rows, columns)

    def until(self, seen: Callable[[list[str]], bool]) -> list[str]:
        """The lines of the screen as soon as they are as they should be."""
        until_s = time.monotonic() + DEADLINE_S
        while not seen(self.lines()):
            ready, _, _ = select.select([self.controller], [], [], max(until_s - time.monotonic(), 0))
            if not ready or not self._take():
                raise TimeoutError("\n".join(self.lines()))
        return self.lines()

    def to_the_end(self) -> tuple[int, list[str]]:
        """The exit code, and what is left on the screen."""
        while self._take():
            pass
        return self.process.wait(DEADLINE_S), self.lines()

    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display]

    def scrolled_away(self) -> list[str]:
        columns = range(self.screen.columns)
        return ["".join(line[x].data for x in columns).rstrip() for line in self.screen.history.top]

    def _take(self) -> bool:
        try:
            piece = os.read(self.controller, 65536)
        except OSError:  # Linux's word for the end
            return False
        self.output += piece
        self._stream.feed(piece)
        return bool(piece)


def set_size(terminal: int, columns: int, rows: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


@contextmanager
def terminal(
    *words: str, columns: int = 80, rows: int = 24, session: bool = True, **more: str
) -> Iterator[Screen]:
    """`aipc` with these words at a terminal of its own.

    session   of its own as well; the system stops no process that has one and no shell in it
    """
    controller, theirs = os.openpty()
    set_size(controller, columns, rows)
    before = modes(controller)
    command = [sys.executable, stand_in.__file__, *["--terminal"] * session, *words]
    environment = stand_in.environment(TERM="xterm-256color", **more)
    for name in ("COLUMNS", "LINES"):
        environment.pop(name, None)
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=session,
        process_group=None if session else 0,
    )
    os.close(theirs)
    try:
        yield Screen(process, controller, before, columns, rows)
    finally:
        process.kill()
        process.wait()
        os.close(controller)


needs_terminal = pytest.mark.skipif(not hasattr(os, "openpty"), reason="pseudo-terminals are POSIX's")


def shows(text: str) -> Callable[[list[str]], bool]:
    return lambda lines: any(text in line for line in lines)


def modes(terminal: int) -> list[Any]:
    import termios

    return termios.tcgetattr(terminal)


@needs_terminal
@pytest.mark.parametrize("key", ["q", "\x03"])
def test_top_shows_the_cpu_and_gives_the_terminal_back(key: str, tmp_path: Path) -> None:
    path = tmp_path / "top.jsonl"
    with terminal("top", "--interval", "0.05", "--record", str(path)) as screen:
        lines = screen.until(shows("memory"))
        assert lines[0].startswith("aipc top  every 0.05 s · recording to ")
        assert shows("CPU")(lines)
        assert modes(screen.controller) != screen.before
        screen.resize(40, 12)
        screen.until(lambda lines: lines[0].startswith("aipc top") and lines[0].endswith("…"))
        screen.press(key)
        code, _ = screen.to_the_end()
        assert code == 0
        assert modes(screen.controller) == screen.before
        assert screen.output.rindex(b"\x1b[?1049l") > screen.output.rindex(b"\x1b[?1049h")
        assert screen.output.rindex(b"\x1b[?25h") > screen.output.rindex(b"\x1b[?25l")
    numbers = [sample.number for sample in read_recording(path)]
    assert numbers == list(range(1, len(numbers) + 1))


@needs_terminal
def test_top_without_colours() -> None:
    with terminal("top", NO_COLOR="1") as screen:
        screen.until(shows("memory"))
        screen.press("q")
        assert screen.to_the_end()[0] == 0
        assert b"[32m" not in screen.output
        assert b";32m" not in screen.output


@needs_terminal
def test_the_answer_goes_on_above_the_live_line_and_nothing_of_it_is_lost() -> None:
    text = " ".join(f"word{number}" for number in range(200))
    with terminal("run", "slow", text, "--watch", columns=60, rows=10) as screen:
        code, lines = screen.to_the_end()
        assert code == 0
        assert "tokens/s · first token".encode() in screen.output
        *answer, figures, more, closed = [*screen.scrolled_away(), *filter(None, lines)]
        # Lines break anywhere, and there the blank at an end may be of the text.
        assert "".join(answer).replace(" ", "").endswith(text.replace(" ", ""))
        assert "".join((figures, more)).startswith("[CPU · OpenVINO GenAI · int4 · first token")
        assert closed == "model closed"
        assert screen.screen.margins in {None, (0, 9)}


@needs_terminal
def test_ctrl_c_gives_the_last_row_back_also_of_a_terminal_that_has_grown() -> None:
    with terminal("run", "demo", "wait", "--watch", rows=10) as screen:
        screen.until(lambda lines: "2 tokens" in lines[-1])
        screen.resize(80, 14)
        screen.until(lambda lines: "2 tokens" in lines[-1])
        assert sum("2 tokens" in line for line in screen.lines()) == 1
        screen.press("\x03")
        code, lines = screen.to_the_end()
        assert code == 130
        assert shows("Once upon")(lines)
        assert shows("[stopped · 2 tokens]")(lines)
        assert not shows("first token")(lines)
        assert screen.screen.margins in {None, (0, 13)}


@contextmanager
def stopped(screen: Screen) -> Iterator[None]:
    """The process between Ctrl+Z and `fg`."""
    os.kill(screen.process.pid, signal.SIGTSTP)
    _, status = os.waitpid(screen.process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    yield
    os.kill(screen.process.pid, signal.SIGCONT)


@needs_terminal
def test_while_it_is_stopped_the_terminal_has_its_last_row() -> None:
    with terminal("run", "demo", "wait", "--watch", rows=10, session=False) as screen:
        for _ in range(2):
            screen.until(lambda lines: "2 tokens" in lines[-1])
            assert screen.screen.margins == (0, 8)
            with stopped(screen):
                screen.until(lambda lines: not shows("2 tokens")(lines))
                assert screen.screen.margins in {None, (0, 9)}
        screen.until(lambda lines: "2 tokens" in lines[-1])
        os.kill(screen.process.pid, signal.SIGINT)
        code, lines = screen.to_the_end()
        assert code == 130
        assert shows("Once upon")(lines)
        assert screen.screen.margins in {None, (0, 9)}


@needs_terminal
def test_while_it_is_stopped_the_terminal_is_no_screen_of_top() -> None:
    with terminal("top", "--interval", "0.05", session=False) as screen:
        for _ in range(2):
            screen.until(shows("memory"))
            screen.output = b""
            own = modes(screen.controller)
            assert own != screen.before
            with stopped(screen):
                screen.until(lambda _: b"\x1b[?1049l" in screen.output and b"\x1b[?25h" in screen.output)
                assert modes(screen.controller) == screen.before
                screen.screen.reset()
            screen.until(lambda _: b"\x1b[?1049h" in screen.output and b"\x1b[?25l" in screen.output)
            screen.until(shows("memory"))
            assert modes(screen.controller) == own
        screen.press("q")
        assert screen.to_the_end()[0] == 0
        assert modes(screen.controller) == screen.before


@needs_terminal
def test_a_failure_gives_the_last_row_back() -> None:
    with terminal("run", "demo", "fail", "--watch", rows=10) as screen:
        code, lines = screen.to_the_end()
        assert code != 0
        assert shows("error: the device was lost")(lines)
        assert not shows("first token")(lines)
        assert screen.screen.margins in {None, (0, 9)}


@needs_terminal
def test_a_chat_has_the_live_line_while_it_answers() -> None:
    with terminal("run", "demo", "--watch", rows=12) as screen:
        screen.until(lambda lines: ">" in lines)
        screen.press("wait\r")
        screen.until(lambda lines: "2 tokens" in lines[-1])
        screen.press("\x03")
        screen.until(shows("[stopped · 2 tokens]"))
        screen.press("/exit\r")
        assert screen.to_the_end()[0] == 0


# Without a terminal


def aipc(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, stand_in.__file__, *words]
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        env=stand_in.environment(**more),
        timeout=DEADLINE_S,
        check=False,
    )


def test_once_as_json_is_a_sample_of_a_whole_interval() -> None:
    done = aipc("top", "--once", "--json", "--interval", "0.3")
    assert done.returncode == 0
    seen = Sample.parse(done.stdout)
    assert json.loads(json.dumps(seen.as_json())) == json.loads(done.stdout)
    assert seen.interval_s >= 0.29
    assert seen.devices[-1].utilisation is not None


def test_once_is_a_table() -> None:
    done = aipc("top", "--once", "--interval", "0.1")
    assert done.returncode == 0
    assert done.stdout.startswith("DEVICE")
    assert shows("GB")(done.stdout.splitlines())


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ([], "hint: aipc top --once shows one sample"),
        (["--json"], "hint: aipc top --once --json"),
        (["--once", "--interval", "0"], "error: the interval is 0.0 s"),
        (["--once", "--record", "."], "error: the recording . can't be written"),
    ],
)
def test_what_top_cannot_do_is_said(words: Sequence[str], shown: str) -> None:
    done = aipc("top", *words)
    assert done.returncode != 0
    assert done.stdout == ""
    assert shown in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl+C is sent to one process")
def test_without_a_terminal_a_recording_goes_on_until_ctrl_c(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    command = [sys.executable, stand_in.__file__, "top", "--interval", "0.02", "--record", str(path)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=stand_in.environment()
    )
    until_s = time.monotonic() + DEADLINE_S
    while not path.exists() or path.read_bytes().count(b"\n") < 3:
        assert time.monotonic() < until_s
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out) == (0, b"")
    assert len(list(read_recording(path))) >= 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the disk that is always full is Linux's")
def test_a_recording_that_ends_is_an_error() -> None:
    done = aipc("top", "--interval", "0.02", "--record", "/dev/full")
    assert done.returncode != 0
    assert "error: the recording ended: No space left on device" in done.stderr


def test_watch_without_a_terminal_says_so_and_answers() -> None:
    done = aipc("run", "demo", "Hello", "--watch")
    assert done.returncode == 0
    assert done.stdout == "".join(stand_in.SENTENCE) + "\n"
    assert "--watch needs a terminal" in done.stderr
    assert "\x1b" not in done.stderr
