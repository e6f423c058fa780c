"""Minutes of mixed load with clients that leave, and what the server holds in the end.

    python benchmarks/serve_soak.py [--minutes 20] [--clients 8] [--runtime onnxruntime] [--record FILE]

The clients ask for whole and streamed answers in every API, close connections in the middle, give up before
the first token, and send what is refused. From outside, every 5 seconds: resident memory of the server and of
its worker, open files and sockets, threads. What must hold: memory at the end (median of the last tenth)
within 3 % of the third minute's; no more open files than then; and when all clients are gone, one socket and
one worker. Ends with 1 if not. Of threads, as many stay as answers were ever read at once.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil

from measuring import markdown_table, resident_bytes, write_record
from serving_process import Running, serving

SETTLED_S = 120.0
EVERY_S = 5.0
GROWTH = 1.03
QUESTIONS = ("What is an NPU?", "Hello", "What is int4?", "How do I run a model?", "x " * 800)

Act = Callable[[httpx.Client, random.Random], None]


@dataclass(frozen=True, slots=True)
class Sample:
    """The server as seen from outside, `at_s` seconds after the load began."""

    at_s: float
    server_bytes: int
    workers_bytes: int
    files: int
    sockets: int
    threads: int
    workers: int


def whole(client: httpx.Client, dice: random.Random) -> None:
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": dice.choice(QUESTIONS)}],
        "max_tokens": 60,
    }
    path = dice.choice(("/v1/chat/completions", "/api/chat"))
    expect(client.post(path, json=body | {"stream": False, "n": 1}), 200)


def streamed(client: httpx.Client, dice: random.Random) -> None:
    body = {"model": "demo", "prompt": dice.choice(QUESTIONS), "stream": True, "max_tokens": 60}
    path = dice.choice(("/v1/completions", "/api/generate"))
    with client.stream("POST", path, json=body) as response:
        response.read()
        expect(response, 200)


def left(client: httpx.Client, dice: random.Random) -> None:
    """Leave in the middle of a stream."""
    body = {"model": "demo", "input": dice.choice(QUESTIONS), "stream": True}
    with client.stream("POST", "/v1/responses", json=body) as response:
        for _, _line in zip(range(dice.randrange(1, 30)), response.iter_lines(), strict=False):
            pass


def given_up(client: httpx.Client, dice: random.Random) -> None:
    """Leave before the answer."""
    body = {"model": "demo", "messages": [{"role": "user", "content": dice.choice(QUESTIONS)}]}
    with contextlib.suppress(httpx.TimeoutException):
        client.post("/v1/chat/completions", json=body, timeout=dice.uniform(0.005, 0.3))


def refused(client: httpx.Client, dice: random.Random) -> None:
    expect(client.post("/v1/chat/completions", json={"model": "nothing", "messages": []}), 400)
    expect(client.post("/v1/completions", json={"model": "nothing", "prompt": "x"}), 404)
    expect(client.get("/v1/models", headers={"Host": "evil.example"}), 403)
    expect(client.get("/metrics"), 200)


ACTS: tuple[Act, ...] = (whole, streamed, left, given_up, refused)


def expect(response: httpx.Response, status: int) -> None:
    if response.status_code not in {status, 429}:
        raise RuntimeError(f"{response.request.url.path} gave {response.status_code}: {response.text[:200]}")


def client_thread(url: str, seed: int, counts: collections.Counter[str], over: threading.Event) -> None:
    dice = random.Random(seed)
    while not over.is_set():
        # Now and then a client comes anew, with connections of its own.
        with httpx.Client(base_url=url, timeout=60) as client:
            for _ in range(50):
                act = dice.choice(ACTS)
                try:
                    act(client, dice)
                    counts[act.__name__] += 1
                except (httpx.HTTPError, RuntimeError) as exc:
                    counts[f"wrong: {act.__name__}: {exc!r}"] += 1
                if over.is_set():
                    break


def sample(server: Running, started: float) -> Sample:
    process = server.process
    workers = server.workers()
    own, *others = resident_bytes(process)
    return Sample(
        at_s=time.monotonic() - started,
        server_bytes=own,
        workers_bytes=sum(others),
        files=len(process.open_files()),
        sockets=len(process.net_connections()),
        threads=process.num_threads(),
        workers=len(workers),
    )


def run(args: argparse.Namespace) -> tuple[list[Sample], Sample, collections.Counter[str]]:
    """Samples under load, one after it, and what was done."""
    counts: collections.Counter[str] = collections.Counter()
    over = threading.Event()
    with serving("demo", "--runtime", args.runtime) as server:
        threads = [
            threading.Thread(target=client_thread, args=(server.url, seed, counts, over))
            for seed in range(args.clients)
        ]
        started = time.monotonic()
        for thread in threads:
            thread.start()
        samples = []
        while time.monotonic() - started < args.minutes * 60:
            time.sleep(EVERY_S)
            samples.append(sample(server, started))
        over.set()
        for thread in threads:
            thread.join(120)
        # Idle connections are closed after half a minute.
        time.sleep(40)
        after = sample(server, started)
        workers = server.workers()
    counts.update(
        f"wrong: process {worker.pid} is left" for worker in workers if psutil.pid_exists(worker.pid)
    )
    return samples, after, counts


def main() -> int:
    parser = argparse.ArgumentParser(description="Mixed load with disconnects, and what the server holds.")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    samples, after, counts = run(args)
    third = [s for s in samples if SETTLED_S <= s.at_s < SETTLED_S + 60] or samples[:3]
    last = samples[-max(3, len(samples) // 10) :]
    rows, ratios = [], {}
    for name in ("server_bytes", "workers_bytes", "files", "sockets", "threads", "workers"):
        before, end = (statistics.median(getattr(s, name) for s in part) for part in (third, last))
        ratios[name] = end / before if before else 1.0
        unit = 1e6 if name.endswith("bytes") else 1
        rows.append(
            (name, *(f"{v / unit:.1f}" for v in (before, end, getattr(after, name))), f"{ratios[name]:.3f}")
        )
    print(markdown_table(("", "third minute", "last tenth", "40 s later", "ratio"), rows))
    for act, count in counts.most_common(20):
        print(f"{count} {act}")
    if args.record:
        write_record(
            args.record, "serve_soak", {"samples": [asdict(s) for s in samples], "counts": dict(counts)}
        )
    held = max(ratios["server_bytes"], ratios["workers_bytes"]) <= GROWTH and ratios["files"] <= 1
    idle = after.sockets == 1 and after.workers == 1
    return 0 if held and idle and not any(word.startswith("wrong") for word in counts) else 1


if __name__ == "__main__":
    sys.exit(main())
