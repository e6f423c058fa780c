"""Decode and prefill on a machine that drifts: all loaded at once, and asked in short turns.

    python benchmarks/bench_turns.py --onnx FOLDER --openvino FOLDER --gguf model.gguf --record turns.json

Where other tenants take memory bandwidth for minutes, a process that runs later than another one measures
them. Here all runtimes are loaded side by side, one computes at a time, and each figure is compared with
those of the same turn. A turn is a block of decode steps, less than a second of each; every few turns they
all begin a new text, whose prompt is the prefill. Where its memory lies makes a process faster or slower for
all its life, so each round loads all of them anew. With --alone only one is loaded at a time, as whoever
uses it has it, and its turns are half a minute from the next one's. Memory bandwidth is measured between all
blocks: a share of the ceiling is of the mean of the two measurements around it, since the better one would
be another moment's.

The ceiling is bandwidth over the bytes that a token reads: those of the weights as the runtime packs them,
and of the keys and values of the text before it. Decode is the mean of a block's steps, as whoever reads the
answer has it. Turns are shown together, and in thirds by how fast memory was.

Cells as in bench_decode.py, and what computes for aipc on ONNX Runtime in a process of its own, without
aipc's worker around it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from aipc.bench.machine import memory_bandwidth
from aipc.phi3 import Phi3Config
from bench_decode import AIPC_ONNX, ENVIRONMENT, LLAMA, PACKAGES, Cell, cells, llama_description, read_once
from measuring import markdown_table, versions, write_record
from peers import default_envs, peer_python

DECODER = "the same, without a worker"

# Of the keys and values in each runtime's cache.
_CACHE_VALUE_BYTES = {"onnxruntime": 4, "decoder": 4, "genai": 4, "llama": 2, "openvino": 1}

# A process rests that takes less than this share of a core from one look to the next.
_RESTS_BELOW, _LOOK_S = 0.05, 0.5


class Running:
    """A cell's process, loaded and waiting for its turn."""

    def __init__(self, cell: Cell, args: argparse.Namespace) -> None:
        program = Path(__file__).with_name("decode_cell.py")
        command = [str(cell.python), str(program), cell.kind, str(cell.model), "--block", str(args.steps + 1)]
        command += ["--threads", str(args.threads), "--vocab-size", str(args.vocab_size)]
        command += ["--prompt-tokens", str(args.prompt_tokens)]
        # A text's first token ends its prompt.
        command += ["--new-tokens", str(1 + args.blocks * (args.steps + 1))]
        self.cell = cell
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **ENVIRONMENT, "AIPC_CACHE_DIR": str(cell.cache)},
        )
        self._answer()

    def ask(self, word: str) -> dict[str, Any]:
        """One prompt, or one block of steps, timed over there."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n")
        self._process.stdin.flush()
        return self._answer()

    def rest(self) -> None:
        """Wait until it computes nothing: aipc goes on with its pages for seconds."""
        before = -1.0
        while (now := self._processor_s()) - before > _RESTS_BELOW * _LOOK_S:
            before = now
            time.sleep(_LOOK_S)

    def close(self) -> None:
        self._process.communicate()

    def _processor_s(self) -> float:
        """What it and its children have used."""
        process = psutil.Process(self._process.pid)
        times = [one.cpu_times() for one in (process, *process.children(recursive=True))]
        return sum(one.user + one.system for one in times)

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.cell.name} ended with exit status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def running(used: Sequence[Cell], args: argparse.Namespace) -> Iterator[list[Running]]:
    """Some cells, loaded one after the other, warm, and at rest."""
    with contextlib.ExitStack() as stack:
        loaded = []
        for cell in used:
            read_once(cell.model)
            loaded.append(Running(cell, args))
            stack.callback(loaded[-1].close)
            loaded[-1].ask("prompt")
            loaded[-1].rest()
        yield loaded


@dataclass(frozen=True, slots=True)
class Turn:
    """One block of one cell.

    token_bytes   that each of its tokens read
    bandwidth     bytes a second, the mean of the measurements before and after it
    """

    decode_tokens_per_s: float
    token_bytes: float
    bandwidth: float

    @property
    def share(self) -> float:
        """Of the ceiling."""
        return self.decode_tokens_per_s * self.token_bytes / self.bandwidth


@dataclass(frozen=True, slots=True)
class Measured:
    """Of one cell: how fast each prompt was read, and each turn."""

    prefill_tokens_per_s: list[float] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)


def measured_before(used: Sequence[Cell], records: Sequence[Path], *, alone: bool) -> dict[str, Measured]:
    """What earlier runs recorded of the same cells, one after the other."""
    results = {cell.name: Measured() for cell in used}
    for path in records:
        record = json.loads(path.read_text(encoding="utf-8"))
        # One from before this was written down has another bandwidth, too: the better of the two around it.
        if record.get("alone") is not alone:
            raise SystemExit(f"{path} was measured in another way: without --alone, or with it, or before")
        cells_before = record["cells"]
        if cells_before.keys() != results.keys():
            raise SystemExit(f"{path} is of {', '.join(cells_before)}; this run is of {', '.join(results)}")
        for name, found in cells_before.items():
            results[name].prefill_tokens_per_s.extend(found["prefill_tokens_per_s"])
            results[name].turns.extend(Turn(**turn) for turn in found["turns"])
    return results


def measure(used: Sequence[Cell], args: argparse.Namespace) -> dict[str, Measured]:
    """All rounds: new processes, the same turns; behind what was measured before."""
    results = measured_before(used, args.counting, alone=args.alone)
    together = [[cell] for cell in used] if args.alone else [used]
    for number in range(args.rounds):
        for some in together:
            with running(some, args) as loaded:
                measure_turns(loaded, args, results)
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
    return results


def measure_turns(
    loaded: Sequence[Running], args: argparse.Namespace, results: Mapping[str, Measured]
) -> None:
    """Each turn asks every cell once; who begins changes from turn to turn."""
    before = 0.0
    for number in range(args.turns):
        first, block = number % len(loaded), number % args.blocks
        order = (*loaded[first:], *loaded[:first])
        if block == 0:
            for one in order:
                rate = args.prompt_tokens / one.ask("prompt")["ttft_s"]
                results[one.cell.name].prefill_tokens_per_s.append(rate)
            before = memory_bandwidth()
        held = args.prompt_tokens + (block + 0.5) * (args.steps + 1)
        for one in order:
            rate = 1 / statistics.mean(one.ask("block")["steps_s"])
            after = memory_bandwidth()
            needed = one.cell.weight_bytes + held * _CACHE_VALUE_BYTES[one.cell.kind] * args.cache_values
            results[one.cell.name].turns.append(Turn(rate, needed, (before + after) / 2))
            before = after


def report(results: Mapping[str, Measured]) -> str:
    """Medians, with the quartiles of each ratio, as Markdown tables."""
    yardstick = LLAMA if LLAMA in results else next(iter(results))
    peer, of = results[yardstick], f"of {yardstick}"
    rows = []
    for name, own in results.items():
        prefill = own.prefill_tokens_per_s
        both = (f"{statistics.median(prefill):.1f}", quartiles(ratios(prefill, peer.prefill_tokens_per_s)))
        rows.append((name, *both, *decode_columns(own.turns, peer.turns)))
    whole = markdown_table(("", "prefill t/s", of, "decode t/s", of, "of ceiling"), rows)
    return f"{whole}\n\n{report_by_bandwidth(results, yardstick)}"


def report_by_bandwidth(results: Mapping[str, Measured], yardstick: str) -> str:
    """Decode in the third of the turns in which memory was slowest, in the next, and in the last."""
    bandwidths = [
        statistics.median(turn.bandwidth for turn in turns)
        for turns in zip(*(measured.turns for measured in results.values()), strict=True)
    ]
    by_bandwidth = sorted(range(len(bandwidths)), key=bandwidths.__getitem__)
    borders = [len(by_bandwidth) * share // 3 for share in range(4)]
    rows = []
    for third in itertools.starmap(slice, itertools.pairwise(borders)):
        places = by_bandwidth[third]
        limits = "–".join(f"{bandwidths[place] / 1e9:.0f}" for place in (places[0], places[-1]))
        peer = [results[yardstick].turns[place] for place in places]
        for name, own in results.items():
            rows.append((limits, name, *decode_columns([own.turns[place] for place in places], peer)))
    header = ("plain read GB/s", "", "decode t/s", f"of {yardstick}", "of ceiling")
    return markdown_table(header, rows)


def decode_columns(own: Sequence[Turn], peer: Sequence[Turn]) -> tuple[str, str, str]:
    """Tokens a second, of the peer's in the same turns, of the ceiling."""
    rates, peers = ([turn.decode_tokens_per_s for turn in turns] for turns in (own, peer))
    shares = quartiles([turn.share for turn in own])
    return f"{statistics.median(rates):.1f}", quartiles(ratios(rates, peers)), shares


