"""What the server costs beside the stream it sends: tokens a second, and the time to the first.

    python benchmarks/serve_overhead.py MODEL [--runtime openvino] [--pairs 20] [--tokens 64] [--record FILE]

One server process answers over a connection that stays open, as OpenAI's client keeps it, and one process
asks `Model.stream` itself, turn by turn with the same prompts, each a new one of 64 tokens. Both times are
taken by who waits, with the text in hand: from the call to the first text, and from that to the last.
What a client in Python spends on HTTP and JSON is in the server's figures.

What the server costs is compared within each pair, since machines drift: given are the medians of the
differences and of the ratios. A prompt that the model answers with nothing is left out.
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

Ask = Callable[[list[int]], "Timed | None"]


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer that has text; its rate is known if the text came in more than one piece."""

    ttft_s: float
    tokens_per_s: float | None


def timed(started: float, pieces: list[tuple[float, str]], tokens: int) -> Timed | None:
    """From the moments at which pieces of an answer arrived, and what they were.

    The first may hold several tokens, where they come faster than they are read: text tells how many.
    """
    if not pieces:
        return None
    (first_s, first), last_s = pieces[0], pieces[-1][0]
    later = tokens * (1 - len(first) / sum(len(text) for _, text in pieces))
    return Timed(first_s - started, later / (last_s - first_s) if later else None)


def directly(model: aipc.model.Model, tokens: int) -> Ask:
    """Ask `Model.stream`."""

    def ask(prompt: list[int]) -> Timed | None:
        started = time.perf_counter()
        pieces: list[tuple[float, str]] = []
        for chunk in model.stream(prompt, max_new_tokens=tokens):
            if chunk.text:
                pieces.append((time.perf_counter(), chunk.text))
            if chunk.stats:
                made = chunk.stats.generated_tokens
        return timed(started, pieces, made)

    return ask


def over_http(client: httpx.Client, name: str, tokens: int) -> Ask:
    """Ask the server."""

    def ask(prompt: list[int]) -> Timed | None:
        body = {
            "model": name,
            "prompt": prompt,
            "max_tokens": tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        started = time.perf_counter()
        pieces: list[tuple[float, str]] = []
        with client.stream("POST", "/v1/completions", json=body) as response:
            for event in events(response):
                if event["choices"] and event["choices"][0]["text"]:
                    pieces.append((time.perf_counter(), event["choices"][0]["text"]))
                elif not event["choices"]:
                    made = event["usage"]["completion_tokens"]
        return timed(started, pieces, made)

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
        answers = {way: ways[way](prompt) for way in sorted(ways, reverse=pair % 2 == 0)}
        if pair and all(answers.values()):  # the first warms up
            for way, one in answers.items():
                times[way] += [one] if one else []
    return times


def row(way: str, times: list[Timed], base: list[Timed]) -> tuple[str, ...]:
    ttfts = [1000 * one.ttft_s for one in times]
    more = [1000 * (one.ttft_s - other.ttft_s) for one, other in zip(times, base, strict=True)]
    rates = [
        (one.tokens_per_s, other.tokens_per_s)
        for one, other in zip(times, base, strict=True)
        if one.tokens_per_s and other.tokens_per_s
    ]
    return (
        way,
        f"{statistics.median(ttfts):.1f}",
        f"{statistics.median(more):+.1f}",
        f"{statistics.quantiles(ttfts, n=10)[-1]:.1f}",
        f"{statistics.median(rate for rate, _ in rates):.2f}",
        f"{100 * (statistics.median(rate / other for rate, other in rates) - 1):+.1f} %",
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
    header = ("", "first token ms", "more", "of nine in ten", "tokens/s", "more")
    print(markdown_table(header, [row(way, times[way], times["Model.stream"]) for way in ways]))
    if args.record:
        raw = {way: [asdict(one) for one in many] for way, many in times.items()}
        write_record(args.record, "serve_overhead", {"arguments": sys.argv[1:], "times": raw})
    return 0


if __name__ == "__main__":
    sys.exit(main())
