"""`aipc serve` as its users start it: a process, and the demo model behind it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import psutil

QUESTION = [{"role": "user", "content": "What is an NPU?"}]


class Program:
    """A server that runs."""

    def __init__(self, process: subprocess.Popen[str], port: int, said: list[str]) -> None:
        self.process = process
        self.url = f"http://127.0.0.1:{port}"
        self.said = said

    def ask(self, client: openai.OpenAI, **options: object) -> str:
        completion = client.chat.completions.create(model="demo", messages=QUESTION, **options)  # type: ignore[call-overload]
        return str(completion.choices[0].message.content)

    def workers(self) -> list[psutil.Process]:
        """The processes that compute, which the monitor's does not."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        runtimes = ("aipc.runtimes.onnxruntime", "aipc.runtimes.openvino")
        return [
            child for child in children if any(name in word for word in child.cmdline() for name in runtimes)
        ]


@contextmanager
def program(environment: dict[str, str], *words: str) -> Iterator[Program]:
    """`aipc serve demo` on a free port, until the end of the `with`."""
    command = [sys.executable, "-m", "aipc", "serve", *words, "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    said: list[str] = []
    try:
        for line in process.stderr:
            said.append(line)
            if line.startswith("OpenAI: "):
                break
        port = int(said[-1].partition("/v1")[0].rpartition(":")[2]) if said else 0
        reader = threading.Thread(target=lambda: said.extend(process.stderr or ()), daemon=True)
        reader.start()
        yield Program(process, port, said)
    finally:
        process.terminate()
        process.wait(30)
        reader.join(30)
        process.stderr.close()


def environment_with(cache: Path) -> dict[str, str]:
    """What the program is started with: this interpreter's packages, and a cache of its own."""
    inherited = {name: value for name, value in os.environ.items() if name != "AIPC_API_KEY"}
    paths = os.pathsep.join(filter(None, sys.path))
    return inherited | {"PYTHONPATH": paths, "AIPC_CACHE_DIR": str(cache), "PYTHONUNBUFFERED": "1"}
