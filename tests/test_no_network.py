"""Nothing asks the network: every process that a run starts reports each socket that it opens."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

WATCH = """
import os, sys
def watch(event, args):
    if event.startswith("socket.") and event != "socket.gethostname":
        with open(os.environ["WATCHED"], "a", encoding="utf-8") as log:
            log.write(f"{event} {args!r}\\n")
sys.addaudithook(watch)
with open(os.environ["WATCHED"], "a", encoding="utf-8") as log:
    log.write(f"started {os.getpid()}\\n")
"""


class Watched:
    """Runs Python with a hook in it and in the Pythons that it starts."""

    def __init__(self, folder: Path) -> None:
        (folder / "hook").mkdir()
        (folder / "hook" / "sitecustomize.py").write_text(WATCH, encoding="utf-8")
        self.log = folder / "watched"
        paths = [str(folder / "hook"), *filter(None, sys.path)]
        # CI switches OpenVINO's telemetry off by itself, which would make this test pass for nothing.
        inherited = {name: value for name, value in os.environ.items() if name != "CI"}
        self.environment = inherited | {
            "WATCHED": str(self.log),
            "PYTHONPATH": os.pathsep.join(paths),
            "AIPC_CACHE_DIR": str(folder / "cache"),
        }

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words],
            env=self.environment,
            capture_output=True,
            encoding="utf-8",
            check=False,
            timeout=120,
        )

    def seen(self, kind: str) -> list[str]:
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.startswith(kind)]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_the_watch_sees_a_socket(watched: Watched) -> None:
    watched.run("-c", "import socket; socket.socket().close()")
    assert len(watched.seen("socket.")) == 1


def test_a_whole_run_from_conversion_to_answer_opens_no_socket(watched: Watched) -> None:
    done = watched.run("-m", "aipc", "run", "demo", "What is an NPU?", "--max-new-tokens", "4")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert len(watched.seen("started")) == 2, "the program, and the process that computes"
    assert watched.seen("socket.") == []
