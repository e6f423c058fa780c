"""What the server costs beside the stream it sends: tokens a second, and the time to the first.

    python benchmarks/serve_overhead.py MODEL [--runtime openvino] [--pairs 20] [--tokens 64] [--record FILE]

One server process answers over a socket, and one process asks `Model.stream` itself, turn by turn with the
same prompts, each a new one of 64 tokens. Both times are taken by who waits: from the request to the first
text, and between the first and the last. MODEL may be several times as slow as the server is: the difference
of the medians is what it costs.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx

import aipc
from measuring import markdown_table, write_record
from serving_process import serving

Ask = Callable[[list[int]], "Timed"]


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer."""

    ttft_s: float
    tokens_per_s: float


def timed(started: float, arrivals: list[float], tokens: int) -> Timed:
    """From the moments at which pieces of an answer arrived, of which the first is one token."""
    return Timed(arrivals[0] - started, (tokens - 1) / (arrivals[-1] - arrivals[0]))


def directly(model: aipc.model.Model, tokens: int) -> Ask:
    """Ask `Model.stream`."""

    def ask(prompt: list[int]) -> Timed:
        started = time.perf_counter()
        arrivals: list[float] = []
        for chunk in model.stream(prompt, max_new_tokens=tokens):
            if chunk.text:
                arrivals.append(time.perf_counter())
            if chunk.stats:
                made = chunk.stats.generated_tokens
        return timed(started, arrivals, made)

    return ask


def over_http(client: httpx.Client, name: str, tokens: int) -> Ask:
    """Ask the server."""

    def ask(prompt: list[int]) -> Timed:
        body = {
            "model": name,
            "prompt": prompt,
            "max_tokens": tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        started = time.perf_counter()
        arrivals: list[float] = []
        with client.stream("POST", "/v1/completions", json=body) as response:
            for event in events(response):
                if event["choices"] and event["choices"][0]["text"]:
                    arrivals.append(time.perf_counter())
                elif not event["choices"]:
                    made = event["usage"]["completion_tokens"]
        return timed(started, arrivals, made)

    return ask


def events(response: httpx.Response) -> Iterator[dict]:  # type: ignore[type-arg]
    for line in response.iter_lines():
        if line.startswith("data: {"):
            yield json.loads(line[6:])


def measure(ways: dict[str, Ask], pairs: int) -> dict[str, list[Timed]]:
    """Turn by turn, in another order each time."""
    dice = random.Random(0)
    times: dict[str, list[Timed]] = {way: [] for way in ways}
    for pair in range(pairs + 1):
        prompt = [dice.randrange(10, 900) for _ in range(64)]
        for way in sorted(ways, reverse=pair % 2 == 0):
            one = ways[way](prompt)
            if pair:  # the first warms up
                times[way].append(one)
    return times


def row(way: str, times: list[Timed], base: list[Timed]) -> tuple[str, ...]:
    ttft_s, base_ttft_s = (statistics.median(one.ttft_s for one in many) for many in (times, base))
    rate, base_rate = (statistics.median(one.tokens_per_s for one in many) for many in (times, base))
    return (
        way,
        f"{1000 * ttft_s:.1f}",
        f"{1000 * (ttft_s - base_ttft_s):+.1f}",
        f"{rate:.2f}",
        f"{100 * (rate / base_rate - 1):+.1f} %",
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="What the server costs beside Model.stream.")
    parser.add_argument("model")
    parser.add_argument("--runtime", default="openvino")
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    with (
        serving(args.model, "--runtime", args.runtime) as server,
        httpx.Client(base_url=server.url, timeout=600) as client,
        aipc.load(args.model, runtime=args.runtime) as model,
    ):
        ways = {
            "Model.stream": directly(model, args.tokens),
            "aipc serve": over_http(client, args.model, args.tokens),
        }
        times = measure(ways, args.pairs)
    header = ("", "first token ms", "more", "tokens/s", "more")
    print(markdown_table(header, [row(way, times[way], times["Model.stream"]) for way in ways]))
    if args.record:
        raw = {way: [asdict(one) for one in many] for way, many in times.items()}
        write_record(args.record, "serve_overhead", {"arguments": sys.argv[1:], "times": raw})
    return 0


if __name__ == "__main__":
    sys.exit(main())
