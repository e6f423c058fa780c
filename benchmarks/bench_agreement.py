"""Whether TTFT and TPOT as aipc bench takes them agree with the runtimes' own figures.

    python benchmarks/bench_agreement.py FOLDER --pairs 8 --record agreement.json
    python benchmarks/bench_agreement.py --summary agreement.json another.json

FOLDER holds a model for OpenVINO, for ONNX Runtime, or a folder for each. Two comparisons:

same request   the figures that aipc bench takes where an answer arrives, beside what the runtime says of that
               very request in the process that computes (agreement_engine.py). The machine cannot move them
               apart: what lies between them are pipes, queues, threads and the detokeniser
in turns       aipc beside the plain runtime, each in a process of its own, both loaded at once. They answer
               one after the other, and who begins changes from pair to pair: aipc, runtime, runtime, aipc.
               The figures are compared within a pair, seconds apart

A ratio is the median over requests or pairs, with the interval that holds 95 % of the medians of resampled
ones (bootstrap). On ONNX Runtime aipc has an engine of its own on the CPU, so there a turn compares two
engines; the one over onnxruntime-genai, which aipc takes on CUDA and DirectML, is measured as well.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import agreement_engine
import aipc
from aipc import hub
from aipc.bench.measure import ask
from aipc.runtimes.base import RUNTIMES, RuntimeInfo
from aipc.runtimes.cores import physical_cores
from measuring import markdown_table, versions, write_record

ASKED = 0.02
_PACKAGES = ("aipc", "onnxruntime", "onnxruntime-genai", "openvino", "openvino-genai")
_RESAMPLED = 10_000

# Seconds to the first token, and of each later step.
Times = dict[str, Any]
Answer = Callable[[list[int], int], Times]

FIGURES: dict[str, Callable[[Times], float]] = {
    "TTFT": lambda times: times["ttft_s"],
    "TPOT": lambda times: statistics.mean(times["steps_s"]),
}
# For each of aipc's engines: the runtime, and where its session names the module.
ENGINES = {
    "openvino": ("openvino", "aipc.runtimes.openvino._ENGINE"),
    "onnxruntime": ("onnxruntime", "aipc.runtimes.onnxruntime._CPU_ENGINE"),
    "onnxruntime-genai": ("onnxruntime", "aipc.runtimes.onnxruntime._CPU_ENGINE"),
}


@contextlib.contextmanager
def open_openvino(folder: Path) -> Iterator[Answer]:
    """LLMPipeline, by its perf_metrics."""
    import openvino as ov
    import openvino_genai as genai

    pipeline = genai.LLMPipeline(folder, "CPU")
    config = pipeline.get_generation_config()
    config.do_sample, config.ignore_eos = False, True

    def answer(prompt: list[int], new_tokens: int) -> Times:
        config.max_new_tokens = new_tokens
        row = np.array([prompt], np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(row), ov.Tensor(np.ones_like(row)))
        metrics = pipeline.generate(inputs, config).perf_metrics
        steps_s = [duration / 1e6 for duration in metrics.raw_metrics.m_durations]
        return {"ttft_s": metrics.get_ttft().mean / 1000, "steps_s": steps_s}

    yield answer


@contextlib.contextmanager
def open_genai(folder: Path) -> Iterator[Answer]:
    """onnxruntime-genai's plain loop, with the threads that aipc takes."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    options = {"intra_op_num_threads": physical_cores()}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)

    def answer(prompt: list[int], new_tokens: int) -> Times:
        moments = [time.perf_counter()]
        params = og.GeneratorParams(model)
        length = len(prompt) + new_tokens
        params.set_search_options(do_sample=False, min_length=length, max_length=length)
        generator = og.Generator(model, params)
        generator.append_tokens(np.array(prompt, np.int32))
        while not generator.is_done():
            generator.generate_next_token()
            generator.get_next_tokens()
            moments.append(time.perf_counter())
        return {"ttft_s": moments[1] - moments[0], "steps_s": np.diff(moments[1:]).tolist()}

    yield answer


OPENERS = {"openvino": open_openvino, "onnxruntime": open_genai, "onnxruntime-genai": open_genai}


def serve(engine: str, folder: Path, pipe: Connection) -> None:
    """What runs in the plain runtime's own process."""
    with OPENERS[engine](folder) as answer:
        pipe.send("ready")
        while request := pipe.recv():
            pipe.send(answer(*request))


@contextlib.contextmanager
def plain(engine: str, folder: Path) -> Iterator[Answer]:
    """The plain runtime in a process of its own."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(engine, folder, theirs))
    process.start()

    def answer(prompt: list[int], new_tokens: int) -> Times:
        ours.send((prompt, new_tokens))
        times: Times = ours.recv()
        return times

    try:
        ours.recv()
        yield answer
        ours.send(None)
        process.join()
    finally:
        process.kill()


@contextlib.contextmanager
def through_aipc(engine: str, folder: Path, kept: Path) -> Iterator[tuple[Answer, int]]:
    """aipc as its bench asks it, and how many ids its vocabulary has; the runtime's figures go to `kept`."""
    runtime, place = ENGINES[engine]
    environment = {agreement_engine.ENGINE: engine, agreement_engine.FILE: str(kept)}
    with (
        mock.patch(place, agreement_engine.__name__),
        mock.patch.dict(os.environ, environment),
        aipc.load(folder, "CPU", runtime) as model,
    ):

        def answer(prompt: list[int], new_tokens: int) -> Times:
            request = ask(model, prompt, new_tokens)
            assert not request.stopped_early
            return {"ttft_s": request.ttft_s, "steps_s": list(request.steps_s)}

        yield answer, model.text.vocab_size


