"""Decode and prefill on a machine that drifts: all loaded at once, and asked in short turns.

    python benchmarks/bench_turns.py --onnx FOLDER --openvino FOLDER --gguf model.gguf --record turns.json

Where other tenants take memory bandwidth for minutes, a process that runs later than another one measures
them. Here all runtimes are loaded side by side, one computes at a time, and each figure is compared with
those of the same turn, seconds away. Memory bandwidth is measured between all of them: a share of the
ceiling is taken from the better of the two measurements around it.

Cells as in bench_decode.py, and what computes for aipc on ONNX Runtime in a process of its own, without
aipc's worker around it.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from aipc.bench.machine import memory_bandwidth
from bench_decode import AIPC_ONNX, ENVIRONMENT, LLAMA, PACKAGES, Cell, cells, llama_description, read_once
from measuring import markdown_table, versions, write_record
from peers import default_envs, peer_python

DECODER = "the same, without a worker"


class Running:
    """A cell's process, loaded and waiting for its turn."""

    def __init__(self, cell: Cell, args: argparse.Namespace) -> None:
        program = Path(__file__).with_name("decode_cell.py")
        command = [str(cell.python), str(program), cell.kind, str(cell.model), "--turns"]
        command += ["--threads", str(args.threads), "--vocab-size", str(args.vocab_size)]
        command += ["--prompt-tokens", str(args.prompt_tokens), "--new-tokens", str(args.new_tokens)]
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

    def ask(self) -> dict[str, Any]:
        """One request, timed over there."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.cell.name} ended with exit status {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def running(used: Sequence[Cell], args: argparse.Namespace) -> Iterator[list[Running]]:
    """All cells, loaded one after the other, and warm."""
    with contextlib.ExitStack() as stack:
        loaded = []
        for cell in used:
            read_once(cell.model)
            loaded.append(Running(cell, args))
            stack.callback(loaded[-1].close)
            loaded[-1].ask()
        yield loaded


@dataclass(frozen=True, slots=True)
class Turn:
    """One request of one cell.

    bandwidth   bytes a second, the better of the measurements before and after it
    """

    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    bandwidth: float


def measure(loaded: Sequence[Running], turns: int) -> dict[str, list[Turn]]:
    """Each turn asks every cell once; who begins changes from turn to turn."""
    results: dict[str, list[Turn]] = {one.cell.name: [] for one in loaded}
    before = memory_bandwidth()
    for number in range(turns):
        first = number % len(loaded)
        for one in (*loaded[first:], *loaded[:first]):
            answer = one.ask()
            after = memory_bandwidth()
            prefill = answer["prompt_tokens"] / answer["ttft_s"]
            decode = 1 / statistics.median(answer["steps_s"])
            results[one.cell.name].append(Turn(prefill, decode, max(before, after)))
            before = after
        print(f"turn {number + 1} of {turns}", file=sys.stderr)
    return results


def report(used: Sequence[Cell], results: dict[str, list[Turn]]) -> str:
    """Medians, with the quartiles of each ratio, as a Markdown table."""
    yardstick = results.get(LLAMA) or results[used[0].name]
    rows = []
    for cell in used:
        turns = results[cell.name]
        pairs = list(zip(turns, yardstick, strict=True))
        rows.append(
            (
                cell.name,
                f"{statistics.median(turn.prefill_tokens_per_s for turn in turns):.1f}",
                quartiles([own.prefill_tokens_per_s / other.prefill_tokens_per_s for own, other in pairs]),
                f"{statistics.median(turn.decode_tokens_per_s for turn in turns):.1f}",
                quartiles([own.decode_tokens_per_s / other.decode_tokens_per_s for own, other in pairs]),
                quartiles([turn.decode_tokens_per_s * cell.weight_bytes / turn.bandwidth for turn in turns]),
            )
        )
    of = f"of {LLAMA if LLAMA in results else used[0].name}"
    return markdown_table(("", "prefill t/s", of, "decode t/s", of, "of ceiling"), rows)


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
    parser.add_argument("--new-tokens", type=int, default=17)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--envs", type=Path, default=default_envs(), help="folder of the peers' environments")
    parser.add_argument("--record", type=Path, help="write everything measured as JSON")
    args = parser.parse_args()
    if args.new_tokens < 2 or args.turns < 2:
        parser.error("--new-tokens and --turns must be at least 2")
    args.vocab_size = json.loads((args.onnx / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    args.prepacked = args.no_mmap = False
    return args


def main() -> None:
    args = parse()
    used = cells(args, Path())
    own = next(cell for cell in used if cell.name == AIPC_ONNX)
    used.append(Cell(DECODER, "decoder", own.model, own.python, own.weight_bytes, own.cache))
    with running(used, args) as loaded:
        results = measure(loaded, args.turns)
    print(report(used, results))
    if args.record:
        content = {
            "command": sys.argv,
            "versions": {"aipc": versions(sys.executable, PACKAGES)},
            "llama": llama_description(peer_python("llama", args.envs)) if args.gguf else None,
            "weight_bytes": {cell.name: cell.weight_bytes for cell in used},
            "turns": {name: [dataclasses.asdict(turn) for turn in turns] for name, turns in results.items()},
        }
        write_record(args.record, "turns", content)


if __name__ == "__main__":
    main()
