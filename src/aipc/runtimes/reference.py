"""A Phi-3 in plain numpy and float32: slow, short, and what the other runtimes are measured against.

It is the architecture of `Phi3ForCausalLM` in Hugging Face transformers: golden files made with
transformers hold it to that (tests/test_reference.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from aipc.errors import PromptTooLongError, RuntimeFailedError, UsageError
from aipc.longrope import takes_long_factors
from aipc.phi3 import Phi3Config
from aipc.runtimes.sampling import choose, softmax
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
        self._weights = {s.name: np.asarray(weights[s.name], np.float32) for s in config.weights()}
        self._closed = False

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """The scores of every token that could follow each prefix of `ids`, [tokens, vocab_size] float32.

        raises   UsageError, PromptTooLongError
        """
        self._check(ids, room=0)
        long = takes_long_factors(self.config.rope_border, len(ids), 1)
        return self._head(self._forward(ids, KVCache(self.config, long=long)))

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
            self._check_open()
            hidden = self._forward(new, cache)
            new = [choose(self._head(hidden[-1]), tokens, sampling, random)]
            tokens += new
            yield new[0]
            if new[0] in sampling.stop_ids:
                return

    def close(self) -> None:
        """Forget the weights; every running stream ends with RuntimeFailedError."""
        self._closed = True
        self._weights = {}

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeFailedError("the session is closed", hint="load the model again")

    def _check(self, ids: Sequence[int], room: int) -> None:
        self._check_open()
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
        positions = np.arange(cache.tokens, cache.tokens + len(ids))
        x = self._weights["model.embed_tokens.weight"][np.asarray(ids)]
        for layer in range(self.config.layers):
            x = x + self._attention(layer, self._norm(f"layers.{layer}.input_layernorm", x), positions, cache)
            x = x + self._mlp(layer, self._norm(f"layers.{layer}.post_attention_layernorm", x))
        return self._norm("norm", x)

    def _attention(self, layer: int, x: np.ndarray, positions: np.ndarray, cache: KVCache) -> np.ndarray:
        """Every token looks at itself and at those before it: [tokens, hidden_size] -> the same."""
        config = self.config
        heads, kv_heads, size = config.attention_heads, config.kv_heads, config.head_size
        qkv = self._linear(f"layers.{layer}.self_attn.qkv_proj", x)
        by_head = qkv.reshape(len(x), heads + 2 * kv_heads, size).swapaxes(0, 1)
        queries, keys, values = np.split(by_head, [heads, heads + kv_heads])

        angles = positions[:, None].astype(np.float32) * config.inverse_frequencies(long=cache.long)
        scale = config.rope_scale(long=cache.long)
        keys, values = cache.append(layer, rotate(keys, angles, scale), values)
        # Neighbouring query heads share a key/value head: [kv_heads, queries each, tokens, size].
        queries = rotate(queries, angles, scale).reshape(kv_heads, heads // kv_heads, len(x), size)

        scores = queries @ keys[:, None].swapaxes(-1, -2) / np.float32(np.sqrt(size))
        scores[..., ~visible(positions, keys.shape[1], config.sliding_window)] = -np.inf
        mixed = softmax(scores) @ values[:, None]
        joined = mixed.reshape(heads, len(x), size).swapaxes(0, 1).reshape(len(x), heads * size)
        return self._linear(f"layers.{layer}.self_attn.o_proj", joined)

    def _mlp(self, layer: int, x: np.ndarray) -> np.ndarray:
        gate, up = np.split(self._linear(f"layers.{layer}.mlp.gate_up_proj", x), 2, axis=-1)
        return self._linear(f"layers.{layer}.mlp.down_proj", silu(gate) * up)

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        """RMSNorm over the last axis."""
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        scaled: np.ndarray = x / np.sqrt(mean_square + np.float32(self.config.rms_norm_eps))
        return scaled * self._weights[f"model.{name}.weight"]

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        """[..., in] -> [..., out] by a matrix [out, in]; a Phi-3 has no biases."""
        product: np.ndarray = x @ self._weights[f"model.{name}.weight"].T
        return product

    def _head(self, hidden: np.ndarray) -> np.ndarray:
        """[..., hidden_size] -> [..., vocab_size]."""
        name = "model.embed_tokens.weight" if self.config.tied_embeddings else "lm_head.weight"
        scores: np.ndarray = hidden @ self._weights[name].T
        return scores


def rotate(x: np.ndarray, angles: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Rotary position embedding: turn the channels i and i + n, taken as a point in the plane, by angle i.

    x         [heads, tokens, head_size]
    angles    [tokens, n]; channels from 2 n on stay as they are
    scale     of the turned channels: LongRoPE makes them longer
    returns   the shape of x
    """
    n = angles.shape[-1]
    first, second, rest = np.split(x, [n, 2 * n], axis=-1)
    cos, sin = np.cos(angles) * np.float32(scale), np.sin(angles) * np.float32(scale)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def visible(positions: np.ndarray, tokens: int, window: int | None) -> np.ndarray:
    """Which of the first `tokens` tokens each position may look at, [positions, tokens] bool.

    window   a token sees itself and the window - 1 before it; None for all before it
    """
    query, key = positions[:, None], np.arange(tokens)
    seen: np.ndarray = key <= query
    return seen if window is None else seen & (key > query - window)


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x), written so that it cannot overflow."""
    activated: np.ndarray = x * (np.float32(0.5) + np.float32(0.5) * np.tanh(x * np.float32(0.5)))
    return activated
