"""The monitor on the machine itself: its process, CPU and memory, and what a run gets of it."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import psutil
import pytest

import stand_in
from aipc.errors import RuntimeFailedError, StorageError, UsageError
from aipc.monitor import Monitor, Sample, read_recording
from aipc.types import Chunk, Stats

# What psutil's kill() makes of a process's exit code.
KILLED = 15 if sys.platform == "win32" else -9


@pytest.fixture
def monitor() -> Iterator[Monitor]:
    with Monitor(interval_s=0.05) as monitor:
        yield monitor


def sampler_of(pid: int) -> psutil.Process:
    """The process that samples for this one."""
    children = psutil.Process(pid).children()
    return next(child for child in children if "aipc.monitor.sampler" in " ".join(child.cmdline()))


def burn(seconds: float) -> None:
    """Keep one processor busy."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


def test_the_cpu_is_seen_at_work_and_the_work_is_ours(monitor: Monitor) -> None:
    first = monitor.sample()
    before_s = time.process_time()
    burn(0.5)
    last = monitor.sample()
    worked_s = time.process_time() - before_s
    between = [sample for sample in monitor.samples if first.number < sample.number <= last.number]
    seen_s = 0.0
    for sample in between:
        cpu = sample.devices[-1]
        assert cpu.kind == "CPU"
        assert cpu.utilisation is not None
        assert cpu.own_utilisation is not None
        assert 0 <= cpu.utilisation <= 1
        seen_s += cpu.own_utilisation * sample.interval_s * (psutil.cpu_count() or 1)
    # However little of the machine is ours; a tick is 10 ms.
    assert seen_s == pytest.approx(worked_s, rel=0.1, abs=0.05)
    assert max(sample.devices[-1].utilisation or 0 for sample in between) > 0.02


def test_memory_is_the_systems_and_the_process_is_told_apart(monitor: Monitor) -> None:
    before = monitor.sample().devices[-1]
    held = bytearray(os.urandom(1) * 50_000_000)
    after = monitor.sample().devices[-1]
    total = psutil.virtual_memory().total
    assert after.memory_total_bytes == total
    assert after.memory_used_bytes is not None
    assert 0 < after.memory_used_bytes < total
    assert after.own_memory_bytes is not None
    assert before.own_memory_bytes is not None
    assert after.own_memory_bytes - before.own_memory_bytes > 0.9 * len(held)


def test_a_child_of_the_watched_process_counts_and_the_sampler_does_not(monitor: Monitor) -> None:
    own = monitor.sample().devices[-1].own_memory_bytes
    script = "held = bytearray(b'x' * 50_000_000); print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as child:  # type: ignore[call-overload]
        child.stdout.readline()
        grown = monitor.sample().devices[-1].own_memory_bytes
        child.stdin.close()
    assert own is not None
    assert grown is not None
    assert own < 1.1 * psutil.Process().memory_info().rss
    assert grown - own > 45_000_000


def test_a_watched_process_that_has_ended_is_no_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    with Monitor(pid=ended.pid) as monitor:
        cpu = monitor.sample().devices[-1]
    assert cpu.own_utilisation is None
    assert cpu.own_memory_bytes is None
    assert cpu.not_readable["own_memory_bytes"].reason == "the watched process has ended"


def test_only_the_latest_samples_are_kept() -> None:
    with Monitor(interval_s=0.02, history=3) as monitor:
        numbers = [sample.number for sample in islice(monitor.follow(), 8)]
    assert numbers == sorted(set(numbers))
    kept = [sample.number for sample in monitor.samples]
    assert len(kept) == 3
    assert kept == list(range(kept[0], kept[0] + 3))


def test_what_was_recorded_is_what_was_seen(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    with Monitor(interval_s=0.02, record=path) as monitor:
        list(islice(monitor.follow(), 5))
    assert list(read_recording(path)) == monitor.samples
    # A machine that was switched off leaves half a line.
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    assert list(read_recording(path)) == monitor.samples[:-1]
    path.write_text('{"number": 1}\n', encoding="utf-8")
    with pytest.raises(UsageError, match=r"line 1 of .*samples\.jsonl"):
        list(read_recording(path))


def test_a_recording_that_cannot_be_written_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"Is a directory|Permission denied"), Monitor(record=tmp_path):
        pass
    assert not psutil.Process().children()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the disk that is always full is Linux's")
