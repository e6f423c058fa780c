"""A session over aipc.decoder: slow, short, and what the other runtimes are measured against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from aipc.decoder import ArrayWeights, Decoder, Stretch
from aipc.errors import PromptTooLongError, RuntimeFailedError, UsageError
from aipc.longrope import takes_long_factors
from aipc.phi3 import Phi3Config
from aipc.runtimes.sampling import choose, scored
from aipc.types import Sampling


class KVCache:
    """The rotated keys and the values of all tokens so far, one array of each per layer.

    keys, values   per layer [kv_heads, tokens, head_size] float32
    long           whether the keys are rotated with LongRoPE's factors for long texts
    """

    def __init__(self, config: Phi3Config, *, long: bool = False) -> None:
        self.long = long
        empty = np.zeros((config.kv_heads, 0, config.head_size), np.float32)
        self.keys = [empty] * config.layers
        self.values = [empty] * config.layers

    @property
    def tokens(self) -> int:
        """How many tokens the cache holds, which is also the position of the next one."""
        return int(self.keys[0].shape[1])

    def append(self, layer: int, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Add the newest tokens of a layer, and return all of them."""
        self.keys[layer] = np.concatenate([self.keys[layer], keys], axis=1)
        self.values[layer] = np.concatenate([self.values[layer], values], axis=1)
        return self.keys[layer], self.values[layer]


class ReferenceSession:
    """A `Session` over weights in memory.

    weights   by the names of `config.weights()`, in any float type; float32 is not copied
    """

    device = "CPU"
    precision = "fp32, numpy"
    notes: tuple[str, ...] = ()

    def __init__(self, config: Phi3Config, weights: Mapping[str, np.ndarray]) -> None:
        self.config = config
        self.context_length = config.context_length
        self._decoder: Decoder | None = Decoder(
            config, ArrayWeights({spec.name: weights[spec.name] for spec in config.weights()})
        )

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """The scores of every token that could follow each prefix of `ids`, [tokens, vocab_size] float32.

        raises   UsageError, PromptTooLongError
        """
        self._check(ids, room=0)
        long = takes_long_factors(self.config.rope_border, len(ids), 1)
        return self._open_decoder().head(self._forward(ids, KVCache(self.config, long=long)))

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        """Yield the ids that follow `prompt`; see `Session.generate`.

        raises   UsageError, PromptTooLongError; RuntimeFailedError once the session is closed
        """
        self._check(prompt, room=1)
        random = np.random.default_rng(sampling.seed)
        most = min(sampling.max_new_tokens, self.context_length - len(prompt))
        long = takes_long_factors(self.config.rope_border, len(prompt), most)
        cache, tokens, new = KVCache(self.config, long=long), list(prompt), list(prompt)
        for _ in range(most):
            hidden = self._forward(new, cache)
            logits = self._open_decoder().head(hidden[-1])
            new = [choose(logits, tokens, sampling, random)]
            if sampling.logprobs is not None:
                new = [scored(new[0], logits, sampling.logprobs)]
            tokens += new
            yield new[0]
            if new[0] in sampling.stop_ids:
                return

    def close(self) -> None:
        """Forget the weights; every running stream ends with RuntimeFailedError."""
        self._decoder = None

    def _open_decoder(self) -> Decoder:
        if self._decoder is None:
            raise RuntimeFailedError("the session is closed", hint="load the model again")
        return self._decoder

    def _check(self, ids: Sequence[int], room: int) -> None:
        self._open_decoder()
        if not ids:
            raise UsageError("the prompt is empty; a model needs at least one token")
        if len(ids) + room > self.context_length:
            raise PromptTooLongError(
                f"the prompt has {len(ids)} tokens; the model takes {self.context_length - room}",
                hint="shorten the prompt",
            )
        wrong = next((i for i in ids if not 0 <= i < self.config.vocab_size), None)
        if wrong is not None:
            raise UsageError(
                f"the prompt holds the token id {wrong}; the model's are 0 to {self.config.vocab_size - 1}"
            )

    def _forward(self, ids: Sequence[int], cache: KVCache) -> np.ndarray:
        """Run all layers over the newest tokens: [tokens] ids -> [tokens, hidden_size]."""
        decoder = self._open_decoder()
        stretch = Stretch(np.arange(cache.tokens, cache.tokens + len(ids)), cache, cache.long)
        x = decoder.embed(ids)
        for layer in range(self.config.layers):
            x = decoder.layer(layer, x, [stretch])
        return decoder.last_norm(x)
