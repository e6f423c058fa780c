"""ONNX Runtime's matrix product with int4 weights alone: one row, from the cache and from memory, and many.

    python benchmarks/bench_matrix.py [--inputs 3072] [--outputs 9216] [--record matrix.json]

What it reads in a second from the cache is what its arithmetic allows; from memory, beside what a plain read
gets at that time, how well the two overlap. Bytes are those that the kernel for x64 reads: the codes, and for
each group a scale and a sum, 4 bytes each. The times are of as many weights as 10**9: what a group's size
is worth to a step that reads them once, and to each token of a prompt.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx

from aipc.bench.machine import memory_bandwidth
from aipc.runtimes.cores import physical_cores
from measuring import markdown_table, versions, write_record

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import onnxruntime as ort

# The accuracy level's arithmetic: 4 is int8, 1 float32.
_INT8, _FLOAT32 = 4, 1
_CASES = ((_INT8, 128), (_INT8, 32), (_INT8, 256), (_FLOAT32, 128))
_PROMPT_TOKENS = 64
_NAMES = {_INT8: "int8", _FLOAT32: "float32"}

# Of all matrices together: more than the caches of any processor hold.
_MEMORY_BYTES = 2**29


@dataclass(frozen=True, slots=True)
class Measured:
    """One form of the kernel.

    cached      bytes a second of one matrix, again and again
    streamed    of so many matrices that none is in the cache when its turn comes
    bandwidth   of a plain read, the better of before and after
    step_s      of a row and 10**9 weights
    token_s     the same of each row of many
    """

    arithmetic: str
    group: int
    cached: float
    streamed: float
    bandwidth: float
    step_s: float
    token_s: float


def measured(accuracy_level: int, group: int, inputs: int, outputs: int, runs: int) -> Measured:
    """All rates of one form."""
    matrix_bytes = outputs * inputs // 2 + 8 * outputs * (inputs // group)
    count = -(-_MEMORY_BYTES // matrix_bytes)
    # Not kept: the threads of a session wait for work for a while, at the cost of another one's.
    cached_s = median_s(opened(model(accuracy_level, group, inputs, outputs, 1)), 1, inputs, 20 * runs)
    many = opened(model(accuracy_level, group, inputs, outputs, count))
    before = memory_bandwidth()
    streamed_s = median_s(many, 1, inputs, runs)
    bandwidth = max(before, memory_bandwidth())
    token_s = median_s(many, _PROMPT_TOKENS, inputs, max(3, runs // 8)) / _PROMPT_TOKENS
    billions = count * inputs * outputs / 1e9
    return Measured(
        _NAMES[accuracy_level],
        group,
        matrix_bytes / cached_s,
        count * matrix_bytes / streamed_s,
        bandwidth,
        streamed_s / billions,
        token_s / billions,
    )


def opened(graph: bytes) -> ort.InferenceSession:
    """Ready to compute, on all cores."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = physical_cores()
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def median_s(session: ort.InferenceSession, rows: int, inputs: int, runs: int) -> float:
    """Seconds of a run."""
    feed = {"rows": np.ones((rows, inputs), np.float32)}
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def model(accuracy_level: int, group: int, inputs: int, outputs: int, count: int) -> bytes:
    """Rows of numbers times each of `count` matrices of [outputs, inputs]."""
    random, groups = np.random.default_rng(0), inputs // group
    nodes, weights = [], []
    for number in range(count):
        codes = random.integers(0, 256, (outputs, groups, group // 2), dtype=np.uint8)
        scales = np.full(outputs * groups, 1e-3, np.float32)
        names = [f"codes{number}", f"scales{number}"]
        weights += map(onnx.numpy_helper.from_array, (codes, scales), names)
        nodes.append(
            onnx.helper.make_node(
                "MatMulNBits",
                ["rows", *names],
                [f"product{number}"],
                domain="com.microsoft",
                K=inputs,
                N=outputs,
                bits=4,
                block_size=group,
                accuracy_level=accuracy_level,
            )
        )
    value = onnx.helper.make_tensor_value_info
    rows = value("rows", onnx.TensorProto.FLOAT, ["count", inputs])
    products = [value(node.output[0], onnx.TensorProto.FLOAT, ["count", outputs]) for node in nodes]
    graph = onnx.helper.make_graph(nodes, "products", [rows], products, weights)
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    made: bytes = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure ONNX Runtime's int4 matrix product alone.")
    parser.add_argument("--inputs", type=int, default=3072, help="columns of a matrix")
    parser.add_argument("--outputs", type=int, default=9216, help="its rows")
    parser.add_argument("--runs", type=int, default=25)
    parser.add_argument("--record", type=Path, help="write everything measured as JSON")
    args = parser.parse_args()
    if args.inputs < 256 or args.inputs % 256 or min(args.outputs, args.runs) < 1:
        parser.error("--inputs must be a multiple of 256, --outputs and --runs at least 1")
    cells = [measured(*case, args.inputs, args.outputs, args.runs) for case in _CASES]
    lines = []
    for one in cells:
        rates = (f"{rate / 1e9:.0f}" for rate in (one.cached, one.streamed, one.bandwidth))
        times = (f"{1000 * seconds:.1f}" for seconds in (one.step_s, one.token_s))
        lines.append((one.arithmetic, one.group, *rates, *times))
    header = ("arithmetic", "group", "cached GB/s", "from memory GB/s", "plain read GB/s")
    times_header = ("10^9 weights, one row, ms", f"each of {_PROMPT_TOKENS} rows, ms")
    print(markdown_table((*header, *times_header), lines))
    if args.record:
        content = {
            "command": sys.argv,
            "versions": {"aipc": versions(sys.executable, ("aipc", "numpy", "onnx", "onnxruntime"))},
            "cells": [asdict(one) for one in cells],
        }
        write_record(args.record, "matrix", content)


if __name__ == "__main__":
    main()
