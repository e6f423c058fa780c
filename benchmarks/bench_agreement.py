"""Whether TTFT and TPOT as aipc bench takes them agree with the runtimes' own figures.

    python benchmarks/bench_agreement.py FOLDER --repeats 9 --record agreement.json

FOLDER holds a model for OpenVINO, for ONNX Runtime, or a folder for each. In two processes that live at the
same time, aipc and the runtime itself answer in turn prompts of the same length: what the machine does
otherwise slows both alike. OpenVINO GenAI's own figures are its perf_metrics; in the same answers the moments
at which its streamer hands the tokens over are taken as well, which no other program on the machine can move
apart. ONNX Runtime GenAI has no figures of its own: beside aipc runs its plain loop, with the moment of each
token taken.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

import aipc
from aipc import hub
from aipc.bench.measure import ask
from aipc.runtimes.base import RUNTIMES
from aipc.runtimes.cores import physical_cores
from measuring import markdown_table, versions, write_record

ASKED = 0.02
_PACKAGES = ("aipc", "onnxruntime-genai", "openvino-genai")

# Seconds to the first token, and of each later one.
Times = tuple[float, float]
# Prompt and new tokens in; by the runtime's own figures, and by the moments of its tokens, out.
Own = Callable[[list[int], int], tuple[Times, Times]]

AIPC, OWN, RECEIVED = "aipc", "own", "received"


def times(asked: float, moments: Sequence[float]) -> Times:
    """Of an answer, from the moments of its tokens."""
    return moments[0] - asked, (moments[-1] - moments[0]) / (len(moments) - 1)


@contextlib.contextmanager
def open_openvino(folder: Path) -> Iterator[Own]:
    """LLMPipeline, by its perf_metrics."""
    import openvino as ov
    import openvino_genai as genai

    pipeline = genai.LLMPipeline(folder, "CPU")
    config = pipeline.get_generation_config()
    config.do_sample, config.ignore_eos = False, True

    def own(prompt: list[int], new_tokens: int) -> tuple[Times, Times]:
        moments: list[float] = []

        class Clock(genai.StreamerBase):
            def write(self, token: int | Sequence[int]) -> genai.StreamingStatus:
                moments.extend([time.perf_counter()] * (1 if isinstance(token, int) else len(token)))
                return genai.StreamingStatus.RUNNING

            def end(self) -> None:
                pass

        config.max_new_tokens = new_tokens
        row = np.array([prompt], np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(row), ov.Tensor(np.ones_like(row)))
        asked = time.perf_counter()
        metrics = pipeline.generate(inputs, config, Clock()).perf_metrics
        own_times = metrics.get_ttft().mean / 1000, metrics.get_tpot().mean / 1000
        return own_times, times(asked, moments)

    yield own


@contextlib.contextmanager
def open_onnxruntime(folder: Path) -> Iterator[Own]:
    """The plain loop, with the threads that aipc takes."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    options = {"intra_op_num_threads": physical_cores()}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = og.Model(config)

    def own(prompt: list[int], new_tokens: int) -> tuple[Times, Times]:
        asked = time.perf_counter()
        params = og.GeneratorParams(model)
        length = len(prompt) + new_tokens
        params.set_search_options(do_sample=False, min_length=length, max_length=length)
        generator = og.Generator(model, params)
        generator.append_tokens(np.array(prompt, np.int32))
        moments = []
        while not generator.is_done():
            generator.generate_next_token()
            generator.get_next_tokens()
            moments.append(time.perf_counter())
        return times(asked, moments), times(asked, moments)

    yield own


OPENERS = {"openvino": open_openvino, "onnxruntime": open_onnxruntime}


def answer(runtime: str, folder: Path, pipe: Connection) -> None:
    """What runs in the runtime's own process."""
    with OPENERS[runtime](folder) as own:
        pipe.send("ready")
        while request := pipe.recv():
            pipe.send(own(*request))


def measure(runtime: str, folder: Path, args: argparse.Namespace) -> list[dict[str, Times]]:
    """The turns of one runtime; the first, which warms, is left out."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=answer, args=(runtime, folder, theirs))
    process.start()
    turns: list[dict[str, Times]] = []
    try:
        ours.recv()
        with aipc.load(folder, "CPU", runtime) as model:
            for _ in range(args.repeats + 1):
                prompt = [random.randrange(model.text.vocab_size) for _ in range(args.prompt_tokens)]
                request = ask(model, prompt, args.new_tokens)
                ours.send((prompt[::-1], args.new_tokens))
                own, received = ours.recv()
                own_steps = statistics.mean(request.steps_s)
                turns.append({AIPC: (request.ttft_s or 0.0, own_steps), OWN: own, RECEIVED: received})
        ours.send(None)
        process.join()
    finally:
        process.kill()
    return turns[1:]


def row(runtime: str, turns: list[dict[str, Times]], figure: int, ours: str) -> tuple[float, tuple[str, ...]]:
    """How far two medians are apart, and the line of the table."""
    found_s, own_s = (statistics.median(turn[name][figure] for turn in turns) for name in (ours, OWN))
    apart = found_s / own_s - 1
    name = f"{runtime}, {'TTFT' if figure == 0 else 'TPOT'}"
    label = "aipc" if ours == AIPC else "its streamer, same answers"
    return apart, (name, label, f"{1000 * found_s:.2f}", f"{1000 * own_s:.2f}", f"{100 * apart:+.2f} %")


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare aipc's TTFT and TPOT with the runtimes' own.")
    parser.add_argument("folder", type=Path, help="a converted model")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--record", type=Path, help="write everything measured as JSON")
    args = parser.parse_args()
    lines, content, worst = [], {}, 0.0
    for runtime in OPENERS:
        for folder in hub.converted_folders(args.folder, RUNTIMES[runtime])[:1]:
            turns = content[runtime] = measure(runtime, folder, args)
            for figure, ours in itertools.product((0, 1), (AIPC, RECEIVED)):
                if ours == AIPC or runtime == "openvino":
                    apart, line = row(runtime, turns, figure, ours)
                    lines.append(line)
                    worst = max(worst, abs(apart))
    print(markdown_table(("", "by", "ms", "own ms", "apart"), lines))
    print(f"\nworst {100 * worst:.2f} %; asked: within {100 * ASKED:.0f} %")
    if args.record:
        fields = {"turns": content, "versions": versions(sys.executable, _PACKAGES)}
        write_record(args.record, "agreement", fields)
    return 0 if worst <= ASKED else 1


if __name__ == "__main__":
    sys.exit(main())
