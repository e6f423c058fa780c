"""Compiles checkpoints of real shapes for NPUs with Intel's compiler, and writes the rows of a table.

    python benchmarks/make_checkpoint.py /tmp/phi3
    python benchmarks/bench_npu_compile.py /tmp/phi3 [--platform 4000]...

Each checkpoint is converted to int4 in groups of 128 and channel-wise, and tools/npu_check compiles both.
Phi-3-mini takes some ten minutes and 5 GB of memory, Phi-4 hours; the compiler uses one core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aipc

TOOL = Path(__file__).parents[1] / "tools" / "npu_check"
# Phi-4 took an hour at two thirds of a core.
_LIMIT_S = 4 * 3600
GROUPS = {"int4, groups of 128": 128, "int4, channel-wise": -1}


def main() -> None:
    """Print a Markdown row for every checkpoint, recipe and platform."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("checkpoints", metavar="CHECKPOINT", type=Path, nargs="+")
    parser.add_argument("--platform", action="append", help="default: 4000; repeatable")
    args = parser.parse_args()
    print("| model | weights | NPU | result | time | memory | blob | of weights |\n" + "| --- " * 8 + "|")
    for checkpoint in args.checkpoints:
        for weights, group_size in GROUPS.items():
            with tempfile.TemporaryDirectory(prefix=".npu-", dir=checkpoint.parent) as scratch:
                folder = aipc.convert(checkpoint, Path(scratch) / checkpoint.name, group_size=group_size)
                size = (folder / "openvino_model.bin").stat().st_size
                for verdict in _verdicts(folder, args.platform or ["4000"]):
                    print(_row(verdict, weights, size), flush=True)


def _verdicts(folder: Path, platforms: list[str]) -> Iterator[dict[str, Any]]:
    words = [word for platform in platforms for word in ("--platform", platform)]
    done = subprocess.run(
        [sys.executable, TOOL, "--json", folder, "--limit", str(_LIMIT_S), *words],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode > 1:
        sys.exit(done.returncode)
    yield from map(json.loads, done.stdout.splitlines())


def _row(verdict: dict[str, Any], weights: str, nbytes: int) -> str:
    cells = [verdict["folder"], weights, verdict["platform"], verdict["state"]]
    if verdict["state"] == "compiled":
        cells += [
            f"{verdict['compile_s']:.0f} s",
            f"{verdict['peak_bytes'] / 1e9:.1f} GB",
            f"{verdict['blob_bytes'] / 1e9:.2f} GB",
            f"{nbytes / 1e9:.2f} GB",
        ]
    else:
        cells += [verdict["words"]]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
