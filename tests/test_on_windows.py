"""What only Windows itself can show. `python tools/windows_check` runs these under Wine, too."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

import stand_in
from aipc import hardware, memory, windows_files
from aipc.hardware import directx
from aipc.runtimes import cores
from aipc.runtimes import memory as runtime_memory
from aipc.windows_files import move

pytestmark = pytest.mark.skipif(sys.platform != "win32", reason="asks Windows itself")


def holding_open(path: Path) -> Callable[[], None]:
    return path.open("rb").close


def holding_mapped(path: Path) -> Callable[[], None]:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ).close


@pytest.mark.parametrize("hold", [holding_open, holding_mapped])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_is_open_is_replaced_as_soon_as_it_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hold: Callable[[Path], Callable[[], None]], what: str
) -> None:
    """A file cannot be replaced while it is open, and a folder cannot be renamed while a file in it is."""
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "model.bin").write_bytes(b"old")
    (tmp_path / "new.bin").write_bytes(b"new")
    let_go = hold(tmp_path / "old" / "model.bin")
    names = {"file": ("new.bin", "old/model.bin"), "folder": ("old", "elsewhere")}[what]
    waited: list[float] = []

    def wait(seconds: float) -> None:
        waited.append(seconds)
        let_go()

    monkeypatch.setattr(windows_files.time, "sleep", wait)
    move(tmp_path / names[0], tmp_path / names[1])
    assert len(waited) == 1
    assert not (tmp_path / names[0]).exists()
    moved = tmp_path / names[1]
    assert (moved if what == "file" else moved / "model.bin").read_bytes() == {"file": b"new"}.get(
        what, b"old"
    )


def test_memory_is_what_the_system_says() -> None:
    total = psutil.virtual_memory().total
    for free in (memory.free_bytes(), runtime_memory.available_bytes()):
        assert free is not None
        assert 0 < free < total


def test_cores_are_counted() -> None:
    assert 1 <= cores.physical_cores() <= (os.cpu_count() or 1)
    assert cores.physical_cores() == psutil.cpu_count(logical=False)


def test_the_registry_names_the_processor() -> None:
    assert hardware.cpu().name not in {"", "CPU"}


def test_adapters_are_listed_or_there_are_none() -> None:
    for found in (directx.adapters(), directx.displays()):
        assert all(each.luid.startswith("0x") for each in found)


def test_counters_are_read_by_instance() -> None:
    import ctypes

    from aipc.monitor.counters import CounterError
    from aipc.monitor.pdh import PdhQuery

    query = PdhQuery(ctypes.WinDLL("pdh"))
    path = r"\Processor(*)\% Interrupt Time"
    with pytest.raises(CounterError, match="second sample"):
        query.values(path)
    query.collect()
    assert "_Total" in query.values(path)


def test_a_counter_that_is_not_there_says_so() -> None:
    import ctypes

    from aipc.monitor.counters import CounterError
    from aipc.monitor.pdh import PdhQuery

    query = PdhQuery(ctypes.WinDLL("pdh"))
    for _ in range(2):
        with pytest.raises(CounterError) as caught:
            query.values(r"\No Such Object(*)\No Such Counter")
        assert caught.value.why.reason.startswith("this Windows has no such counter")


@pytest.mark.parametrize("streams", ["stdin", "stderr", "stdin stderr"])
def test_the_null_device_is_no_terminal_to_draw_on(streams: str) -> None:
    """Python says of it that it is a terminal."""
    options: Any = dict.fromkeys(streams.split(), subprocess.DEVNULL)
    options.setdefault("stdin", subprocess.PIPE)
    words = [sys.executable, stand_in.__file__, "run", "--watch", "demo", "What is an NPU?"]
    done = subprocess.run(words, stdout=subprocess.PIPE, env=stand_in.environment(), check=False, **options)
    assert (done.returncode, done.stdout.decode().rstrip()) == (0, "".join(stand_in.SENTENCE))


def test_ctrl_break_ends_an_answer_and_leaves_nothing() -> None:
    words = [sys.executable, stand_in.__file__, "run", "demo", "endless"]
    process = subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        env=stand_in.environment(),
        creationflags=subprocess.CREATE_NEW_PROCESS_GROUP,  # type: ignore[attr-defined,unused-ignore]
    )
    assert process.stdout is not None
    process.stdout.readline()
    os.kill(process.pid, signal.CTRL_BREAK_EVENT)  # type: ignore[attr-defined,unused-ignore]
    process.stdout.close()
    assert process.wait(20) == 128 + signal.SIGBREAK  # type: ignore[attr-defined,unused-ignore]
