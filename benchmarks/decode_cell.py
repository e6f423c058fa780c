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
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from timing import Ask, ask_all, open_aipc, prompt_ids

AIPC_KINDS = ("openvino", "onnxruntime")

# A prompt's ids and the most tokens that follow: it gives something for each token, when it is computed.
Begin = Callable[[list[int], int], Iterator[None]]


@contextlib.contextmanager
def open_genai(folder: Path, threads: int) -> Iterator[Begin]:
    """Raw onnxruntime_genai; its default is half of the cores, so the threads are set."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = og.Model(config)

    def begin(ids: list[int], most: int) -> Iterator[None]:
        params = og.GeneratorParams(model)
        length = len(ids) + most
        # min_length keeps the end-of-text tokens away until then.
        params.set_search_options(do_sample=False, min_length=length, max_length=length)
        generator = og.Generator(model, params)
        generator.append_tokens(np.array(ids, np.int32))
        while not generator.is_done():
            generator.generate_next_token()
            generator.get_next_tokens()
            yield

    yield begin


@contextlib.contextmanager
def open_decoder(folder: Path) -> Iterator[Begin]:
    """What computes for aipc on ONNX Runtime, in this process and with nothing around it."""
    from aipc.runtimes.onnxruntime_decoder import Decoder
    from aipc.runtimes.onnxruntime_graph import share_threads

    share_threads({})
    decoder = Decoder(folder, {}, None)

    def begin(ids: list[int], most: int) -> Iterator[None]:
        held, new = 0, ids
        decoder.cache.resize(1, len(ids) + most, [])
        for _ in range(most):
            scores = decoder.step(0, np.array([new], np.int64), np.array([held]), np.array([False]))
            held += len(new)
            new = [int(scores[0].argmax())]
            yield

    yield begin


@contextlib.contextmanager
def open_llama(gguf: Path, threads: int, context: int, *, mmap: bool) -> Iterator[Begin]:
    """llama-cpp-python as its own users have it; sampling is greedy, and end of text is no end."""
    from llama_cpp import Llama

    model = Llama(
        str(gguf), n_ctx=context, n_threads=threads, n_threads_batch=threads, use_mmap=mmap, verbose=False
    )

    def begin(ids: list[int], most: int) -> Iterator[None]:
        for _ in itertools.islice(model.generate(ids, temp=0.0), most):
            yield

    yield begin


@contextlib.contextmanager
def open_continued(folder: Path, runtime: str, block: int) -> Iterator[Begin]:
    """`Model.stream`, asked for a block at a time, as it computes on while nobody takes its tokens.

    What was computed before lies in its cache: a block begins with the last token of the one before.
    """
    import aipc

    with aipc.load(str(folder), device="CPU", runtime=runtime) as model:

        def begin(ids: list[int], most: int) -> Iterator[None]:
            text, wanted = list(ids), 1
            while len(text) < len(ids) + most:
                before = len(text)
                for chunk in model.stream(list(text), max_new_tokens=wanted):
                    text += chunk.token_ids
                    yield from (None for _ in chunk.token_ids)
                if len(text) == before:
                    raise SystemExit("the model ends every answer here: is its context long enough?")
                wanted = block

        yield begin


@contextlib.contextmanager
def open_peer(args: argparse.Namespace) -> Iterator[Begin]:
    """A runtime that computes when it is asked, and only then."""
    most = args.new_tokens
    if args.kind == "genai":
        opened = open_genai(args.model, args.threads)
    elif args.kind == "decoder":
        opened = open_decoder(args.model)
    else:
        context = max(512, max(args.prompt_tokens) + most)
        opened = open_llama(args.model, args.threads, context, mmap=args.kind == "llama")
    with opened as begin:
        yield begin


@contextlib.contextmanager
def open_cell(args: argparse.Namespace) -> Iterator[Ask]:
    """The runtime that was asked for."""
    if args.kind in AIPC_KINDS:
        with open_aipc(args.model, "CPU", args.kind) as ask:
            yield ask
        return
    with open_peer(args) as begin:
        yield lambda ids, new_tokens: [(time.perf_counter(), 1) for _ in begin(ids, new_tokens)]


def answer_turns(begin: Begin, args: argparse.Namespace) -> None:
    """Say on stdout that the model is loaded; then answer each line of stdin with JSON.

    "prompt" begins a new text: seconds to its first token. "block" goes on with it: the seconds of each
    step but the first, for which the threads wake up.
    """
    random = np.random.default_rng(0)
    tokens: Iterator[None] = iter(())
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        if line.strip() == "prompt":
            ids = prompt_ids(random, args.vocab_size, args.prompt_tokens[0])
            start = time.perf_counter()
            tokens = begin(ids, args.new_tokens)
            next(tokens)
            answer: dict[str, object] = {"ttft_s": time.perf_counter() - start}
        else:
            moments = [time.perf_counter() for _ in itertools.islice(tokens, args.block)]
            answer = {"steps_s": [after - before for before, after in itertools.pairwise(moments)]}
        print(json.dumps(answer), flush=True)


def main() -> None:
    kinds = (*AIPC_KINDS, "decoder", "genai", "llama", "llama-no-mmap")
    parser = argparse.ArgumentParser(description="One cell of bench_decode.py or bench_turns.py.")
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("model", type=Path, help="a converted folder, or a GGUF file")
    parser.add_argument("--threads", type=int, required=True, help="for the peers; aipc chooses by itself")
    parser.add_argument("--vocab-size", type=int, required=True)
    parser.add_argument("--prompt-tokens", type=int, nargs="+", required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--block", type=int, help="answer whenever a line comes, so many tokens; else:")
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--started", type=float, help="when, by time.perf_counter")
    parser.add_argument("--answer", type=Path, help="JSON file to write")
    args = parser.parse_args()
    if args.block:
        own = args.kind in AIPC_KINDS
        with open_continued(args.model, args.kind, args.block) if own else open_peer(args) as begin:
            answer_turns(begin, args)
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
