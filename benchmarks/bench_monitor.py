"""What the monitor costs: its process at one sample a second, many samples, and a desktop full of processes.

python benchmarks/bench_monitor.py --record monitor.json
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from aipc.monitor import Monitor
from aipc.monitor.host import WatchedProcesses
from aipc.monitor.probes import LinuxDevices
from aipc.monitor.sampler import Sampler
from measuring import markdown_table, versions, write_record

# Where a device is, its driver and class: enough for the monitor to look for the processes that use it.
_PCI = "sys/bus/pci/devices/0000:00:02.0/uevent"
_EVENT = "DRIVER=i915\nPCI_CLASS=30000\nPCI_ID=8086:7D55\nPCI_SLOT_NAME=0000:00:02.0\n"


def sampler_of_this_process() -> psutil.Process:
    """The process that samples."""
    children = psutil.Process().children()
    return next(child for child in children if "aipc.monitor.sampler" in " ".join(child.cmdline()))


def cpu_s(process: psutil.Process) -> float:
    """Seconds that a process has computed."""
    times = process.cpu_times()
    return float(times.user + times.system)


def measure_rate(seconds: float) -> dict[str, Any]:
    """The sampling process and the caller's side of it, at one sample a second."""
    here = psutil.Process()
    with Monitor(interval_s=1.0) as monitor:
        monitor.sample()
        sampler = sampler_of_this_process()
        start_cpu_s = cpu_s(sampler)
        before, own_before, started = start_cpu_s, cpu_s(here), time.perf_counter()
        time.sleep(seconds)
        wall_s = time.perf_counter() - started
        return {
            "wall_s": wall_s,
            "samples": len(monitor.samples),
            "start_cpu_s": start_cpu_s,
            "sampler_core_share": (cpu_s(sampler) - before) / wall_s,
            "caller_core_share": (cpu_s(here) - own_before) / wall_s,
            "sampler_resident_bytes": sampler.memory_info().rss,
            "sampler_unshared_bytes": sampler.memory_full_info().uss,
        }


def measure_many(count: int, interval_s: float) -> dict[str, Any]:
    """The memory of both sides after a tenth of the samples, a half and all; the history is full by then."""
    here = psutil.Process()
    marks = [count // 10, count // 2, count - 1]
    seen: list[dict[str, Any]] = []
    with Monitor(interval_s=interval_s, history=count // 20) as monitor:
        for sample in monitor.follow():
            if marks and sample.number >= marks[0]:
                marks.pop(0)
                sampler = sampler_of_this_process()
                seen.append(
                    {
                        "samples": sample.number + 1,
                        "sampler_resident_bytes": sampler.memory_info().rss,
                        "caller_resident_bytes": here.memory_info().rss,
                    }
                )
            if not marks:
                return {"interval_s": interval_s, "history": count // 20, "memory": seen}
    raise RuntimeError(f"the monitor ended early: {monitor.failure}")


@contextlib.contextmanager
def sleepers(count: int, files: int) -> Iterator[int]:
    """Processes that do nothing, each with files open; the id of one of them."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(tempfile.TemporaryFile()).fileno() for _ in range(files)]
        running = [subprocess.Popen(["sleep", "3600"], pass_fds=opened) for _ in range(count)]
        try:
            yield running[0].pid
        finally:
            for process in running:
                process.kill()
                process.wait()


def measure_desktop(count: int, files: int) -> dict[str, Any]:
    """One sample with a GPU in the machine: with a look at the files of all processes, and without."""
    with tempfile.TemporaryDirectory() as folder, sleepers(count, files) as pid:
        root = Path(folder)
        (root / _PCI).parent.mkdir(parents=True)
        (root / _PCI).write_text(_EVENT, encoding="utf-8")
        (root / "proc").symlink_to("/proc")
        watched = WatchedProcesses(pid)
        # The descendants are looked for every ten seconds, the files of all others every thirty.
        started_s = time.process_time()
        watched.look_again()
        tree_s = time.process_time() - started_s
        sampler = Sampler(LinuxDevices(watched, root))
        rounds = []
        for _ in range(20):
            time.sleep(0.05)
            started_s = time.process_time()
            sampler.sample()
            rounds.append(time.process_time() - started_s)
        fresh = LinuxDevices(watched, root)
        started_s = time.process_time()
        [probe.read() for probe in fresh.probes()]
        look_s = time.process_time() - started_s
    plain_s = sorted(rounds)[len(rounds) // 2]
    return {
        "processes": count,
        "files_each": files,
        "sample_s": plain_s,
        "look_s": look_s,
        "tree_s": tree_s,
        "core_share_at_1_hz": plain_s + min(look_s / 30, 0.003) + tree_s / 10,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Measure what the monitor costs.")
    parser.add_argument("--seconds", type=float, default=60.0, help="at one sample a second (default: 60)")
    parser.add_argument("--samples", type=int, default=24_000, help="for the memory (default: 24000)")
    parser.add_argument("--interval", type=float, default=0.02, help="between those (default: 0.02)")
    parser.add_argument("--processes", type=int, default=300, help="of a desktop (default: 300)")
    parser.add_argument("--files", type=int, default=60, help="open in each of them (default: 60)")
    parser.add_argument("--record", type=Path, help="write everything measured as JSON")
    args = parser.parse_args(argv)
    rate = measure_rate(args.seconds)
    print(
        markdown_table(
            ("at 1 Hz", "% of a core", "MB resident"),
            [
                (
                    "the sampling process",
                    f"{100 * rate['sampler_core_share']:.2f}",
                    f"{rate['sampler_resident_bytes'] / 1e6:.1f}",
                ),
                ("the caller", f"{100 * rate['caller_core_share']:.2f}", "–"),
            ],
        )
    )
    print(f"\nIts start takes {rate['start_cpu_s']:.2f} s of a core.\n")
    desktop = None
    if hasattr(os, "posix_spawn") and Path("/proc/self/fdinfo").exists():
        desktop = measure_desktop(args.processes, args.files)
        print(
            f"With a GPU and {desktop['processes']} processes of {desktop['files_each']} files: "
            f"{1e3 * desktop['sample_s']:.1f} ms a sample, {1e3 * desktop['look_s']:.0f} ms for a look "
            "through all of them (each 30 s, or as rarely as makes 0.3 %), "
            f"{1e3 * desktop['tree_s']:.0f} ms each 10 s: "
            f"{100 * desktop['core_share_at_1_hz']:.2f} % of a core at 1 Hz.\n"
        )
    many = measure_many(args.samples, args.interval)
    rows = [
        (each["samples"], *(f"{each[name] / 1e6:.1f}" for name in list(each)[1:])) for each in many["memory"]
    ]
    print(markdown_table(("samples", "sampling process, MB", "caller, MB"), rows))
    if args.record:
        content = {
            "versions": versions(sys.executable, ("aipc", "psutil")),
            "at_1_hz": rate,
            "desktop": desktop,
            "many": many,
        }
        write_record(args.record, "monitor", content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
