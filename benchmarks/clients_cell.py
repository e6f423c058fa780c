"""One cell of bench_clients.py, in a process of its own: a runtime, asked by several clients at once.

It runs in the environment of the runtime it measures, so it imports the standard library, numpy and that.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np


@dataclass
class Asked:
    """One request: when it came, in seconds since the first, and when each of its tokens did."""

    prompt: list[int]
    new_tokens: int
    came_s: float
    arrivals_s: list[float] = field(default_factory=list)


def requests(args: argparse.Namespace) -> list[list[Asked]]:
    """Of each client, one after another; the clients begin one by one."""
    random = np.random.default_rng(args.clients)
    return [
        [
            # The first three ids and the last hundred hold this family's special tokens.
            Asked(
                random.integers(3, args.vocab_size - 100, args.prompt_tokens).tolist(),
                args.new_tokens,
                client * args.apart_s,
            )
            for _ in range(args.requests)
        ]
        for client in range(args.clients)
    ]


def ask_aipc(folder: Path, runtime: str, clients: Sequence[Sequence[Asked]]) -> None:
    """`Model.stream` in a thread for each client."""
    import aipc

    with aipc.load(str(folder), device="CPU", runtime=runtime) as model:
        list(model.stream(clients[0][0].prompt[::-1], max_new_tokens=2))
        start = time.perf_counter()

        def client(mine: Sequence[Asked]) -> None:
            time.sleep(mine[0].came_s)
            for asked in mine:
                asked.came_s = time.perf_counter() - start
                for chunk in model.stream(asked.prompt, max_new_tokens=asked.new_tokens):
                    asked.arrivals_s += [time.perf_counter() - start] * len(chunk.token_ids)

        threads = [threading.Thread(target=client, args=(mine,)) for mine in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class LlamaBatches:
    """llama.cpp's own batches, through llama-cpp-python's bindings of its C interface."""

    def __init__(self, gguf: Path, threads: int, sequences: int, tokens: int) -> None:
        """Load a model for so many sequences of so many tokens."""
        import llama_cpp

        self._llama = llama_cpp
        llama_cpp.llama_backend_init()
        # ctypes would free a callback that nobody holds.
        self._quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        llama_cpp.llama_log_set(self._quiet, ctypes.c_void_p(0))
        model = llama_cpp.llama_model_load_from_file(
            str(gguf).encode(), llama_cpp.llama_model_default_params()
        )
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = 256 * -(-tokens * sequences // 256)
        params.n_batch = 512
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.kv_unified = True
        self._context = llama_cpp.llama_init_from_model(model, params)
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
        self._batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)

    def decode(self, parts: Sequence[tuple[int, int, Sequence[int]]]) -> list[int]:
        """The likeliest next token of each (sequence, number of tokens that it has, new tokens)."""
        batch, place, last = self._batch, 0, []
        for sequence, held, tokens in parts:
            for number, token in enumerate(tokens):
                batch.token[place] = token
                batch.pos[place] = held + number
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = sequence
                batch.logits[place] = number == len(tokens) - 1
                place += 1
            last.append(place - 1)
        batch.n_tokens = place
        if self._llama.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        scores = (self._llama.llama_get_logits_ith(self._context, place) for place in last)
        return [int(np.argmax(np.ctypeslib.as_array(one, (self._vocab_size,)))) for one in scores]

    def forget(self, sequence: int) -> None:
        """Empty a sequence."""
        memory = self._llama.llama_get_memory(self._context)
        self._llama.llama_memory_seq_rm(memory, sequence, -1, -1)


def ask_llama(gguf: Path, threads: int, clients: Sequence[Sequence[Asked]]) -> None:
    """Continuous batching: whatever there is of all sequences goes into each llama_decode."""
    length = max(len(asked.prompt) + asked.new_tokens for mine in clients for asked in mine)
    model = LlamaBatches(gguf, threads, len(clients), length)
    model.decode([(0, 0, clients[0][0].prompt[::-1])])
    model.forget(0)
    waiting = [list(mine) for mine in clients]
    # Of each sequence: its request, how many tokens it has, and those that are to be computed.
    running: dict[int, tuple[Asked, int, list[int]]] = {}
    start = time.perf_counter()
    while running or any(waiting):
        for sequence, mine in enumerate(waiting):
            if mine and sequence not in running and mine[0].came_s <= time.perf_counter() - start:
                asked = mine.pop(0)
                running[sequence] = (asked, 0, asked.prompt)
        if not running:
            time.sleep(0.001)
            continue
        parts = [(sequence, held, new) for sequence, (_, held, new) in running.items()]
        tokens = model.decode(parts)
        now = time.perf_counter() - start
        for (sequence, held, new), token in zip(parts, tokens, strict=True):
            asked = running[sequence][0]
            asked.arrivals_s.append(now)
            running[sequence] = (asked, held + len(new), [token])
            if len(asked.arrivals_s) == asked.new_tokens:
                del running[sequence]
                model.forget(sequence)
                for following in waiting[sequence][:1]:
                    following.came_s = now


def main() -> None:
    parser = argparse.ArgumentParser(description="One cell of bench_clients.py.")
    parser.add_argument("kind", choices=("openvino", "onnxruntime", "llama"))
    parser.add_argument("model", type=Path, help="a converted folder, or a GGUF file")
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--requests", type=int, required=True, help="of each client, one after another")
    parser.add_argument("--apart-s", type=float, required=True, help="between the clients' beginnings")
    parser.add_argument("--prompt-tokens", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    parser.add_argument("--vocab-size", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True, help="for llama.cpp; aipc chooses by itself")
    parser.add_argument("--answer", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    clients = requests(args)
    if args.kind == "llama":
        ask_llama(args.model, args.threads, clients)
    else:
        ask_aipc(args.model, args.kind, clients)
    answer = [asdict(asked) | {"prompt": len(asked.prompt)} for mine in clients for asked in mine]
    args.answer.write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main()
