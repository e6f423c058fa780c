"""What every benchmark needs: a command watched from outside, the machine's description, the record."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

# The console program of the aipc that this interpreter imports, installed or not.
AIPC = (sys.executable, "-c", "import sys; from aipc.cli import main; sys.exit(main())")

SAMPLE_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class Watched:
    """A command that has run, as seen from outside.

    peak_tree_bytes      resident memory of the process and all its descendants together, highest sample
    peak_process_bytes   of the largest of them
    """

    wall_s: float
    peak_tree_bytes: int
    peak_process_bytes: int
    samples: int


def watch(
    command: Sequence[str | Path],
    output: Path,
    env: Mapping[str, str] | None = None,
    sample_every_s: float = SAMPLE_EVERY_S,
) -> Watched:
    """Run a command, its stdout and stderr into a file, and sample its memory, every 50 ms by default.

    raises   RuntimeError with the end of the output if it fails
    """
    peak_tree = peak_process = samples = 0
    with output.open("wb") as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **(env or {})}
        )
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            resident = resident_bytes(watched)
            peak_tree = max(peak_tree, sum(resident))
            peak_process = max(peak_process, *resident, 0)
            samples += 1
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(sample_every_s)
        wall_s = time.perf_counter() - start
    if process.returncode:
        tail = output.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise RuntimeError(f"{command[0]} ended with {process.returncode}:\n{tail}")
    return Watched(wall_s, peak_tree, peak_process, samples)


def resident_bytes(process: psutil.Process) -> list[int]:
    """Resident memory of a process and each of its descendants; one that has just ended is left out."""
    sizes = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for member in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                sizes.append(member.memory_info().rss)
    return sizes


def forget_cached(folder: Path) -> bool:
    """Put a folder's files out of the page cache; False where the system has no such call."""
    if not hasattr(os, "posix_fadvise"):
        return False
    os.sync()
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return True


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def machine() -> dict[str, Any]:
    """The machine, as far as a reader of the figures must know it."""
    return {
        "cpu": _cpu_name(),
        "logical_cpus": os.cpu_count(),
        "physical_cpus": psutil.cpu_count(logical=False),
        "memory_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def versions(python: str | Path, packages: Iterable[str]) -> dict[str, str | None]:
    """The versions of packages in the environment of a Python, and its own; None where absent."""
    script = (
        "import json, platform, sys\nfrom importlib import metadata\n"
        "found = {d.name.lower().replace('_', '-'): d.version for d in metadata.distributions()}\n"
        "print(json.dumps({'python': platform.python_version()} | {p: found.get(p) for p in sys.argv[1:]}))"
    )
    answer = subprocess.run([python, "-c", script, *packages], check=True, capture_output=True, text=True)
    return dict(json.loads(answer.stdout))


def write_record(path: Path, benchmark: str, content: Mapping[str, Any]) -> None:
    """Write what was measured, with the date and the machine."""
    record = {
        "benchmark": benchmark,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        **content,
    }
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table: first column to the left, the others to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Lowest and highest of several values, as people write it."""
    return f"{min(values):.{digits}f}–{max(values):.{digits}f}"


def median_and_spread(values: Sequence[float], digits: int) -> str:
    """A median with the values it lies between, or a dash for nothing."""
    if not values:
        return "–"
    median = f"{statistics.median(values):.{digits}f}"
    return median if len(values) == 1 else f"{median} ({spread(values, digits)})"
