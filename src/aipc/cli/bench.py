"""aipc bench: every device, runtime and precision side by side."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from aipc.cli import INTERRUPTED, console
from aipc.errors import UsageError

if TYPE_CHECKING:
    from aipc.bench import Step
    from aipc.measurements.record import Record


def add_arguments(parser: ArgumentParser) -> None:
    """The words of `aipc bench`."""
    parser.usage = "aipc bench MODEL [options], or aipc bench compare BEFORE.json AFTER.json"
    parser.epilog = (
        "The last paragraph says which to take, and with which command. What was measured of all devices and "
        "runtimes is kept, and run, serve and plan choose by it."
    )
    parser.add_argument(
        "words", metavar="MODEL", nargs="+", help="alias (demo, phi-3-mini, ...), hub id or folder"
    )
    parser.add_argument(
        "--devices",
        type=_words,
        default=(),
        metavar="D,D",
        help="NPU,GPU.0,CPU (default: all that are reached)",
    )
    parser.add_argument(
        "--runtimes",
        type=_words,
        default=(),
        metavar="R,R",
        help="openvino,onnxruntime (default: all that are here)",
    )
    parser.add_argument(
        "--precisions",
        type=_formats,
        default=(),
        metavar="P,P",
        help="of a checkpoint's weights: int4,int8,fp16 (default: int4)",
    )
    parser.add_argument(
        "--prompt-tokens",
        type=_numbers,
        default=(32, 256, 1024),
        metavar="N,N",
        help="exact lengths of the prompts (default: 32,256,1024)",
    )
    parser.add_argument(
        "--new-tokens", type=int, default=64, metavar="N", help="exact length of the answers (default: 64)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="each loads every cell anew (default: 3)"
    )
    parser.add_argument(
        "--concurrency", type=int, default=1, metavar="N", help="answers at the same time (default: 1)"
    )
    parser.add_argument(
        "--chart", type=Path, metavar="FILE", help="draw the latencies: FILE.svg, FILE.html or FILE.png"
    )
    parser.add_argument("--record", type=Path, metavar="FILE", help="keep everything measured, as JSON")
    parser.add_argument("--json", action="store_true", help="show that instead of the table")


def run(args: Namespace) -> int:
    """Measure, show the figures on stdout, and return the exit code."""
    if args.words[0] == "compare" and len(args.words) > 1:
        return _compare(args.words[1:])
    if len(args.words) > 1:
        raise UsageError(f"one model is measured at a time, not {len(args.words)}", hint="aipc bench demo")
    _check_files(args)
    record = _measure(args.words[0], args)
    if not (args.devices or args.runtimes or args.concurrency > 1 or record.interrupted):
        from aipc.measurements import kept

        kept.keep(args.words[0], record)
    if args.record:
        record.write(args.record)
    if args.chart:
        from aipc.bench import chart

        chart.write(record, args.chart)
    _show(record, as_json=args.json)
    if record.interrupted:
        return INTERRUPTED
    return 0 if any(cell.requests for cell in record.cells) else 1


def _measure(model: str, args: Namespace) -> Record:
    from aipc import bench
    from aipc.measurements.record import Options

    options = Options(args.prompt_tokens, args.new_tokens, args.rounds, args.concurrency)
    cells = bench.cells_for(model, args.devices, args.runtimes, args.precisions)
    benchmark = bench.Benchmark(model, cells, options)
    with console.progress(f"preparing {model}") as progress:
        benchmark.prepare(progress)
    with console.steps(f"measuring {model}") as update:

        def show(step: Step) -> None:
            left = f"{console.clock_time(step.left_s)} left" if step.done < step.total else "done"
            update(step.done, step.total, f"{step.what} · {left}")

        return benchmark.run(sys.argv[1:], show)


def _show(record: Record, *, as_json: bool) -> None:
    from aipc.bench import report
    from aipc.bench.verdict import verdict

    if as_json:
        console.write_answer(record.as_json() + "\n")
        return
    lines = [report.conditions(record)]
    lines += ["", *console.aligned(rows)] if len(rows := report.table(record)) > 1 else []
    lines += ["", *remarks] if (remarks := report.remarks(record)) else []
    lines += ["", verdict(record)]
    console.write_answer("\n".join(lines) + "\n")


def _compare(files: list[str]) -> int:
    """Show two records side by side."""
    if len(files) != 2:
        raise UsageError(
            f"two records are compared, not {len(files)}", hint="aipc bench compare A.json B.json"
        )
    from aipc.bench import compare
    from aipc.measurements.record import Record

    before, after = (Record.read(Path(file)) for file in files)
    lines = console.aligned(compare.table(before, after))
    lines += ["", *remarks] if (remarks := compare.remarks(before, after)) else []
    console.write_answer("\n".join(lines) + "\n")
    return 0


def _check_files(args: Namespace) -> None:
    """What is measured for minutes must have a place to go.

    raises   UsageError, MissingExtraError
    """
    for file in filter(None, (args.record, args.chart)):
        if not file.absolute().parent.is_dir():
            raise UsageError(f"there is no folder {file.absolute().parent}", hint="make it, or name another")
    if args.chart:
        from aipc.bench import chart

        chart.check(args.chart)


def _words(text: str) -> tuple[str, ...]:
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",")))
    if not all(words):
        raise ArgumentTypeError(f"{text!r} has an empty word")
    return words


def _formats(text: str) -> tuple[str, ...]:
    possible = ("fp16", "int8", "int4")
    for word in _words(text):
        if word not in possible:
            raise ArgumentTypeError(f"there is no precision {word!r}; possible: {', '.join(possible)}")
    return _words(text)


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError as exc:
        raise ArgumentTypeError(f"{text!r} is not a list of whole numbers") from exc
