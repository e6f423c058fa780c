"""Kills the process that computes while clients ask, and looks at what they get.

    python benchmarks/serve_kills.py [--kills 100] [--clients 8] [--runtime onnxruntime] [--seed 0]

`aipc serve demo` answers the clients, every second of which streams. Each kill is a SIGKILL
(TerminateProcess on Windows) at a random moment. What must hold: /health answers throughout; every request
ends with its whole answer or a structured error within 10 seconds of the last kill before its end; nothing is
left. Prints a table, and ends with 1 if something did not hold.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import httpx
import psutil

from measuring import markdown_table
from serving_process import Running, serving

LATE_S = 10.0
MESSAGES = [{"role": "user", "content": "What is an NPU?"}]


@dataclass
class Outcomes:
    """What became of the requests."""

    whole: int = 0
    errors: int = 0
    wrong: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    health_slowest_s: float = 0.0
    killed_at: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, verdict: str, started: float) -> None:
        """A request has ended: "whole", "error", or what is wrong with it."""
        now = time.monotonic()
        with self.lock:
            self.slowest_s = max(self.slowest_s, now - max(started, self.killed_at))
            if verdict == "whole":
                self.whole += 1
            elif verdict == "error":
                self.errors += 1
            else:
                self.wrong.append(verdict)


def ask(client: httpx.Client, stream: bool, expected: str) -> str:
    """One request, and the verdict on it."""
    body = {"model": "demo", "messages": MESSAGES, "stream": stream}
    try:
        response = client.post("/v1/chat/completions", json=body)
    except httpx.HTTPError as exc:
        return f"no answer: {exc!r}"
    if response.status_code != 200:
        return "error" if response.json().get("error", {}).get("message") else response.text[:200]
    if not stream:
        text = response.json()["choices"][0]["message"]["content"]
        return "whole" if text == expected else f"another answer: {text[:100]}"
    return judge_stream(response.text, expected)


def judge_stream(body: str, expected: str) -> str:
    """The verdict on the events of a stream."""
    events = [line.removeprefix("data: ") for line in body.splitlines() if line.startswith("data: ")]
    objects: list[dict[str, Any]] = [json.loads(event) for event in events if event != "[DONE]"]
    if objects and objects[-1].get("error", {}).get("message"):
        return "error"
    text = "".join(choice["delta"].get("content", "") for o in objects for choice in o["choices"])
    whole = events[-1:] == ["[DONE]"] and text == expected
    return "whole" if whole else f"another stream: {body[-200:]}"


def client_thread(url: str, stream: bool, expected: str, outcomes: Outcomes, over: threading.Event) -> None:
    with httpx.Client(base_url=url, timeout=120) as client:
        while not over.is_set():
            started = time.monotonic()
            outcomes.note(ask(client, stream, expected), started)


def health_thread(url: str, outcomes: Outcomes, over: threading.Event) -> None:
    with httpx.Client(base_url=url, timeout=30) as client:
        while not over.wait(0.05):
            started = time.monotonic()
            try:
                healthy = client.get("/health").status_code == 200
            except httpx.HTTPError as exc:
                healthy = False
                outcomes.wrong.append(f"/health: {exc!r}")
            outcomes.health_slowest_s = max(outcomes.health_slowest_s, time.monotonic() - started)
            if not healthy:
                outcomes.wrong.append("/health did not answer")


def kill_some(server: Running, kills: int, dice: random.Random, outcomes: Outcomes) -> None:
    """Kill workers at random moments of their lives: while they load, read or write."""
    for _ in range(kills):
        time.sleep(dice.uniform(0.0, 2.0))
        workers = server.workers()
        while not workers:
            time.sleep(0.01)
            workers = server.workers()
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
        outcomes.killed_at = time.monotonic()


def run(args: argparse.Namespace) -> Outcomes:
    outcomes, over = Outcomes(), threading.Event()
    with serving("demo", "--runtime", args.runtime) as server:
        url = server.url
        body = {"model": "demo", "messages": MESSAGES}
        expected = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=120).json()
        text = expected["choices"][0]["message"]["content"]
        threads = [
            threading.Thread(target=client_thread, args=(url, index % 2 == 0, text, outcomes, over))
            for index in range(args.clients)
        ]
        threads.append(threading.Thread(target=health_thread, args=(url, outcomes, over)))
        for thread in threads:
            thread.start()
        kill_some(server, args.kills, random.Random(args.seed), outcomes)
        over.set()
        for thread in threads:
            thread.join(120)
        replays = httpx.get(f"{url}/metrics").text
        workers = server.workers()
        print(next((line for line in replays.splitlines() if line.startswith("aipc_replays_total")), ""))
        if len(workers) > 1:
            outcomes.wrong.append(f"{len(workers)} workers at the end")
    outcomes.wrong += [f"process {w.pid} is left" for w in workers if psutil.pid_exists(w.pid)]
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill workers under load, and see what clients get.")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    outcomes = run(args)
    header = ("kills", "whole answers", "clear errors", "slowest end, s", "slowest /health, s", "wrong")
    row = (
        args.kills,
        outcomes.whole,
        outcomes.errors,
        f"{outcomes.slowest_s:.2f}",
        f"{outcomes.health_slowest_s:.2f}",
        len(outcomes.wrong),
    )
    print(markdown_table(header, [row]))
    for word in outcomes.wrong[:20]:
        print(f"wrong: {word}", file=sys.stderr)
    return 1 if outcomes.wrong or outcomes.slowest_s > LATE_S else 0


if __name__ == "__main__":
    sys.exit(main())
