"""Nothing asks the network: every process that a run starts reports each socket that it opens."""

from __future__ import annotations

import os
import shutil
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


# Until the answer, without the command line: what imports the runtime, and computes with it.
ONNX_RUN = """
import sys
from pathlib import Path
from aipc import demo
from aipc.conversion.convert import convert_checkpoint
from aipc.runtimes.onnxruntime import open_session
from aipc.types import Guidance, Sampling
folder = Path(sys.argv[1])
convert_checkpoint(demo.path(), folder, name="demo", to=("onnx",))
session = open_session(folder, "CPU", context_length=2048, precision="int4")
assert "onnxruntime_genai" not in sys.modules
print(*session.generate([5, 6, 7], Sampling(max_new_tokens=4)))
print(*session.generate([5, 6, 7], Sampling(max_new_tokens=4, guidance=Guidance("regex", "a+"))))
session.close()
"""


def test_a_whole_run_on_onnx_runtime_reports_nothing(watched: Watched, tmp_path: Path) -> None:
    """Its telemetry first collects in the user's cache, and is sent when the process is some seconds old."""
    home = tmp_path / "home"
    home.mkdir()
    watched.environment |= dict.fromkeys(("HOME", "USERPROFILE", "LOCALAPPDATA", "XDG_CACHE_HOME"), str(home))
    watched.environment.pop("ORT_DISABLE_TELEMETRY", None)
    done = watched.run("-c", ONNX_RUN, str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 8
    assert len(watched.seen("started")) == 2
    assert watched.seen("socket.") == []
    assert list(home.rglob("*")) == []


def traced(watched: Watched, calls: Path, *words: str) -> str:
    """The system calls for the network that Python and all that it starts make, also in native code."""
    watched.environment.pop("ORT_DISABLE_TELEMETRY", None)
    command = ["strace", "-f", "-qq", "-e", "signal=none", "-e", "trace=socket,connect,bind", "-o"]
    command += [str(calls), sys.executable, *words]
    done = subprocess.run(command, env=watched.environment, capture_output=True, text=True, check=False)
    if not calls.is_file():
        pytest.skip(f"strace may not trace here: {done.stderr[:200]}")
    assert done.returncode == 0, done.stderr
    return calls.read_text(encoding="utf-8")


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_the_native_code_of_onnx_runtime_opens_no_socket_either(watched: Watched, tmp_path: Path) -> None:
    assert "socket(" in traced(watched, tmp_path / "some", "-c", "import socket; socket.socket().close()")
    assert traced(watched, tmp_path / "none", "-c", ONNX_RUN, str(tmp_path / "out")) == ""
