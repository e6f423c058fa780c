"""How near the plan's prediction comes to what was measured, from a record of aipc bench.

    aipc bench MODEL --prompt-tokens 32,128,256,512,1024 --new-tokens 64 --record all.json
    python benchmarks/bench_plan.py all.json --record plan.json

The record is cut in two. What predicts is every other prompt length, and of each answer the first half of its
tokens. What is predicted are whole answers to the lengths in between: the median time from a request to its
last token, in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from aipc.measurements.figures import start_figures
from aipc.measurements.prediction import Workload, predict
from aipc.measurements.record import CellRecord, Record, Request
from measuring import markdown_table, write_record

ASKED = 0.15


@dataclass(frozen=True, slots=True)
class Trial:
    """A prediction beside the median of what it predicts."""

    cell: str
    prompt_tokens: int
    new_tokens: int
    warm: bool
    predicted_s: float
    measured_s: float

    @property
    def error(self) -> float:
        """Of the prediction, relative."""
        return self.predicted_s / self.measured_s - 1

    def row(self) -> tuple[object, ...]:
        """For the table."""
        state = "warm" if self.warm else "cold"
        times = (f"{self.predicted_s:.3f}", f"{self.measured_s:.3f}", f"{100 * self.error:+.1f} %")
        return (self.cell, self.prompt_tokens, self.new_tokens, state, *times)


def halves(record: Record) -> tuple[Record, tuple[int, ...]]:
    """What predicts, and the prompt lengths that are predicted."""
    lengths = record.options.prompt_tokens
    new_tokens = record.options.new_tokens // 2
    options = replace(record.options, prompt_tokens=lengths[::2], new_tokens=new_tokens)
    cells = tuple(replace(cell, requests=shortened(cell, lengths[::2], new_tokens)) for cell in record.cells)
    return replace(record, options=options, cells=cells), lengths[1::2]


def shortened(cell: CellRecord, lengths: tuple[int, ...], new_tokens: int) -> tuple[Request, ...]:
    """The requests of these lengths, as if they had ended earlier."""
    return tuple(
        replace(request, generated_tokens=new_tokens, steps_s=request.steps_s[: new_tokens - 1])
        for request in cell.requests
        if request.prompt_tokens in lengths and not request.stopped_early
    )


def trials(record: Record) -> list[Trial]:
    """All that can be compared."""
    known, lengths = halves(record)
    found = []
    for whole, half in zip(record.cells, known.cells, strict=True):
        for length in lengths:
            for warm in (True, False):
                predicted = predict(known, half, Workload(length, record.options.new_tokens, warm=warm))
                measured_s = measured(whole, length, warm=warm)
                if predicted and measured_s:
                    found.append(
                        Trial(
                            whole.name, length, record.options.new_tokens, warm, predicted.total_s, measured_s
                        )
                    )
    return found


def measured(cell: CellRecord, prompt_tokens: int, *, warm: bool) -> float | None:
    """The median request; cold with the median load, and what the first inference took beyond later ones."""
    whole = [r for r in cell.requests if r.prompt_tokens == prompt_tokens and not r.stopped_early]
    totals = [request.total_s for request in whole if request.total_s is not None]
    if not totals:
        return None
    start = start_figures(cell)
    extra_s = 0.0
    if not warm:
        shortest = min(request.prompt_tokens for request in cell.requests)
        later = [r.ttft_s for r in cell.requests if r.prompt_tokens == shortest and r.ttft_s is not None]
        first_s = max((start.first_inference_s or 0.0) - statistics.median(later), 0.0)
        extra_s = (start.load_s or 0.0) + first_s
    return statistics.median(totals) + extra_s


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the plan's predictions with what was measured.")
    parser.add_argument("measured", type=Path, help="a record of aipc bench with at least 3 prompt lengths")
    parser.add_argument("--record", type=Path, help="write everything as JSON")
    args = parser.parse_args()
    record = Record.read(args.measured)
    if len(record.options.prompt_tokens) < 3 or record.options.new_tokens < 8:
        parser.error("the record needs at least 3 prompt lengths and 8 new tokens")
    found = trials(record)
    print(
        markdown_table(
            ("", "prompt", "new", "", "predicted s", "measured s", "error"), [t.row() for t in found]
        )
    )
    worst = max((abs(trial.error) for trial in found), default=float("nan"))
    print(f"\nworst {100 * worst:.1f} %; asked: within {100 * ASKED:.0f} %")
    if args.record:
        content = {
            "of": record.command,
            "trials": [{**asdict(trial), "error": trial.error} for trial in found],
        }
        write_record(args.record, "plan", content)
    return 0 if worst <= ASKED else 1


if __name__ == "__main__":
    sys.exit(main())
