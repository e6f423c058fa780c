"""How each runtime is asked and timed, whatever it is: prompts of token ids, and the moment of each answer.

Standard library and numpy only: it also runs in the peers' environments, which have no more.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# What one request gives: the moment of each arrival, and how many tokens came with it.
Arrivals = list[tuple[float, int]]
Ask = Callable[[list[int], int], Arrivals]


@contextlib.contextmanager
def open_aipc(folder: Path, device: str, runtime: str | None = None) -> Iterator[Ask]:
    """`Model.stream`, as a user of aipc has it."""
    import aipc

    with aipc.load(str(folder), device=device, runtime=runtime) as model:

        def ask(ids: list[int], new_tokens: int) -> Arrivals:
            chunks = model.stream(ids, max_new_tokens=new_tokens)
            return [(time.perf_counter(), len(chunk.token_ids)) for chunk in chunks if chunk.token_ids]

        yield ask


def ask_all(
    ask: Ask, vocab_size: int, prompt_tokens: Sequence[int], new_tokens: int, repeats: int
) -> dict[str, Any]:
    """A first request of each length, which warms the rest, and then `repeats` of each.

    first_token   the moment of the very first token, by time.perf_counter, which all processes share
    """
    random = np.random.default_rng(0)

    def request(length: int) -> tuple[dict[str, Any], Arrivals]:
        return ask_once(ask, random, vocab_size, length, new_tokens)

    first = [request(length) for length in prompt_tokens]
    return {
        "first_token": first[0][1][0][0] if first[0][1] else None,
        "first_requests": [summary for summary, _ in first],
        "requests": [request(length)[0] for _ in range(repeats) for length in prompt_tokens],
    }


def ask_once(
    ask: Ask, random: np.random.Generator, vocab_size: int, prompt_tokens: int, new_tokens: int
) -> tuple[dict[str, Any], Arrivals]:
    """One request with a new prompt: its summary, and what it is made from."""
    ids = prompt_ids(random, vocab_size, prompt_tokens)
    asked = time.perf_counter()
    arrivals = ask(ids, new_tokens)
    return summarise(prompt_tokens, new_tokens, asked, arrivals), arrivals


def prompt_ids(random: np.random.Generator, vocab_size: int, count: int) -> list[int]:
    """So many ids, none of which means anything to the runtime."""
    # The first three ids and the last hundred hold this family's special tokens.
    ids: list[int] = random.integers(3, vocab_size - 100, count).tolist()
    return ids


def summarise(prompt_tokens: int, new_tokens: int, asked: float, arrivals: Arrivals) -> dict[str, Any]:
    """One request: time to the first token, and the seconds of each decode step.

    Where several tokens arrive together, each counts as an equal share of the time since the last arrival.
    """
    steps: list[float] = []
    for (before, _), (now, count) in itertools.pairwise(arrivals):
        steps += [(now - before) / count] * count
    generated = sum(count for _, count in arrivals)
    return {
        "prompt_tokens": prompt_tokens,
        "generated_tokens": generated,
        "stopped_early": generated < new_tokens,
        "ttft_s": arrivals[0][0] - asked if arrivals else None,
        "steps_s": steps,
    }
