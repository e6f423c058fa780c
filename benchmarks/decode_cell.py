"""One cell of bench_decode.py, in a process of its own: a runtime, asked and timed.

It runs in the environment of the runtime it measures, so it imports that and benchmarks/timing.py only.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from timing import Arrivals, Ask, ask_all, open_aipc


@contextlib.contextmanager
def open_genai(folder: Path, threads: int) -> Iterator[Ask]:
    """Raw onnxruntime_genai; its default is half of the cores, so the threads are set."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)

    def ask(ids: list[int], new_tokens: int) -> Arrivals:
        params = og.GeneratorParams(model)
        length = len(ids) + new_tokens
        # min_length keeps the end-of-text tokens away until then.
        params.set_search_options(do_sample=False, min_length=length, max_length=length)
        generator = og.Generator(model, params)
        generator.append_tokens(np.array(ids, np.int32))
        arrivals: Arrivals = []
        while not generator.is_done():
            generator.generate_next_token()
            arrivals.append((time.perf_counter(), len(generator.get_next_tokens())))
        return arrivals

    yield ask


@contextlib.contextmanager
def open_llama(gguf: Path, threads: int, context: int, *, mmap: bool) -> Iterator[Ask]:
    """llama-cpp-python as its own users have it; sampling is greedy, and end of text is no end."""
    from llama_cpp import Llama

    model = Llama(
        str(gguf), n_ctx=context, n_threads=threads, n_threads_batch=threads, use_mmap=mmap, verbose=False
    )

    def ask(ids: list[int], new_tokens: int) -> Arrivals:
        tokens = itertools.islice(model.generate(ids, temp=0.0), new_tokens)
        return [(time.perf_counter(), 1) for _ in tokens]

    yield ask


def open_cell(args: argparse.Namespace) -> contextlib.AbstractContextManager[Ask]:
    """The runtime that was asked for."""
    if args.kind == "genai":
        return open_genai(args.model, args.threads)
    if args.kind.startswith("llama"):
        context = max(512, max(args.prompt_tokens) + args.new_tokens)
        return open_llama(args.model, args.threads, context, mmap=args.kind == "llama")
    return open_aipc(args.model, "CPU", args.kind)


def main() -> None:
    parser = argparse.ArgumentParser(description="One cell of bench_decode.py.")
    parser.add_argument("kind", choices=("openvino", "onnxruntime", "genai", "llama", "llama-no-mmap"))
    parser.add_argument("model", type=Path, help="a converted folder, or a GGUF file")
    parser.add_argument("--threads", type=int, required=True, help="for the peers; aipc chooses by itself")
    parser.add_argument("--vocab-size", type=int, required=True)
    parser.add_argument("--prompt-tokens", type=int, nargs="+", required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--started", type=float, required=True, help="when, by time.perf_counter")
    parser.add_argument("--answer", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    start = time.perf_counter()
    with open_cell(args) as ask:
        load_s = time.perf_counter() - start
        answers = ask_all(ask, args.vocab_size, args.prompt_tokens, args.new_tokens, args.repeats)
    first_token = answers.pop("first_token")
    start_to_first_token_s = None if first_token is None else first_token - args.started
    content = {"load_s": load_s, "start_to_first_token_s": start_to_first_token_s, **answers}
    args.answer.write_text(json.dumps(content), encoding="utf-8")


if __name__ == "__main__":
    main()
