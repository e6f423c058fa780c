"""Where the time of `--quant-method gptq` goes: the matrices of a decoder layer, as wide as a real model's.

    python benchmarks/bench_gptq.py [--config phi-3-mini] [--tokens 2752] [--group-size 128] [--repeats 1]

Random weights, and random inputs that are correlated as those of a layer are. For each matrix: the factor of
its inputs' Gram matrix, then the rest (reading, scales, rounding with feedback, storing, and what the layer
computes with the result), each with its floating-point operations per second beside those of one large
product of matrices, which is as fast as it could be. Attention, norms and the head are not in it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aipc.conversion.checkpoint import Checkpoint
from aipc.conversion.gptq import CalibratedWeights, feedback_of
from aipc.conversion.recipe import make_recipe
from aipc.phi3 import Phi3Config, Role, WeightSpec
from make_checkpoint import CONFIGS, WEIGHT_STD
from measuring import markdown_table, versions, write_record

_PRODUCT = 3072


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one matrix: seconds, and floating-point operations, of its factor and of the rest."""

    factor_s: float
    rest_s: float
    factor_operations: float
    rest_operations: float


class RandomCheckpoint(Checkpoint):
    """Weights made as they are read."""

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """See `Checkpoint.read`: of the only tensor."""
        assert rows is not None
        columns = self.tensors[name].shape[1]
        random = np.random.Generator(np.random.SFC64(rows.start))
        weight = random.standard_normal((rows.stop - rows.start, columns), np.float32)
        weight *= np.float32(WEIGHT_STD)
        return weight


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", choices=list(CONFIGS), default="phi-3-mini")
    parser.add_argument("--tokens", type=int, default=2752, help="of the text (default: as the shipped one)")
    parser.add_argument("--group-size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--record", type=Path, help="write everything measured as JSON")
    args = parser.parse_args()
    config = Phi3Config.parse(CONFIGS[args.config])
    specs = [spec for spec in config.weights() if spec.layer == 0 and spec.role is not Role.NORM]
    ceiling = product_speed()
    costs = {
        spec.role.value: [measure(config, spec, args.tokens, args.group_size) for _ in range(args.repeats)]
        for spec in specs
    }
    print(report(config, costs, ceiling))
    if args.record:
        used = versions(sys.executable, ["aipc", "numpy"])
        record: dict[str, Any] = {"arguments": sys.argv[1:], "versions": used, "product_speed": ceiling}
        record["costs"] = {role: [vars_of(cost) for cost in found] for role, found in costs.items()}
        write_record(args.record, "gptq", record)


def product_speed() -> float:
    """Floating-point operations a second in the product of two large matrices, the best of three."""
    random = np.random.default_rng(0)
    left, right = random.standard_normal((2, _PRODUCT, _PRODUCT), np.float32)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return 2 * _PRODUCT**3 / min(times)


def inputs(tokens: int, columns: int) -> np.ndarray:
    """Correlated, and with columns of very different sizes."""
    random = np.random.default_rng(1)
    directions = random.standard_normal((256, columns), np.float32)
    x = random.standard_normal((tokens, 256), np.float32) @ directions / np.float32(16)
    x += random.standard_normal(x.shape, np.float32)
    x *= np.exp(random.standard_normal(columns, np.float32) / 2)
    return x


def measure(config: Phi3Config, spec: WeightSpec, tokens: int, group_size: int) -> Cost:
    """Quantise one matrix as a conversion does."""
    rows, columns = spec.shape
    x = inputs(tokens, columns)
    recipe = make_recipe(config, group_size=group_size, quant_method="gptq")
    info: Any = type("Shape", (), {"shape": spec.shape})
    weights = CalibratedWeights(
        RandomCheckpoint(Path(), {spec.name: info}), config, recipe, lambda *_: None, lambda *_: None
    )
    start = time.perf_counter()
    feedback_of(x)
    factor_s = time.perf_counter() - start
    start = time.perf_counter()
    weights.product(spec.name, x)
    whole_s = time.perf_counter() - start
    return Cost(
        factor_s,
        whole_s - factor_s,
        tokens * columns**2 + columns**3 / 3,
        rows * columns**2 + 2 * tokens * rows * columns,
    )


def vars_of(cost: Cost) -> dict[str, float]:
    """For the record."""
    return {name: getattr(cost, name) for name in Cost.__slots__}


def report(config: Phi3Config, costs: dict[str, list[Cost]], ceiling: float) -> str:
    """A row for each matrix, and what the layers of the model would take."""
    rows = []
    total_s = least_s = 0.0
    for role, found in costs.items():
        factor_s = statistics.median(cost.factor_s for cost in found)
        rest_s = statistics.median(cost.rest_s for cost in found)
        operations = found[0].factor_operations + found[0].rest_operations
        total_s += factor_s + rest_s
        least_s += operations / ceiling
        rows.append(
            (
                role,
                f"{factor_s:.2f}",
                f"{found[0].factor_operations / factor_s / 1e9:.0f}",
                f"{rest_s:.2f}",
                f"{found[0].rest_operations / rest_s / 1e9:.0f}",
                f"{operations / ceiling / (factor_s + rest_s):.2f}",
            )
        )
    header = ("", "factor s", "GFLOP/s", "rest s", "GFLOP/s", "of the ceiling")
    return (
        f"{markdown_table(header, rows)}\n\n"
        f"One layer {total_s:.1f} s, {config.layers} layers {config.layers * total_s / 60:.1f} minutes; "
        f"at the ceiling of {ceiling / 1e9:.0f} GFLOP/s {config.layers * least_s / 60:.1f} minutes."
    )


if __name__ == "__main__":
    main()
