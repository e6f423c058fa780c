"""Several clients at once on the CPU: aipc on both runtimes beside llama.cpp's own batches.

    python benchmarks/bench_clients.py --onnx FOLDER --openvino FOLDER --gguf model.gguf --record clients.json

The folders and the GGUF file are those of bench_decode.py. Each cell is a process of its own in each round,
turn by turn; all files are read once before the first.

- The clients begin one after another, and each asks again as soon as it has its answer: requests come and
  end at different times.
- Tokens/s are all tokens of all clients over the time from the first request to the last token: prefill,
  the beginning with fewer clients and the end with fewer are in it.
- A newcomer's first token is the longest wait for one of all requests.
- llama.cpp is driven by its batch interface: each llama_decode takes the next token of every sequence and
  the prompts of those that have just come.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from bench_decode import read_once
from measuring import markdown_table, median_and_spread, versions, watch, write_record
from peers import default_envs, peer_python

AIPC_ONNX, AIPC_OPENVINO, LLAMA = "aipc, ONNX Runtime", "aipc, OpenVINO", "llama.cpp Q4_0"
_PACKAGES = ("aipc", "numpy", "onnxruntime", "openvino", "openvino-genai")
_ENV = {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A way to run a model; `kind` is what clients_cell.py calls it."""

    name: str
    kind: str
    model: Path
    python: str | Path


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one cell in one round."""

    tokens_per_s: float
    slowest_first_token_s: float
    slowest_step_s: float
    stopped_early: int

    @classmethod
    def of(cls, requests: Sequence[dict[str, Any]]) -> Figures:
        """From what clients_cell.py wrote."""
        arrivals = [request["arrivals_s"] for request in requests]
        waits = [times[0] - request["came_s"] for request, times in zip(requests, arrivals, strict=True)]
        steps = [later - now for times in arrivals for now, later in itertools.pairwise(times)]
        return cls(
            sum(map(len, arrivals)) / max(times[-1] for times in arrivals),
            max(waits),
            max(steps),
            sum(len(request["arrivals_s"]) < request["new_tokens"] for request in requests),
        )


def cells(args: argparse.Namespace) -> list[Cell]:
    """The cells whose model was given."""
    found = []
    if args.onnx:
        found.append(Cell(AIPC_ONNX, "onnxruntime", args.onnx, sys.executable))
    if args.openvino:
        found.append(Cell(AIPC_OPENVINO, "openvino", args.openvino, sys.executable))
    if args.gguf:
        found.append(Cell(LLAMA, "llama", args.gguf, peer_python("llama", args.envs)))
    return found


def run_apart(cell: Cell, clients: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One cell in a process of its own: its requests."""
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        program = Path(__file__).with_name("clients_cell.py")
        command = [str(cell.python), str(program), cell.kind, str(cell.model), "--answer", str(answer)]
        for name in ("requests", "apart_s", "prompt_tokens", "new_tokens", "vocab_size", "threads"):
            command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
        watch([*command, "--clients", str(clients)], Path(scratch) / "log", _ENV, 0.5)
        content: list[dict[str, Any]] = json.loads(answer.read_text(encoding="utf-8"))
        return content


def report(results: dict[str, dict[int, list[Figures]]]) -> str:
    """Tokens/s and waits by the number of clients, and how they stand to what was asked, as Markdown."""
    rows = [
        (
            name,
            clients,
            median_and_spread([one.tokens_per_s for one in rounds], 1),
            median_and_spread([one.slowest_first_token_s for one in rounds], 2),
            median_and_spread([one.slowest_step_s for one in rounds], 2),
            sum(one.stopped_early for one in rounds),
        )
        for name, by_clients in results.items()
        for clients, rounds in by_clients.items()
    ]
    header = ("", "clients", "tokens/s", "slowest first token s", "slowest step s", "stopped early")
    return (
        markdown_table(header, rows) + "\n\n" + markdown_table(("aipc", "asked", "measured"), asked(results))
    )


def asked(results: dict[str, dict[int, list[Figures]]]) -> list[tuple[str, str, str]]:
    """The ratios that matter; the better of the two runtimes is what aipc has to offer."""
    rate = {
        (name, clients): statistics.median(one.tokens_per_s for one in rounds)
        for name, by_clients in results.items()
        for clients, rounds in by_clients.items()
    }
    counts = sorted({clients for _, clients in rate})
    rows = []
    for name in (AIPC_ONNX, AIPC_OPENVINO):
        if (name, 1) in rate and (name, 8) in rate:
            rows.append((f"{name}: 8 clients, of one", "≥ 2.2", f"{rate[name, 8] / rate[name, 1]:.2f}"))
    for clients in counts:
        own = max(rate[name, clients] for name in (AIPC_ONNX, AIPC_OPENVINO) if (name, clients) in rate)
        if (LLAMA, clients) in rate:
            limit = "≥ 2" if clients == 8 else "> 1"
            rows.append((f"{clients} clients, of llama.cpp's", limit, f"{own / rate[LLAMA, clients]:.2f}"))
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure aipc with several clients beside llama.cpp.")
    parser.add_argument("--onnx", type=Path, help="an ONNX folder that aipc converted")
    parser.add_argument("--openvino", type=Path, help="an OpenVINO folder that aipc converted")
    parser.add_argument("--gguf", type=Path, help="what make_gguf.py wrote")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--requests", type=int, default=2, help="of each client, one after another")
    parser.add_argument("--apart-s", type=float, default=0.5, help="between the clients' beginnings")
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--envs", type=Path, default=default_envs(), help="folder of the peers' environments")
    parser.add_argument("--record", type=Path, help="write everything measured as JSON")
    args = parser.parse_args()
    folder = args.onnx or args.openvino
    if not folder:
        parser.error("--onnx or --openvino is needed")
    args.vocab_size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    return args


def main() -> None:
    args = parse()
    used = cells(args)
    for cell in used:
        read_once(cell.model)
    raw: list[dict[str, Any]] = []
    results: dict[str, dict[int, list[Figures]]] = {cell.name: {} for cell in used}
    for number, clients, cell in itertools.product(range(args.rounds), args.clients, used):
        requests = run_apart(cell, clients, args)
        raw.append({"round": number, "cell": cell.name, "clients": clients, "requests": requests})
        figures = Figures.of(requests)
        results[cell.name].setdefault(clients, []).append(figures)
        print(
            f"round {number + 1}, {clients} clients: {cell.name}, {figures.tokens_per_s:.1f} tokens/s",
            file=sys.stderr,
        )
    print(report(results))
    if args.record:
        content = {
            "command": sys.argv,
            "versions": {"aipc": versions(sys.executable, _PACKAGES)},
            "cells": raw,
        }
        write_record(args.record, "clients", content)


if __name__ == "__main__":
    main()
