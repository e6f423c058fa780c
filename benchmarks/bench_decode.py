"""Decode, prefill, load and memory on the CPU: aipc on both runtimes, onnxruntime-genai and llama.cpp.

    python benchmarks/make_gguf.py CHECKPOINT model.gguf
    python benchmarks/bench_decode.py --onnx FOLDER --openvino FOLDER --gguf model.gguf --record decode.json

All made from one checkpoint: the folders by `aipc convert`, the GGUF file by make_gguf.py. Each cell
is a process of its own in each round, turn by turn, watched from outside. All files are read once
before the first, so that they lie in the page cache for all.

- Prompts are token ids, exactly as long as asked, and a new one for each request.
- The first token ends the prefill; every later one is a decode step. Decode is the median step.
- Start to first token is from the start of the process, imports and load included.
- The ceiling is memory bandwidth, measured in the same run, over the bytes of weights that a token
  reads. The KV cache's bytes are not in it, so the true ceiling is a little lower.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from aipc.bench.machine import memory_bandwidth
from bench_runtime import Rates
from measuring import AIPC, folder_bytes, markdown_table, median_and_spread, versions, watch, write_record
from peers import REQUIREMENTS, default_envs, peer_python

AIPC_ONNX, AIPC_OPENVINO, GENAI = "aipc, ONNX Runtime", "aipc, OpenVINO", "onnxruntime-genai"
PREPACKED = "aipc, ONNX Runtime, prepacked"
LLAMA, LLAMA_NO_MMAP = "llama.cpp Q4_0", "llama.cpp Q4_0, without mmap"
PACKAGES = ("aipc", "numpy", "onnxruntime", "onnxruntime-genai", "openvino", "openvino-genai")
# Both cores of a small machine compute: more samples would take a share of what is measured.
_SAMPLE_EVERY_S = 0.2
# Nothing here needs a hub, and a runtime's telemetry must not take a part of a core.
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "ORT_DISABLE_TELEMETRY": "1"}
_READ_BYTES = 16 * 2**20
_MATRIX_OPERATORS = ("MatMulNBits", "MatMul", "Gemm")


@dataclass(frozen=True, slots=True)
class Cell:
    """A way to run a model.

    kind           what decode_cell.py calls it
    python         of the environment that has the runtime
    weight_bytes   that a token reads
    cache          aipc's own, which holds the prepacked weights of that cell and of no other
    """

    name: str
    kind: str
    model: Path
    python: str | Path
    weight_bytes: int
    cache: Path


def cells(args: argparse.Namespace, scratch: Path) -> list[Cell]:
    """The cells whose model was given; `scratch` is for what aipc keeps."""
    none = scratch / "empty"
    found = []
    if args.onnx:
        needed = onnx_matrix_bytes(args.onnx / "model.onnx")
        found.append(Cell(AIPC_ONNX, "onnxruntime", args.onnx, sys.executable, needed, none))
        found.append(Cell(GENAI, "genai", args.onnx, sys.executable, needed, none))
        if args.prepacked:
            cache = scratch / "prepacked"
            prepare(args.onnx, cache)
            found.append(Cell(PREPACKED, "onnxruntime", args.onnx, sys.executable, needed, cache))
    if args.openvino:
        size = (args.openvino / "openvino_model.bin").stat().st_size
        found.append(Cell(AIPC_OPENVINO, "openvino", args.openvino, sys.executable, size, none))
    if args.gguf:
        python, size = peer_python("llama", args.envs), args.gguf.stat().st_size
        found.append(Cell(LLAMA, "llama", args.gguf, python, size, none))
        if args.no_mmap:
            found.append(Cell(LLAMA_NO_MMAP, "llama-no-mmap", args.gguf, python, size, none))
    return found


def prepare(folder: Path, cache: Path) -> None:
    """Have aipc pack the weights for this processor, and read the copy once."""
    environment = {**os.environ, **ENVIRONMENT, "AIPC_CACHE_DIR": str(cache)}
    started = time.perf_counter()
    subprocess.run([*AIPC, "models", "prepare", str(folder)], check=True, env=environment)
    size = folder_bytes(cache)
    print(f"prepacked: {size / 1e9:.1f} GB in {time.perf_counter() - started:.1f} s", file=sys.stderr)
    read_once(cache)


def onnx_matrix_bytes(model: Path) -> int:
    """Bytes that the matrix products read of their weights, so without the embedding and the RoPE tables.

    Beside each scale of quantised weights ONNX Runtime's kernel for x64 keeps a sum, float32 as the scale is
    (PackedQuantBDataStruct in its qnbitgemm.h).
    """
    import onnx
    from onnx.external_data_helper import ExternalDataInfo

    graph = onnx.load(model, load_external_data=False).graph
    nodes = [node for node in graph.node if node.op_type in _MATRIX_OPERATORS]
    read = {name for node in nodes for name in node.input}
    read_twice = {node.input[2] for node in nodes if node.op_type == "MatMulNBits"}
    return sum(
        (ExternalDataInfo(tensor).length if tensor.external_data else len(tensor.raw_data))
        * (1 + (tensor.name in read_twice))
        for tensor in graph.initializer
        if tensor.name in read
    )


def read_once(model: Path) -> None:
    """Put a model's files into the page cache."""
    for path in (model,) if model.is_file() else model.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.read(_READ_BYTES):
                    pass


