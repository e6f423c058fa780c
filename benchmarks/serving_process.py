"""`aipc serve` as a process of its own, for the benchmarks that ask it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from measuring import AIPC


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers.

    log   what it says on stderr
    """

    process: psutil.Process
    url: str
    log: Path

    def workers(self) -> list[psutil.Process]:
        """Its processes that compute."""
        children = self.process.children(recursive=True)
        runtimes = ("aipc.runtimes.onnxruntime", "aipc.runtimes.openvino")
        return [child for child in children if any(n in word for word in _words(child) for n in runtimes)]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


@contextmanager
def serving(*words: str, end_s: float = 60) -> Iterator[Running]:
    """`aipc serve` with these words on a free port, until the end of the `with`.

    raises   RuntimeError with what it said if it does not start, or ends with another code than Ctrl+C's
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as err:
            command = [*AIPC, "serve", *words, "--port", "0"]
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            process = subprocess.Popen(command, stderr=err, env=environment)
        try:
            yield Running(psutil.Process(process.pid), _address(process, log), log)
        finally:
            process.terminate()
            process.wait(end_s)
            said = log.read_text(encoding="utf-8", errors="replace")
            if "Traceback" in said:
                print(said[-4000:], file=sys.stderr)


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    """Where it listens, once it says so."""
    while process.poll() is None:
        for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("OpenAI: "):
                return line.split()[1].removesuffix("/v1")
        try:
            process.wait(0.1)
        except subprocess.TimeoutExpired:
            continue
    raise RuntimeError(log.read_text(encoding="utf-8", errors="replace")[-2000:])
