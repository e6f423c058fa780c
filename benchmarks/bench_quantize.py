"""Times the quantiser on row blocks as a conversion has them, beside NNCF where it is installed.

    python benchmarks/bench_quantize.py [--rows 340] [--columns 3072] [--repeats 15] [--no-nncf]

prints ns a weight, the median over the repeats: wall time on one thread and on two, CPU time (which
a busy machine blurs less), and the wall time of NNCF's compress_weights with its own threads. For the
search of better scales also what it gains: the rms error as a share of that of plain rounding, on
these normally distributed weights.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import platform
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np

from aipc.conversion.convert import QUANTIZERS
from aipc.conversion.quantize import (
    FP16,
    INT8_ASYM,
    INT8_SYM,
    Scheme,
    dequantize,
    pack_nibbles,
    quantize,
    row_errors,
)

SCHEMES = (
    *(Scheme(4, symmetric, size) for symmetric in (True, False) for size in (128, 64, 32, -1)),
    INT8_SYM,
    INT8_ASYM,
    FP16,
)
NNCF_SHAPE = (8192, 3072)


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=340)
    parser.add_argument("--columns", type=int, default=3072)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--no-nncf", action="store_true")
    args = parser.parse_args()
    shape = (args.rows, args.columns)
    nncf = None if args.no_nncf or find_spec("nncf") is None else _nncf_timer()
    weight = np.random.default_rng(0).standard_normal(shape, np.float32) * np.float32(0.02)
    packed = quantize(weight, Scheme(4, True, 128))

    print(f"block {shape} float32, Python {platform.python_version()}, numpy {np.__version__}; ns a weight\n")
    print("| | 1 thread | 2 threads | CPU time | NNCF |\n| --- | --- | --- | --- | --- |")
    for scheme in SCHEMES:
        theirs = "" if nncf is None or scheme is FP16 else f"{nncf(scheme):.2f}"
        _print_row(scheme.name, lambda s=scheme: quantize(weight, s), weight.size, args.repeats, theirs)
    for scheme in SCHEMES:
        if scheme.bits == 4:
            search = partial(QUANTIZERS["mse"], weight, scheme)
            name = f"{scheme.name}, mse, error {_rms_share(weight, scheme):.3f}"
            _print_row(name, search, weight.size, args.repeats)
    for name, work in (
        ("pack_nibbles", lambda: pack_nibbles(packed.codes)),
        ("dequantize int4_sym_g128", lambda: dequantize(packed)),
        ("row_errors int8_asym", lambda: row_errors(weight, INT8_ASYM)),
    ):
        _print_row(name, work, weight.size, args.repeats)


def _print_row(name: str, work: Callable[[], object], weights: int, repeats: int, theirs: str = "") -> None:
    (one, _), (two, cpu) = (_ns_per_weight(work, weights, repeats, threads) for threads in (1, 2))
    print(f"| {name} | {one:.2f} | {two:.2f} | {cpu:.2f} | {theirs} |", flush=True)


def _rms_share(weight: np.ndarray, scheme: Scheme) -> float:
    errors = [
        np.linalg.norm(dequantize(QUANTIZERS[method](weight, scheme)) - weight) for method in ("mse", "rtn")
    ]
    return float(errors[0] / errors[1])


def _ns_per_weight(
    work: Callable[[], object], weights: int, repeats: int, threads: int
) -> tuple[float, float]:
    """Median wall time and CPU time of `work` on each of `threads` threads, over all their weights."""
    calls = 4
    with ThreadPoolExecutor(threads) as pool:

        def run() -> tuple[float, float]:
            wall_s, cpu_s = time.perf_counter(), time.process_time()
            for future in [pool.submit(lambda: [work() for _ in range(calls)]) for _ in range(threads)]:
                future.result()
            return time.perf_counter() - wall_s, time.process_time() - cpu_s

        run()
        runs = [run() for _ in range(repeats)]
    ns = 1e9 / (weights * calls * threads)
    walls_s, cpus_s = zip(*runs, strict=True)
    return statistics.median(walls_s) * ns, statistics.median(cpus_s) * ns


def _nncf_timer() -> Callable[[Scheme], float]:
    """NNCF's ns a weight for a scheme, on one large matrix, without its telemetry and its output."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    import nncf
    import openvino as ov
    from openvino import opset13 as ops

    nncf.set_log_level(logging.ERROR)
    weight = np.random.default_rng(0).standard_normal(NNCF_SHAPE, np.float32) * np.float32(0.02)

    def model() -> Any:
        x = ops.parameter([-1, NNCF_SHAPE[1]], np.float32)
        return ov.Model([ops.matmul(x, ops.constant(weight), False, True)], [x])

    def measure(scheme: Scheme) -> float:
        mode = f"INT{scheme.bits}_{'SYM' if scheme.symmetric else 'ASYM'}"
        options = {"group_size": scheme.group_size, "all_layers": True} if scheme.bits == 4 else {}
        fresh = model()
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            nncf.compress_weights(fresh, mode=getattr(nncf.CompressWeightsMode, mode), **options)
        return (time.perf_counter() - start) / weight.size * 1e9

    measure(INT8_SYM)
    return measure


if __name__ == "__main__":
    main()
