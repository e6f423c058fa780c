"""Prefill and decode through `Model.stream`, beside raw `openvino_genai.LLMPipeline`, turn by turn.

    python benchmarks/bench_runtime.py FOLDER [--peer-folder OPTIMUM] --device CPU --record runtime.json

FOLDER is one that `aipc convert` made; with --peer-folder, LLMPipeline also runs what optimum-cli
made of the same checkpoint. Each cell is a process of its own in each round, watched from outside.

- Prompts are token ids, exactly as long as asked, and a new one for each request: nothing that a
  runtime keeps of an earlier prompt helps with the next.
- Load and the first request, which warms the rest, are reported apart and are in no rate.
- The first token ends the prefill; every later one is a decode step. Decode is the median step.
- A request that stopped early is marked, and left out of the rates.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aipc.bench.machine import memory_bandwidth
from measuring import markdown_table, spread, versions, watch, write_record
from timing import Arrivals, Ask, ask_all, open_aipc

_PACKAGES = ("aipc", "numpy", "openvino", "openvino-genai", "openvino-tokenizers", "tokenizers")


@dataclass(frozen=True, slots=True)
class Cell:
    """A way to run a folder: "aipc" through Model.stream, "raw" through LLMPipeline."""

    name: str
    kind: str
    folder: Path


@contextlib.contextmanager
def open_raw(folder: Path, device: str) -> Iterator[Ask]:
    import openvino as ov
    import openvino_genai as genai

    class Clock(genai.StreamerBase):
        def __init__(self) -> None:
            super().__init__()
            self.arrivals: Arrivals = []

        def write(self, token: int | Sequence[int]) -> genai.StreamingStatus:
            self.arrivals.append((time.perf_counter(), 1 if isinstance(token, int) else len(token)))
            return genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    pipeline = genai.LLMPipeline(folder, device)
    config = pipeline.get_generation_config()
    config.do_sample = False
    config.ignore_eos = True

    def ask(ids: list[int], new_tokens: int) -> Arrivals:
        clock = Clock()
        config.max_new_tokens = new_tokens
        row = np.array([ids], np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(row), ov.Tensor(np.ones_like(row)))
        pipeline.generate(inputs, config, clock)
        return clock.arrivals

    yield ask


def run_cell(args: argparse.Namespace) -> dict[str, Any]:
    """All requests of one cell, in this process; called in a fresh one."""
    vocab_size = json.loads((args.folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    start = time.perf_counter()
    with {"aipc": open_aipc, "raw": open_raw}[args.cell](args.folder, args.device) as ask:
        load_s = time.perf_counter() - start
        answers = ask_all(ask, vocab_size, args.prompt_tokens, args.new_tokens, args.repeats)
    return {"load_s": load_s, **answers}


def measure(cells: Sequence[Cell], args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """All rounds of all cells; who begins changes from round to round."""
    results: dict[str, list[dict[str, Any]]] = {cell.name: [] for cell in cells}
    for number in range(args.rounds):
        turn = number % len(cells)
        for cell in (*cells[turn:], *cells[:turn]):
            results[cell.name].append(run_apart(cell, args))
            print(f"round {number + 1}: {cell.name}", file=sys.stderr)
    return results


def run_apart(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """One cell in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        command = [sys.executable, __file__, str(cell.folder), "--cell", cell.kind, "--record", str(answer)]
        command += ["--device", args.device, "--new-tokens", str(args.new_tokens)]
        command += ["--repeats", str(args.repeats), "--prompt-tokens", *map(str, args.prompt_tokens)]
        watched = watch(command, Path(scratch) / "log")
        return json.loads(answer.read_text(encoding="utf-8")) | {"watched": dataclasses.asdict(watched)}


@dataclass(frozen=True, slots=True)
class Rates:
    """Of one cell at one prompt length, over all rounds: each value is one request's.

    decode_tokens_per_s   by the median step
    mean_tokens_per_s     by the time of all steps; far from the median, tokens came in bursts
    """

    prefill_tokens_per_s: list[float]
    decode_tokens_per_s: list[float]
    mean_tokens_per_s: list[float]
    stopped_early: int

    @classmethod
    def of(cls, rounds: Iterable[dict[str, Any]], prompt_tokens: int) -> Rates:
        requests = [r for one in rounds for r in one["requests"] if r["prompt_tokens"] == prompt_tokens]
        whole = [r for r in requests if not r["stopped_early"]]
        return cls(
            [prompt_tokens / r["ttft_s"] for r in whole],
            [1.0 / statistics.median(r["steps_s"]) for r in whole],
            [1.0 / statistics.mean(r["steps_s"]) for r in whole],
            len(requests) - len(whole),
        )