def measure(
    used: Sequence[Cell], args: argparse.Namespace
) -> tuple[dict[str, list[dict[str, Any]]], list[float]]:
    """All rounds of all cells; who begins changes from round to round.

    returns   the rounds of each cell, and the memory bandwidth before each round and at the end
    """
    for cell in used:
        read_once(cell.model)
    results: dict[str, list[dict[str, Any]]] = {cell.name: [] for cell in used}
    bandwidths = []
    for number in range(args.rounds):
        bandwidths.append(memory_bandwidth())
        turn = number % len(used)
        for cell in (*used[turn:], *used[:turn]):
            results[cell.name].append(run_apart(cell, args))
            print(f"round {number + 1}: {cell.name}", file=sys.stderr)
    return results, [*bandwidths, memory_bandwidth()]


def run_apart(cell: Cell, args: argparse.Namespace) -> dict[str, Any]:
    """One cell in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        program = Path(__file__).with_name("decode_cell.py")
        command = [str(cell.python), str(program), cell.kind, str(cell.model), "--answer", str(answer)]
        command += ["--threads", str(args.threads), "--vocab-size", str(args.vocab_size)]
        command += ["--prompt-tokens", str(args.prompt_tokens), "--new-tokens", str(args.new_tokens)]
        command += ["--repeats", str(args.repeats), "--started", repr(time.perf_counter())]
        environment = ENVIRONMENT | {"AIPC_CACHE_DIR": str(cell.cache)}
        watched = watch(command, Path(scratch) / "log", environment, _SAMPLE_EVERY_S)
        return json.loads(answer.read_text(encoding="utf-8")) | {"watched": dataclasses.asdict(watched)}


@dataclass(frozen=True, slots=True)
class Summary:
    """Of one cell over all rounds, each value one request's or one process's."""

    load_s: list[float]
    start_to_first_token_s: list[float]
    prefill_tokens_per_s: list[float]
    decode_tokens_per_s: list[float]
    peak_bytes: list[float]
    ceiling_tokens_per_s: float
    stopped_early: int

    @classmethod
    def of(
        cls, cell: Cell, rounds: Sequence[dict[str, Any]], prompt_tokens: int, bandwidth: float
    ) -> Summary:
        rates = Rates.of(rounds, prompt_tokens)
        firsts = [one["start_to_first_token_s"] for one in rounds]
        return cls(
            [one["load_s"] for one in rounds],
            [first for first in firsts if first is not None],
            rates.prefill_tokens_per_s,
            rates.decode_tokens_per_s,
            [one["watched"]["peak_tree_bytes"] for one in rounds],
            bandwidth / cell.weight_bytes,
            rates.stopped_early,
        )

    def row(self) -> tuple[object, ...]:
        """For the table, medians with the values they lie between."""
        share = [rate / self.ceiling_tokens_per_s for rate in self.decode_tokens_per_s]
        return (
            median_and_spread(self.load_s, 1),
            median_and_spread(self.start_to_first_token_s, 1),
            median_and_spread(self.prefill_tokens_per_s, 1),
            median_and_spread(self.decode_tokens_per_s, 1),
            median_and_spread(share, 2),
            median_and_spread([size / 1e9 for size in self.peak_bytes], 2),
            self.stopped_early,
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """A figure that aipc is to reach: a share of the ceiling or of a peer's figure."""

    name: str
    at_least: bool
    limit: float
    of: Callable[[dict[str, Summary]], float | None]

    def row(self, summaries: dict[str, Summary]) -> tuple[object, ...]:
        """For the table; a dash where there was nothing to compare with."""
        limit = f"{'≥' if self.at_least else '≤'} {self.limit}"
        value = self.of(summaries)
        if value is None:
            return self.name, limit, "–", "–"
        met = value >= self.limit if self.at_least else value <= self.limit
        return self.name, limit, f"{value:.3f}", "yes" if met else "no"


def ratio(field: str, peer: str, own_name: str = AIPC_ONNX) -> Callable[[dict[str, Summary]], float | None]:
    """The median of a field for aipc on ONNX Runtime, or another of its cells, over a peer's."""

    def of(summaries: dict[str, Summary]) -> float | None:
        values = [getattr(summaries[name], field) for name in (own_name, peer) if name in summaries]
        if len(values) < 2 or not all(values):
            return None
        own, other = (statistics.median(value) for value in values)
        return own / other

    return of


