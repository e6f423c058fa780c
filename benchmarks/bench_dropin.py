"""The drop-in's generate beside Model.stream on the same model: decode rate, alternately.

    python benchmarks/bench_dropin.py FOLDER [--rounds 3] [--new-tokens 64]

FOLDER is a converted folder or a checkpoint. Needs pip install ".[transformers]".
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from aipc.transformers import OVModelForCausalLM

PROMPT_TOKENS = 128


class Clock:
    """A streamer of transformers that notes when each token arrives."""

    def __init__(self) -> None:
        self.times_s: list[float] = []

    def put(self, value: Any) -> None:
        self.times_s.append(time.perf_counter())

    def end(self) -> None:
        pass

    @property
    def tokens_per_s(self) -> float:
        # The first call shows the prompt.
        return 1.0 / statistics.median(later - sooner for sooner, later in pairwise(self.times_s[1:]))


def by_stream(model: OVModelForCausalLM, prompt: list[int], new_tokens: int) -> float:
    clock = Clock()
    clock.put(None)
    for chunk in model.model.stream(prompt, max_new_tokens=new_tokens):
        if chunk.token_ids:
            clock.put(None)
    return clock.tokens_per_s


def by_generate(model: OVModelForCausalLM, prompt: list[int], new_tokens: int) -> float:
    clock = Clock()
    model.generate(torch.tensor([prompt]), max_new_tokens=new_tokens, streamer=clock)
    return clock.tokens_per_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=64)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    with OVModelForCausalLM.from_pretrained(args.folder) as model:
        # No end: an answer that stops early would be measured short.
        model.model.text.stop_ids = frozenset()
        model.generation_config.eos_token_id = None
        rounds = []
        for _ in range(args.rounds):
            prompt = [int(i) for i in rng.integers(3, 300, PROMPT_TOKENS)]
            stream = by_stream(model, prompt, args.new_tokens)
            generate = by_generate(model, prompt, args.new_tokens)
            rounds.append({"stream": stream, "generate": generate, "ratio": generate / stream})
            print(json.dumps(rounds[-1]))
    print(f"generate at {statistics.median(r['ratio'] for r in rounds):.3f} of stream (median)")


if __name__ == "__main__":
    main()
