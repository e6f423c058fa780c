"""Where a step's time goes on ONNX Runtime, by how many rows it computes at once.

    python benchmarks/bench_kernels.py ONNX_FOLDER --record kernels.json

Each row is a sequence that holds --held tokens and is given one more, as the server's streams are; the last
line gives one row --prompt tokens. The runtime's own profile says which operators take how long. What a row
adds to the matrix products, once their weights are in the cache, bounds what several clients can have. How
fast the products read their weights stands beside what a plain read gets of memory at that time.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from aipc.bench.machine import memory_bandwidth
from aipc.runtimes import onnxruntime_graph
from aipc.runtimes.onnxruntime_decoder import Decoder
from bench_decode import onnx_matrix_bytes
from measuring import markdown_table, versions, write_record

_MATRICES, _ATTENTION = "MatMulNBits", "GroupQueryAttention"
_WARM_UP = 2
# The runtime names a profile by the second: those of two parts that load together would be one file.
onnxruntime_graph.MOST_PARTS = 1


def measured(folder: Path, rows: int, new: int, held: int, steps: int) -> dict[str, Any]:
    """Steps of so many rows, and milliseconds of each operator in a step."""
    with tempfile.TemporaryDirectory() as scratch:
        prefix = str(Path(scratch) / "profile")
        decoder = Decoder(folder, {"enable_profiling": True, "profile_file_prefix": prefix}, None)
        decoder.cache.resize(rows, held + new, [])
        before = memory_bandwidth()
        times_ms = [_step_ms(decoder, rows, new, held) for _ in range(_WARM_UP + steps)]
        bandwidth = max(before, memory_bandwidth())
        # The runtime writes its profile when the sessions go.
        del decoder
        gc.collect()
        (profile,) = Path(scratch).glob("profile*.json")
        operators = _operators_ms(json.loads(profile.read_text(encoding="utf-8")), steps)
    return {
        "rows": rows,
        "new_tokens": new,
        "steps_ms": times_ms[_WARM_UP:],
        "operators_ms": dict(operators),
        "weight_bytes": onnx_matrix_bytes(folder / "model.onnx"),
        "bandwidth": bandwidth,
    }


def _step_ms(decoder: Decoder, rows: int, new: int, held: int) -> float:
    ids = np.random.default_rng(rows).integers(3, decoder.vocab_size - 100, (rows, new))
    start = time.perf_counter()
    decoder.step(0, ids, np.full(rows, held), np.zeros(rows, bool))
    return 1000 * (time.perf_counter() - start)


def _operators_ms(events: Sequence[dict[str, Any]], steps: int) -> Counter[str]:
    """Mean of each operator in the last steps of one session's profile."""
    first_us = sorted(event["ts"] for event in events if event["name"] == "model_run")[-steps]
    found: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time") and event["ts"] >= first_us:
            found[event["args"]["op_name"]] += event["dur"] / 1000 / steps
    return found


def report(cells: Sequence[dict[str, Any]]) -> str:
    """Milliseconds of a step and of a token in it, and what they read of memory, as Markdown."""
    lines = []
    for cell in cells:
        tokens = cell["rows"] * cell["new_tokens"]
        step, operators = statistics.median(cell["steps_ms"]), cell["operators_ms"]
        matrices, attention = operators.get(_MATRICES, 0.0), operators.get(_ATTENTION, 0.0)
        rest = sum(operators.values()) - matrices - attention
        values = [step, matrices, attention, rest, step / tokens]
        # Bytes in a millisecond are a millionth of GB in a second.
        values += [cell["weight_bytes"] / matrices / 1e6, cell["bandwidth"] / 1e9]
        lines.append((cell["rows"], cell["new_tokens"], *(f"{value:.1f}" for value in values)))
    header = (
        "rows",
        "tokens each",
        "step ms",
        "matrix products",
        "attention",
        "other operators",
        "ms a token",
        "weights GB/s",
        "plain read GB/s",
    )
    return markdown_table(header, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Where a step's time goes, by its rows.")
    parser.add_argument("folder", type=Path, help="an ONNX folder that aipc converted")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--held", type=int, default=128, help="tokens that each row holds")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of the prompt in the last line")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--record", type=Path, help="write everything measured as JSON")
    args = parser.parse_args()
    shapes = [(rows, 1, args.held) for rows in args.rows] + [(1, args.prompt, 0)]
    cells = [measured(args.folder, *shape, args.steps) for shape in shapes]
    print(report(cells))
    if args.record:
        content = {
            "command": sys.argv,
            "versions": {"aipc": versions(sys.executable, ("aipc", "numpy", "onnxruntime"))},
            "cells": cells,
        }
        write_record(args.record, "kernels", content)


if __name__ == "__main__":
    main()