def ceiling_share(summaries: dict[str, Summary]) -> float | None:
    """Of the ceiling that memory bandwidth sets, how much aipc on ONNX Runtime reaches."""
    own = summaries.get(AIPC_ONNX)
    if own is None or not own.decode_tokens_per_s:
        return None
    return statistics.median(own.decode_tokens_per_s) / own.ceiling_tokens_per_s


ASKED = (
    Asked("decode, of llama.cpp's", True, 1.25, ratio("decode_tokens_per_s", LLAMA)),
    Asked("decode, of the ceiling", True, 0.8, ceiling_share),
    Asked("prefill, of llama.cpp's", True, 1.2, ratio("prefill_tokens_per_s", LLAMA)),
    Asked("peak memory, of llama.cpp's", False, 0.6, ratio("peak_bytes", LLAMA)),
    Asked("start to first token, of llama.cpp's", False, 1.2, ratio("start_to_first_token_s", LLAMA)),
    Asked(
        "start to first token, prepacked, of llama.cpp's",
        False,
        0.9,
        ratio("start_to_first_token_s", LLAMA, PREPACKED),
    ),
    Asked("decode, of in-process onnxruntime-genai's", True, 0.99, ratio("decode_tokens_per_s", GENAI)),
)


def report(summaries: dict[str, Summary], bandwidth: float) -> str:
    """What was measured, and how it stands to what was asked, as Markdown tables."""
    header = ("", "load s", "start to first token s", "prefill t/s", "decode t/s", "of ceiling", "peak GB")
    measured = [(name, *summary.row()) for name, summary in summaries.items()]
    ceilings = ", ".join(f"{name} {own.ceiling_tokens_per_s:.1f}" for name, own in summaries.items())
    return "\n\n".join(
        (
            markdown_table((*header, "stopped early"), measured),
            f"Ceilings, tokens/s at {bandwidth / 1e9:.1f} GB/s: {ceilings}",
            markdown_table(
                (AIPC_ONNX, "asked", "measured", "met"), [asked.row(summaries) for asked in ASKED]
            ),
        )
    )


def llama_description(python: Path) -> dict[str, str | None]:
    """Versions of llama.cpp's environment, and the instructions that it was compiled for."""
    names = [requirement.partition("=")[0] for requirement in REQUIREMENTS["llama"]]
    script = "import llama_cpp; print(llama_cpp.llama_print_system_info().decode())"
    answer = subprocess.run([python, "-c", script], check=True, capture_output=True, text=True)
    return versions(python, names) | {"system_info": answer.stdout.strip()}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure aipc on the CPU beside its peers.")
    parser.add_argument("--onnx", type=Path, help="an ONNX folder that aipc converted")
    parser.add_argument("--openvino", type=Path, help="an OpenVINO folder that aipc converted")
    parser.add_argument("--gguf", type=Path, help="what make_gguf.py wrote")
    parser.add_argument("--prepacked", action="store_true", help="aipc on ONNX Runtime once more, prepacked")
    parser.add_argument("--scratch", type=Path, help="where prepacked weights go for the time being")
    parser.add_argument("--no-mmap", action="store_true", help="llama.cpp once more, without mmap")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2, help="requests in each process, after a first one")
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes of each cell")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False) or 1)
    parser.add_argument("--envs", type=Path, default=default_envs(), help="folder of the peers' environments")
    parser.add_argument("--record", type=Path, help="write everything measured as JSON")
    args = parser.parse_args()
    if args.new_tokens < 2:
        parser.error("--new-tokens must be at least 2: the first token is no decode step")
    folder = args.onnx or args.openvino
    if not folder:
        parser.error("--onnx or --openvino is needed: whom else should the peers be compared with?")
    args.vocab_size = json.loads((folder / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    return args


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory(dir=args.scratch) as scratch:
        used = cells(args, Path(scratch))
        results, bandwidths = measure(used, args)
    # What slows a measurement down is always something else, so the best of them is the machine's.
    bandwidth = max(bandwidths)
    summaries = {
        cell.name: Summary.of(cell, results[cell.name], args.prompt_tokens, bandwidth) for cell in used
    }
    print(report(summaries, bandwidth))
    if args.record:
        options = ("prompt_tokens", "new_tokens", "repeats", "rounds", "threads")
        content = {
            "command": sys.argv,
            "options": {name: getattr(args, name) for name in options},
            "versions": {"aipc": versions(sys.executable, PACKAGES)},
            "llama": llama_description(peer_python("llama", args.envs)) if args.gguf else None,
            "bandwidths_bytes_per_s": bandwidths,
            "weight_bytes": {cell.name: cell.weight_bytes for cell in used},
            "asked": {asked.name: asked.of(summaries) for asked in ASKED},
            "cells": results,
        }
        write_record(args.record, "decode", content)


if __name__ == "__main__":
    main()
