"""Converts one checkpoint to int4 with aipc and with optimum-cli, turn by turn, side by side.

    python benchmarks/make_checkpoint.py CHECKPOINT
    python benchmarks/bench_convert.py CHECKPOINT SCRATCH --rounds 3 --record convert.json

Each conversion is a fresh process, watched from outside: wall time, and memory of all its
processes, sampled every 50 ms. Before each, the checkpoint is put out of the page cache. The floor
is a plain copy: all of the checkpoint read, as much written as aipc writes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import (
    AIPC,
    folder_bytes,
    forget_cached,
    markdown_table,
    spread,
    versions,
    watch,
    write_record,
)
from peers import REQUIREMENTS, default_envs, peer_command, peer_python

SCHEME = ("--weight-format", "int4", "--group-size", "128", "--ratio", "1.0", "--sym")
# What the two tools are asked; {checkpoint} and {out} are filled in.
ARGUMENTS = {
    "aipc": ("convert", "{checkpoint}", *SCHEME, "{out}"),
    "optimum-cli": (
        *("export", "openvino", "--model", "{checkpoint}", "--task", "text-generation-with-past"),
        *(*SCHEME, "{out}"),
    ),
}
# Neither tool needs the network for a local folder; so neither shall wait for it.
_ENV = {"HF_HUB_OFFLINE": "1"}
_AIPC_PACKAGES = ("aipc", "numpy", "openvino", "openvino-tokenizers")
_COPY_BYTES = 16 * 2**20


def program(tool: str, envs: Path) -> tuple[str | Path, ...]:
    """How a tool is started."""
    return AIPC if tool == "aipc" else (peer_command("optimum", "optimum-cli", envs),)


def convert_once(tool: str, checkpoint: Path, scratch: Path, envs: Path) -> dict[str, Any]:
    """One conversion; its output stays in scratch until the next one of the same tool."""
    out = scratch / tool
    if out.exists():
        shutil.rmtree(out)
    arguments = [word.format(checkpoint=checkpoint, out=out) for word in ARGUMENTS[tool]]
    cold = forget_cached(checkpoint)
    watched = watch([*program(tool, envs), *arguments], scratch / f"{tool}.log", _ENV)
    return dataclasses.asdict(watched) | {"output_bytes": folder_bytes(out), "cold_cache": cold}


def copy_once(checkpoint: Path, scratch: Path, output_bytes: int) -> dict[str, Any]:
    """The floor: read the whole checkpoint, write `output_bytes`."""
    cold = forget_cached(checkpoint)
    target = scratch / "copy.bin"
    start = time.perf_counter()
    with target.open("wb") as out:
        for path in sorted(checkpoint.iterdir()):
            with path.open("rb", buffering=0) as file:
                while block := file.read(_COPY_BYTES):
                    out.write(block[: max(0, output_bytes - out.tell())])
    wall_s = time.perf_counter() - start
    target.unlink()
    return {"wall_s": wall_s, "read_bytes": folder_bytes(checkpoint), "cold_cache": cold}


def measure(
    tools: Sequence[str], rounds: int, checkpoint: Path, scratch: Path, envs: Path
) -> dict[str, list[dict[str, Any]]]:
    """All runs of all tools, and the floor; who begins changes from round to round."""
    runs: dict[str, list[dict[str, Any]]] = {tool: [] for tool in tools}
    floor = []
    for number in range(rounds):
        for tool in tools if number % 2 == 0 else tools[::-1]:
            runs[tool].append(convert_once(tool, checkpoint, scratch, envs))
            print(f"round {number + 1}: {tool}: {runs[tool][-1]['wall_s']:.1f} s", file=sys.stderr)
        floor.append(copy_once(checkpoint, scratch, runs[tools[0]][-1]["output_bytes"]))
    return runs | {"plain copy": floor}


def report(runs: dict[str, list[dict[str, Any]]]) -> str:
    """Medians, and lowest to highest, as a Markdown table."""
    rows = []
    for tool, own in runs.items():
        walls = [run["wall_s"] for run in own]
        trees = [run["peak_tree_bytes"] / 1e9 for run in own if "peak_tree_bytes" in run]
        processes = [run["peak_process_bytes"] / 1e9 for run in own if "peak_process_bytes" in run]
        sizes = [run["output_bytes"] / 1e9 for run in own if "output_bytes" in run]
        columns = ((walls, 1), (trees, 2), (processes, 2), (sizes, 2))
        rows.append((tool, *(median_and_spread(values, digits) for values, digits in columns)))
    return markdown_table(
        ("", "wall s", "peak GB, all processes", "peak GB, largest process", "output GB"), rows
    )


def median_and_spread(values: Sequence[float], digits: int) -> str:
    """A median with the values it lies between, or a dash for nothing."""
    if not values:
        return "–"
    median = f"{statistics.median(values):.{digits}f}"
    return median if len(values) == 1 else f"{median} ({spread(values, digits)})"


def shares(runs: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """How much of optimum-cli's time and memory aipc takes, by medians.

    optimum-cli forks helpers, and a sum counts the pages they share with it again: so only its largest
    process counts, and of aipc all of them.
    """

    def median(tool: str, key: str) -> float:
        return statistics.median(run[key] for run in runs[tool])

    return {
        "wall_time": median("aipc", "wall_s") / median("optimum-cli", "wall_s"),
        "peak_memory": median("aipc", "peak_tree_bytes") / median("optimum-cli", "peak_process_bytes"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert one checkpoint with aipc and with optimum-cli.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("scratch", type=Path, help="folder for the outputs, on the disk to be measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=ARGUMENTS, help="leave the other tool out")
    parser.add_argument("--envs", type=Path, default=default_envs(), help="folder of the peers' environments")
    parser.add_argument("--record", type=Path, help="write everything measured as JSON")
    args = parser.parse_args()
    tools = [args.only] if args.only else list(ARGUMENTS)
    args.scratch.mkdir(parents=True, exist_ok=True)
    used = {}
    if "aipc" in tools:
        used["aipc"] = versions(sys.executable, _AIPC_PACKAGES)
    if "optimum-cli" in tools:
        names = [requirement.partition("=")[0] for requirement in REQUIREMENTS["optimum"]]
        used["optimum-cli"] = versions(peer_python("optimum", args.envs), names)

    runs = measure(tools, args.rounds, args.checkpoint, args.scratch, args.envs)
    print(report(runs))
    content = {
        "commands": {tool: " ".join((tool, *ARGUMENTS[tool])) for tool in tools},
        "versions": used,
        "runs": runs,
    }
    if len(tools) == len(ARGUMENTS):
        content["aipc_share_of_optimum"] = shares(runs)
        print(f"\naipc's share of optimum-cli's: {json.dumps(shares(runs))}")
    if args.record:
        write_record(args.record, "convert", content)


if __name__ == "__main__":
    main()