def ratios(own: Sequence[float], other: Sequence[float]) -> list[float]:
    """Each of the values over the other one of its turn."""
    return [one / its for one, its in zip(own, other, strict=True)]


def quartiles(values: Sequence[float]) -> str:
    """The median, and the half of all values around it."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure runtimes side by side, in short turns.")
    parser.add_argument("--onnx", type=Path, required=True, help="an ONNX folder that aipc converted")
    parser.add_argument("--openvino", type=Path, help="an OpenVINO folder that aipc converted")
    parser.add_argument("--gguf", type=Path, help="what make_gguf.py wrote")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--steps", type=int, default=16, help="decode steps in a block")
    parser.add_argument("--blocks", type=int, default=6, help="blocks of each text")
    parser.add_argument("--turns", type=int, default=18, help="blocks of each process")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes of each cell")
    parser.add_argument("--alone", action="store_true", help="load one cell at a time")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--envs", type=Path, default=default_envs(), help="folder of the peers' environments")
    parser.add_argument("--counting", type=Path, nargs="+", default=[], help="what --record wrote before")
    parser.add_argument("--record", type=Path, help="write everything measured as JSON")
    args = parser.parse_args()
    if min(args.steps, args.blocks, args.rounds) < 1 or args.turns * args.rounds <= args.blocks:
        parser.error(
            "--steps, --blocks and --rounds must be 1 or more, --turns times --rounds more than --blocks"
        )
    if args.turns * args.rounds < 6:
        parser.error("--turns times --rounds must be at least 6: two in each third")
    config = Phi3Config.read(args.onnx)
    args.vocab_size = config.vocab_size
    args.cache_values = 2 * config.layers * config.kv_heads * config.head_size
    args.prepacked = args.no_mmap = False
    return args


def main() -> None:
    args = parse()
    used = cells(args, Path())
    own = next(cell for cell in used if cell.name == AIPC_ONNX)
    used.append(Cell(DECODER, "decoder", own.model, own.python, own.weight_bytes, own.cache))
    results = measure(used, args)
    print(report(results))
    if args.record:
        content = {
            "command": sys.argv,
            "versions": {"aipc": versions(sys.executable, PACKAGES)},
            "llama": llama_description(peer_python("llama", args.envs)) if args.gguf else None,
            "alone": args.alone,
            "weight_bytes": {cell.name: cell.weight_bytes for cell in used},
            "cells": {name: dataclasses.asdict(measured) for name, measured in results.items()},
        }
        write_record(args.record, "turns", content)


if __name__ == "__main__":
    main()
