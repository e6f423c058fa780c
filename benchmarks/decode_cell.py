"""One cell of bench_decode.py or bench_turns.py, in a process of its own: a runtime, asked and timed.

It runs in the environment of the runtime it measures, so it imports that and benchmarks/timing.py only.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from timing import Arrivals, Ask, ask_all, ask_once, open_aipc


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
def open_decoder(folder: Path) -> Iterator[Ask]:
    """What computes for aipc on ONNX Runtime, in this process and with nothing around it."""
    from aipc.runtimes.onnxruntime_decoder import Decoder

    decoder = Decoder(folder, {}, None)

    def ask(ids: list[int], new_tokens: int) -> Arrivals:
        arrivals: Arrivals = []
        held = 0
        decoder.cache.resize(1, len(ids) + new_tokens, [])
        new = ids
        for _ in range(new_tokens):
            scores = decoder.step(0, np.array([new], np.int64), np.array([held]), np.array([False]))
            held += len(new)
            new = [int(scores[0].argmax())]
            arrivals.append((time.perf_counter(), 1))
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
    if args.kind == "decoder":
        return open_decoder(args.model)
    if args.kind.startswith("llama"):
        context = max(512, max(args.prompt_tokens) + args.new_tokens)
        return open_llama(args.model, args.threads, context, mmap=args.kind == "llama")
    return open_aipc(args.model, "CPU", args.kind)


def answer_turns(ask: Ask, vocab_size: int, prompt_tokens: int, new_tokens: int) -> None:
    """Say on stdout that the model is loaded; then answer a prompt, as JSON, for every line of stdin."""
    random = np.random.default_rng(0)
    print(json.dumps({}), flush=True)
    for _ in sys.stdin:
        summary, _ = ask_once(ask, random, vocab_size, prompt_tokens, new_tokens)
        print(json.dumps(summary), flush=True)


def main() -> None:
    kinds = ("openvino", "onnxruntime", "decoder", "genai", "llama", "llama-no-mmap")
    parser = argparse.ArgumentParser(description="One cell of bench_decode.py or bench_turns.py.")
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("model", type=Path, help="a converted folder, or a GGUF file")
    parser.add_argument("--threads", type=int, required=True, help="for the peers; aipc chooses by itself")
    parser.add_argument("--vocab-size", type=int, required=True)
    parser.add_argument("--prompt-tokens", type=int, nargs="+", required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--turns", action="store_true", help="answer whenever a line comes; else:")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--started", type=float, help="when, by time.perf_counter")
    parser.add_argument("--answer", type=Path, help="JSON file to write")
    args = parser.parse_args()
    if args.turns:
        with open_cell(args) as ask:
            answer_turns(ask, args.vocab_size, args.prompt_tokens[0], args.new_tokens)
        return
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