def measure(engine: str, folder: Path, args: argparse.Namespace) -> dict[str, list[Times]]:
    """The answers of one engine, of the runtime about the same answers, and of the plain runtime."""
    ours: list[Times] = []
    theirs: list[Times] = []
    with tempfile.TemporaryDirectory() as scratch:
        kept = Path(scratch) / "kept.jsonl"
        kept.touch()
        with plain(engine, folder) as raw, through_aipc(engine, folder, kept) as (asked, vocab_size):

            def turn(answer: Answer, answers: list[Times]) -> None:
                prompt = [random.randrange(vocab_size) for _ in range(args.prompt_tokens)]
                answers.append(answer(prompt, args.new_tokens))

            # The first pair warms both, and counts for nothing.
            for pair in range(args.pairs + 1):
                sides = ((asked, ours), (raw, theirs))
                for answer, answers in sides if pair % 2 else sides[::-1]:
                    turn(answer, answers)
        own = [json.loads(line) for line in kept.read_text(encoding="utf-8").splitlines()]
    # A worker's own first request may be a warm-up.
    return {"aipc": ours[1:], "own": own[len(own) - len(ours) + 1 :], "plain": theirs[1:]}


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the bounds of 95 % of the medians of as many, drawn with replacement."""
    drawn = np.random.default_rng(0).choice(np.asarray(ratios), (_RESAMPLED, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(np.median(ratios)), float(low), float(high)


def rows(engine: str, answers: dict[str, list[Times]]) -> Iterator[tuple[bool, float, tuple[str, ...]]]:
    """For each figure: whether it is of the same request, how far it is apart, and the line of the table."""
    for name, other in (("same request", "own"), ("in turns", "plain")):
        for word, figure in FIGURES.items():
            found, expected = ([figure(times) for times in answers[kind]] for kind in ("aipc", other))
            ratios = [a / b for a, b in zip(found, expected, strict=True)]
            middle, low, high = interval(ratios)
            yield (
                other == "own",
                middle - 1,
                (
                    f"{engine}, {word}, {name}",
                    f"{1000 * statistics.median(found):.2f}",
                    f"{1000 * statistics.median(expected):.2f}",
                    f"{100 * (middle - 1):+.2f} %",
                    f"{100 * (low - 1):+.2f} to {100 * (high - 1):+.2f} %",
                    str(len(ratios)),
                ),
            )


def summary(content: dict[str, dict[str, list[Times]]]) -> int:
    """Print the table, and say whether the same requests agree."""
    lines, worst = [], 0.0
    for engine, answers in content.items():
        for same, apart, line in rows(engine, answers):
            lines.append(line)
            worst = max(worst, abs(apart)) if same else worst
    print(markdown_table(("", "aipc ms", "runtime ms", "apart", "95 % of medians", "of"), lines))
    print(f"\nsame requests, worst {100 * worst:.2f} %; asked: within {100 * ASKED:.0f} %")
    return 0 if worst <= ASKED else 1


def joined(paths: Sequence[Path]) -> dict[str, dict[str, list[Times]]]:
    """What several records hold, as if measured in one run."""
    content: dict[str, dict[str, list[Times]]] = {}
    for path in paths:
        for engine, answers in json.loads(path.read_text(encoding="utf-8"))["answers"].items():
            whole = content.setdefault(engine, {kind: [] for kind in answers})
            for kind, times in answers.items():
                whole[kind] += times
    return content


def folder_for(folder: Path, runtime: RuntimeInfo) -> Path | None:
    """The one that a runtime takes, if there is one."""
    return next(iter(hub.converted_folders(folder, runtime)), None)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="a converted model")
    parser.add_argument("--engine", choices=ENGINES, action="append", help="default: all that are possible")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--record", type=Path, help="write everything measured as JSON")
    parser.add_argument("--summary", type=Path, nargs="+", metavar="RECORD", help="show what records hold")
    args = parser.parse_args()
    if (args.folder is None) == (args.summary is None):
        parser.error("give a folder to measure, or --summary and records")
    return args


def main() -> int:
    args = parse()
    if args.summary:
        return summary(joined(args.summary))
    content = {}
    for engine in args.engine or ENGINES:
        folder = folder_for(args.folder, RUNTIMES[ENGINES[engine][0]])
        if folder is not None:
            content[engine] = measure(engine, folder, args)
    if args.record:
        write_record(
            args.record,
            "agreement",
            {"arguments": sys.argv[1:], "answers": content, "versions": versions(sys.executable, _PACKAGES)},
        )
    return summary(content)


if __name__ == "__main__":
    sys.exit(main())
