"""Starts `aipc --help`, `import aipc` and `aipc devices` beside the bare interpreter, turn by turn.

    python benchmarks/bench_startup.py --rounds 20 --record startup.json

It also looks at what `import aipc` has loaded, and ends with 1 where that is anything heavy.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from measuring import markdown_table, versions, write_record

# The command as pip installed it beside this interpreter, not a module that starts quicker.
SCRIPT = shutil.which("aipc", path=str(Path(sys.executable).parent)) or "aipc"

# Where there is an NPU or a GPU of Intel, OpenVINO is asked for its devices; in WSL there may be one.
ASK_OPENVINO = "import aipc; from aipc import hardware; hardware.has_wsl_gpu = lambda: True; aipc.devices()"

COMMANDS: dict[str, Sequence[str]] = {
    "python -c pass": (sys.executable, "-c", "pass"),
    "import aipc": (sys.executable, "-c", "import aipc"),
    "aipc --help": (SCRIPT, "--help"),
    "aipc devices": (SCRIPT, "devices"),
    "aipc devices, OpenVINO asked": (sys.executable, "-c", ASK_OPENVINO),
}
BARE = "python -c pass"
HEAVY = (
    *("numpy", "openvino", "openvino_genai", "openvino_tokenizers", "onnxruntime", "tokenizers"),
    *("jinja2", "huggingface_hub", "rich", "torch", "transformers"),
)


def start_once(command: Sequence[str]) -> float:
    """Seconds from start to end of a process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def measure(rounds: int) -> dict[str, list[float]]:
    """Seconds of each start; the first round, which warms the disk's cache and bytecode, is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(rounds + 1):
        for name, command in COMMANDS.items():
            taken = start_once(command)
            if number:
                seconds[name].append(taken)
    return seconds


def heavy_modules() -> list[str]:
    """Which packages that `import aipc` should leave alone it loads."""
    script = f"import aipc, json, sys; print(json.dumps([m for m in {HEAVY!r} if m in sys.modules]))"
    answer = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return list(json.loads(answer.stdout))


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the start of aipc beside the bare interpreter's.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--record", type=Path, help="write everything measured as JSON")
    args = parser.parse_args()
    seconds = measure(args.rounds)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    rows = [
        (name, f"{1e3 * median:.0f}", f"{1e3 * min(seconds[name]):.0f}", f"{median / medians[BARE]:.2f}")
        for name, median in medians.items()
    ]
    print(markdown_table(("", "median ms", "least ms", "of the bare start"), rows))
    heavy = heavy_modules()
    print(f"\n`import aipc` loads: {', '.join(heavy) or 'nothing heavy'}")
    if args.record:
        content = {
            "versions": versions(sys.executable, ("aipc",)),
            "seconds": seconds,
            "heavy_modules_of_import_aipc": heavy,
        }
        write_record(args.record, "startup", content)
    return 1 if heavy else 0


if __name__ == "__main__":
    sys.exit(main())
