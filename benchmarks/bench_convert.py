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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import (
    AIPC,
    folder_bytes,
    forget_cached,
    markdown_table,
    median_and_spread,
    versions,
    watch,
    write_record,
)
from peers import REQUIREMENTS, default_envs, peer_command, peer_python

SCHEME = ("--weight-format", "int4", "--group-size", "128", "--ratio", "1.0", "--sym")


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that converts.

    arguments   what it is asked; {checkpoint} and {out} are filled in
    peer        whose environment has it; None for aipc
    program     how it starts there, such as `python -m` and a module
    """

    name: str
    arguments: Sequence[str]
    peer: str | None = None
    program: Sequence[str] = ()

    def command(self, checkpoint: Path, out: Path, envs: Path) -> list[str | Path]:
        """The command line, whole."""
        words = [word.format(checkpoint=checkpoint, out=out) for word in self.arguments]
        if self.peer is None:
            return [*AIPC, *words]
        return [peer_command(self.peer, self.program[0], envs), *self.program[1:], *words]

    def versions(self, envs: Path) -> dict[str, str | None]:
        """Of what converts, and its Python."""
        if self.peer is None:
            return versions(sys.executable, _AIPC_PACKAGES)
        names = [requirement.partition("=")[0] for requirement in REQUIREMENTS[self.peer]]
        return versions(peer_python(self.peer, envs), names)

    def __str__(self) -> str:
        return " ".join((*(self.program or ("aipc",)), *self.arguments))


TOOLS = (
    Tool("aipc", ("convert", "{checkpoint}", *SCHEME, "{out}")),
    Tool("aipc rtn", ("convert", "{checkpoint}", *SCHEME, "--quant-method", "rtn", "{out}")),
    Tool(
        "optimum-cli",
        (
            *("export", "openvino", "--model", "{checkpoint}", "--task", "text-generation-with-past"),
            *(*SCHEME, "{out}"),
        ),
        "optimum",
        ("optimum-cli",),
    ),
)
# No tool needs the network for a local folder; so none shall wait for it.
_ENV = {"HF_HUB_OFFLINE": "1"}
_AIPC_PACKAGES = ("aipc", "numpy", "onnx", "openvino", "openvino-tokenizers")
_COPY_BYTES = 16 * 2**20


def convert_once(tool: Tool, checkpoint: Path, scratch: Path, envs: Path) -> dict[str, Any]:
    """One conversion; its output stays in scratch until the next one of the same tool."""
    out = scratch / tool.name.replace(" ", "-")
    if out.exists():
        shutil.rmtree(out)
    cold = forget_cached(checkpoint)
    watched = watch(tool.command(checkpoint, out, envs), out.with_name(f"{out.name}.log"), _ENV)
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
    tools: Sequence[Tool], rounds: int, checkpoint: Path, scratch: Path, envs: Path
) -> dict[str, list[dict[str, Any]]]:
    """All runs of all tools, and the floor; who begins changes from round to round."""
    runs: dict[str, list[dict[str, Any]]] = {tool.name: [] for tool in tools}
    floor = []
    for number in range(rounds):
        for tool in tools if number % 2 == 0 else tools[::-1]:
            run = convert_once(tool, checkpoint, scratch, envs)
            runs[tool.name].append(run)
            print(f"round {number + 1}: {tool.name}: {run['wall_s']:.1f} s", file=sys.stderr)
        floor.append(copy_once(checkpoint, scratch, runs[tools[0].name][-1]["output_bytes"]))
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


def median_of(runs: dict[str, list[dict[str, Any]]], tool: str, key: str) -> float:
    """Of a figure over a tool's runs."""
    return statistics.median(run[key] for run in runs[tool])


def shares(runs: dict[str, list[dict[str, Any]]], own: str, peer: str) -> dict[str, float]:
    """How much of a peer's time and memory aipc takes, by medians.

    A peer may fork helpers, and a sum counts the pages they share with it again: so only its largest
    process counts, and of aipc all of them.
    """
    own_peak, peer_peak = (
        median_of(runs, own, "peak_tree_bytes"),
        median_of(runs, peer, "peak_process_bytes"),
    )
    return {
        "wall_time": median_of(runs, own, "wall_s") / median_of(runs, peer, "wall_s"),
        "peak_memory": own_peak / peer_peak,
    }


def conversion_parser(description: str) -> argparse.ArgumentParser:
    """What every comparison of conversions is told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("scratch", type=Path, help="folder for the outputs, on the disk to be measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--envs", type=Path, default=default_envs(), help="folder of the peers' environments")
    parser.add_argument("--record", type=Path, help="write everything measured as JSON")
    return parser


def compare(tools: Sequence[Tool], args: argparse.Namespace) -> dict[str, Any]:
    """Run the tools and print the table; returns what belongs into the record."""
    args.scratch.mkdir(parents=True, exist_ok=True)
    used = {tool.name: tool.versions(args.envs) for tool in tools}
    runs = measure(tools, args.rounds, args.checkpoint, args.scratch, args.envs)
    print(report(runs))
    return {"commands": {tool.name: str(tool) for tool in tools}, "versions": used, "runs": runs}


def main() -> None:
    parser = conversion_parser("Convert one checkpoint with aipc and with optimum-cli.")
    parser.add_argument("--only", choices=[tool.name for tool in TOOLS], help="leave the other tool out")
    args = parser.parse_args()
    tools = [tool for tool in TOOLS if args.only in {None, tool.name}]
    content = compare(tools, args)
    if not args.only:
        content["aipc_share_of_optimum"] = shares(content["runs"], "aipc", "optimum-cli")
        print(f"\naipc's share of optimum-cli's: {json.dumps(content['aipc_share_of_optimum'])}")
    if args.record:
        write_record(args.record, "convert", content)


if __name__ == "__main__":
    main()
