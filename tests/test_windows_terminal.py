"""Consoles, keys and signals of Windows, simulated: stand-ins do what kernel32 and msvcrt say."""

from __future__ import annotations

import atexit
import ctypes
import io
import signal
import subprocess
import sys
from typing import Any

import pytest

from aipc.cli import console
from aipc.cli.keyboard import windows_keys
from aipc.cli.windows_console import switch_on
from aipc.runtimes.process import _ending


class Kernel:
    """kernel32.dll with one console; mode None for a handle that is none."""

    def __init__(self, mode: int | None, *, old: bool = False) -> None:
        self.mode = mode
        self._old = old

    def GetConsoleMode(self, handle: ctypes.c_void_p, place: Any) -> int:  # noqa: N802
        assert handle.value == 7
        if self.mode is None:
            return 0
        place._obj.value = self.mode
        return 1

    def SetConsoleMode(self, handle: ctypes.c_void_p, mode: ctypes.c_uint32) -> int:  # noqa: N802
        assert handle.value == 7
        if self._old:
            return 0
        self.mode = mode.value
        return 1


@pytest.fixture
def farewells(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    kept: list[Any] = []
    monkeypatch.setattr(atexit, "register", lambda function, *args: kept.append((function, args)))
    return kept


def test_a_console_is_told_to_obey_and_is_given_back(farewells: list[Any]) -> None:
    kernel = Kernel(0b0011)
    assert switch_on(kernel, 7)
    assert kernel.mode == 0b0111
    for function, args in farewells:
        function(*args)
    assert kernel.mode == 0b0011


def test_a_console_that_obeys_is_left_alone(farewells: list[Any]) -> None:
    kernel = Kernel(0b0111)
    assert switch_on(kernel, 7)
    assert (kernel.mode, farewells) == (0b0111, [])


@pytest.mark.parametrize("kernel", [Kernel(None), Kernel(0b0011, old=True)])
def test_what_cannot_obey_is_known(kernel: Kernel, farewells: list[Any]) -> None:
    assert not switch_on(kernel, 7)
    assert farewells == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("obeys", [True, False])
def test_nothing_is_redrawn_where_nothing_obeys(monkeypatch: pytest.MonkeyPatch, *, obeys: bool) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(console, "obeys_escapes", lambda stream: obeys)
    assert console.can_redraw(Terminal()) is obeys


class Keyboard:
    """msvcrt's two functions: of a long key, only the first half is announced."""

    def __init__(self, *keys: str) -> None:
        self._keys = list(keys)
        self._second = ""

    def kbhit(self) -> bool:
        return bool(self._keys)

    def getwch(self) -> str:
        if self._second:
            key, self._second = self._second, ""
            return key
        key = self._keys.pop(0)
        self._second = key[1:]
        return key[0]


PAGE_DOWN, F10 = "\xe0Q", "\0D"


@pytest.mark.parametrize("keys", [["q"], [PAGE_DOWN, "q"], [F10, PAGE_DOWN, "q"]])
def test_a_long_key_is_no_letter(keys: list[str]) -> None:
    keyboard = Keyboard(*keys)
    wait = windows_keys(keyboard)
    heard = []
    while keyboard.kbhit():
        heard.append(wait(0.0))
    assert [key for key in heard if key] == ["q"]
    assert wait(0.0) == ""


def test_ctrl_c_is_heard_as_itself() -> None:
    with pytest.raises(KeyboardInterrupt):
        windows_keys(Keyboard("\x03"))(0.0)


def run(*lines: str) -> subprocess.CompletedProcess[str]:
    """In a process where Ctrl+Break is a signal: on Windows it is one, elsewhere another stands for it."""
    pretence = "signal.SIGBREAK = getattr(signal, 'SIGBREAK', None) or signal.SIGUSR1"
    script = "\n".join(["import signal", pretence, *lines])
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


BREAK = getattr(signal, "SIGBREAK", None) or getattr(signal, "SIGUSR1", None)


def test_ctrl_break_leaves_nothing_half_made() -> None:
    assert BREAK is not None
    done = run(
        "from aipc.cli import _unwind_when_told_to_end",
        "_unwind_when_told_to_end()",
        "try:",
        "    signal.raise_signal(signal.SIGBREAK)",
        "finally:",
        "    print('cleared up')",
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (128 + BREAK, "cleared up", "")


@pytest.mark.parametrize("name", ["SIGBREAK", "SIGINT"])
def test_a_worker_leaves_interrupts_to_its_parent(name: str) -> None:
    done = run(
        "from aipc.runtimes.orphans import leave_interrupts_to_parent",
        "leave_interrupts_to_parent()",
        f"signal.raise_signal(signal.{name})",
        "print('still here')",
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "still here", "")


@pytest.mark.parametrize(("code", "words"), [(0xC0000005, "0xC0000005"), (3, "code 3"), (1, "code 1")])
def test_an_end_is_told_in_windows_own_figures(code: int, words: str) -> None:
    assert _ending(code).endswith(words)