def rates_table(results: dict[str, list[dict[str, Any]]], prompt_tokens: Sequence[int]) -> str:
    """Medians over all requests as a Markdown table; "of raw" is the share of the second cell's rate."""
    rows = []
    for length in prompt_tokens:
        rates = {name: Rates.of(rounds, length) for name, rounds in results.items()}
        yardstick = list(rates.values())[1]
        for name, own in rates.items():
            prefill = rate_columns(own.prefill_tokens_per_s, yardstick.prefill_tokens_per_s)
            decode = rate_columns(own.decode_tokens_per_s, yardstick.decode_tokens_per_s)
            mean = rate_columns(own.mean_tokens_per_s, yardstick.mean_tokens_per_s)[0]
            rows.append((name, length, *prefill, *decode, mean, own.stopped_early))
    rate = ("t/s", "spread", "of raw")
    header = ("", "prompt", *(f"prefill {word}" for word in rate), *(f"decode {word}" for word in rate))
    header += ("by mean step", "stopped early")
    return markdown_table(header, rows)


def rate_columns(values: Sequence[float], yardstick: Sequence[float]) -> tuple[str, str, str]:
    """Median, spread, and share of the yardstick; dashes where every request stopped early."""
    if not values or not yardstick:
        return "–", "–", "–"
    median = statistics.median(values)
    return f"{median:.1f}", spread(values), f"{median / statistics.median(yardstick):.3f}"


def costs_table(results: dict[str, list[dict[str, Any]]]) -> str:
    """What comes before the rates, and memory: medians over the rounds, the highest peak."""
    rows = []
    for name, rounds in results.items():
        load = statistics.median(one["load_s"] for one in rounds)
        first = statistics.median(one["first_requests"][0]["ttft_s"] for one in rounds)
        peak = max(one["watched"]["peak_tree_bytes"] for one in rounds)
        rows.append((name, f"{load:.1f}", f"{first:.1f}", f"{peak / 1e9:.2f}"))
    return markdown_table(("", "load s", "first token of first request s", "peak GB"), rows)


def ceiling(folder: Path) -> dict[str, float]:
    """The most tokens a second that memory allows when each step reads every weight file byte once.

    The embedding, of which a step reads one row, is in that too; so the true ceiling is a little higher.
    """
    bandwidth, size = memory_bandwidth(), (folder / "openvino_model.bin").stat().st_size
    return {"bandwidth_bytes_per_s": bandwidth, "weight_bytes": size, "tokens_per_s": bandwidth / size}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure Model.stream beside raw LLMPipeline.")
    parser.add_argument("folder", type=Path, help="a folder that aipc converted")
    parser.add_argument("--peer-folder", type=Path, help="what optimum-cli made of the same checkpoint")
    parser.add_argument("--device", default="CPU")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="requests of each length in each process")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes of each cell")
    parser.add_argument("--record", type=Path, help="write everything measured as JSON")
    parser.add_argument("--cell", choices=("aipc", "raw"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.new_tokens < 2:
        parser.error("--new-tokens must be at least 2: the first token is no decode step")
    for folder in filter(None, (args.folder, args.peer_folder)):
        if not (folder / "openvino_model.bin").is_file():
            parser.error(f"{folder} holds no openvino_model.bin")
    return args


def main() -> None:
    args = parse()
    if args.cell:
        args.record.write_text(json.dumps(run_cell(args)), encoding="utf-8")
        return
    cells = [Cell("Model.stream", "aipc", args.folder), Cell("LLMPipeline", "raw", args.folder)]
    if args.peer_folder:
        cells.append(Cell("LLMPipeline, optimum's folder", "raw", args.peer_folder))
    most = ceiling(args.folder)
    results = measure(cells, args)
    print(rates_table(results, args.prompt_tokens), costs_table(results), sep="\n\n")
    print(
        f"\nceiling of decode: {most['tokens_per_s']:.1f} tokens/s"
        f" ({most['bandwidth_bytes_per_s'] / 1e9:.1f} GB/s over {most['weight_bytes'] / 1e9:.2f} GB)"
    )
    if args.record:
        options = {name: getattr(args, name) for name in ("prompt_tokens", "new_tokens", "repeats", "rounds")}
        content = {
            "device": args.device,
            "options": options,
            "versions": versions(sys.executable, _PACKAGES),
            "ceiling": most,
            "cells": results,
        }
        write_record(args.record, "runtime", content)


if __name__ == "__main__":
    main()