def test_a_full_disk_ends_the_recording_and_not_the_monitor() -> None:
    with Monitor(interval_s=0.02, record="/dev/full") as monitor:
        assert len(list(islice(monitor.follow(), 3))) == 3
        assert monitor.failure == "the recording ended: No space left on device"


@pytest.mark.parametrize("options", [{"interval_s": 0.0}, {"interval_s": float("nan")}, {"history": 0}])
def test_values_that_cannot_be_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Monitor(**options)  # type: ignore[arg-type]


def test_before_its_start_and_after_its_end_it_says_so() -> None:
    monitor = Monitor()
    with pytest.raises(UsageError, match="not been started"):
        monitor.sample()
    with monitor:
        monitor.sample()
    with pytest.raises(RuntimeFailedError, match="closed"):
        monitor.sample()
    assert list(monitor.follow()) == monitor.samples
    with pytest.raises(UsageError, match="once"):
        monitor.start()


def test_a_sampler_that_is_killed_ends_neither_the_caller_nor_a_run(monitor: Monitor) -> None:
    chunks = monitor.watch(iter([Chunk("a"), Chunk("b", stats=STATS)]), "CPU")
    next(chunks)
    sampler_of(os.getpid()).kill()
    *_, last = chunks
    assert last.stats is not None
    with pytest.raises(RuntimeFailedError, match=f"process ended with the code {KILLED}"):
        monitor.sample()
    assert list(monitor.watch(iter([Chunk("c", stats=STATS)]), "CPU")) == [Chunk("c", stats=STATS)]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows stops no process")
def test_a_counter_that_hangs_holds_no_answer_back(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aipc.monitor.monitor._LAST_SAMPLE_S", 0.1)
    monitor.sample()
    sampler_of(os.getpid()).suspend()
    assert list(monitor.watch(iter([Chunk("c", stats=STATS)]), "CPU")) == [Chunk("c", stats=STATS)]


def test_it_ends_with_its_parent_and_when_it_is_forgotten() -> None:
    script = "from aipc.monitor import Monitor\nm = Monitor()\nm.start()\nprint(m.sample().number)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=stand_in.environment(),
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().rstrip() == b"1"
        sampler = sampler_of(parent.pid)
        parent.kill()
    assert sampler.wait(10) is None or not sampler.is_running()
    monitor = Monitor()
    monitor.start()
    sampler = sampler_of(os.getpid())
    del monitor
    gc.collect()
    assert not sampler.is_running()


STATS = Stats(3, 2, 0.1, 0.01, 0.01, device="CPU", runtime="a script", precision="int4")


def test_a_run_is_told_what_its_device_did(monitor: Monitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aipc.monitor.monitor._LAST_SAMPLE_S", 60.0)

    def run() -> Iterator[Chunk]:
        yield Chunk("a")
        burn(0.2)
        yield Chunk("b", stats=STATS)

    monitor.sample()
    first, last = monitor.watch(run(), "CPU")
    assert first == Chunk("a")
    assert last.stats is not None
    assert last.stats.device_used is True
    assert last.stats.mean_utilisation is not None
    assert last.stats.peak_utilisation is not None
    assert 0 < last.stats.mean_utilisation <= last.stats.peak_utilisation <= 1


def test_a_run_that_is_given_up_is_forgotten(monitor: Monitor) -> None:
    closed = []

    def run() -> Iterator[Chunk]:
        try:
            yield Chunk("a")
            yield Chunk("b", stats=STATS)
        finally:
            closed.append(True)

    chunks = monitor.watch(run(), "CPU")
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert closed == [True]
    assert not monitor._intake._meters


def test_the_sampler_is_light() -> None:
    script = (
        "import sys; import aipc.monitor.sampler; "
        "print(*{m.partition('.')[0] for m in sys.modules} - sys.stdlib_module_names)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=stand_in.environment(),
    )
    of_the_environment = {"__main__", "_virtualenv", "_distutils_hack", "sitecustomize"}
    assert set(done.stdout.split()) - of_the_environment == {"aipc", "psutil"}


def test_a_sample_travels_unchanged(monitor: Monitor) -> None:
    import json

    sample = monitor.sample()
    assert Sample.parse(json.dumps(sample.as_json())) == sample
