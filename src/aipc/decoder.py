"""The arithmetic of a Phi-3 in plain numpy and float32, wherever its weights come from.

It is the architecture of `Phi3ForCausalLM` in Hugging Face transformers: golden files made with
transformers hold it to that (tests/test_reference.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from aipc.longrope import takes_long_factors
from aipc.phi3 import Phi3Config

# Attention scores that are in memory at once: 128 MB.
_SCORES_AT_ONCE = 2**25


class Weights(Protocol):
    """Where the numbers come from; the names are those of `Phi3Config.weights()`."""

    def vector(self, name: str) -> np.ndarray:
        """The weights of a norm, [size] float32."""

    def rows(self, name: str, numbers: np.ndarray) -> np.ndarray:
        """Some rows of a matrix, [numbers, in] float32."""

    def product(self, name: str, x: np.ndarray) -> np.ndarray:
        """[..., in] -> [..., out] by a matrix [out, in]; a Phi-3 has no biases."""


class ArrayWeights:
    """Weights in memory, in any float type; float32 is not copied."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = {name: np.asarray(array, np.float32) for name, array in arrays.items()}

    def vector(self, name: str) -> np.ndarray:
        """See `Weights.vector`."""
        return self._arrays[name]

    def rows(self, name: str, numbers: np.ndarray) -> np.ndarray:
        """See `Weights.rows`."""
        rows: np.ndarray = self._arrays[name][numbers]
        return rows

    def product(self, name: str, x: np.ndarray) -> np.ndarray:
        """See `Weights.product`."""
        product: np.ndarray = x @ self._arrays[name].T
        return product


class KeysAndValues(Protocol):
    """What a sequence remembers of its earlier tokens."""

    def append(self, layer: int, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Take the newest tokens of a layer, [kv_heads, tokens, head_size], and return all of them."""


class NothingKept:
    """For sequences that go through the layers whole: there are no earlier tokens."""

    def append(self, layer: int, keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See `KeysAndValues.append`."""
        return keys, values


@dataclass(frozen=True, slots=True)
class Stretch:
    """The new tokens of one sequence: neighbouring rows of the hidden states.

    positions   [tokens] in the sequence, without a gap up to its newest token
    long        whether the sequence is computed with LongRoPE's factors for long texts
    """

    positions: np.ndarray
    cache: KeysAndValues
    long: bool = False


class Decoder:
    """A Phi-3's layers. Hidden states are [tokens, hidden_size]: the new tokens of all sequences."""

    def __init__(self, config: Phi3Config, weights: Weights) -> None:
        self.config = config
        self.weights = weights

    def embed(self, ids: Sequence[int]) -> np.ndarray:
        """[tokens] ids -> the hidden states that enter the first layer."""
        return self.weights.rows("model.embed_tokens.weight", np.asarray(ids))

    def layer(self, layer: int, x: np.ndarray, stretches: Sequence[Stretch]) -> np.ndarray:
        """Hidden states through one layer: they are those of `stretches`, one after another."""
        x = x + self._attention(layer, self._norm(f"layers.{layer}.input_layernorm", x), stretches)
        x += self._mlp(layer, self._norm(f"layers.{layer}.post_attention_layernorm", x))
        return x

    def last_norm(self, x: np.ndarray) -> np.ndarray:
        """Hidden states after the last layer -> what the head takes."""
        return self._norm("norm", x)

    def head(self, x: np.ndarray) -> np.ndarray:
        """[..., hidden_size] after the last norm -> [..., vocab_size]."""
        name = "model.embed_tokens.weight" if self.config.tied_embeddings else "lm_head.weight"
        return self.weights.product(name, x)

    def _attention(self, layer: int, x: np.ndarray, stretches: Sequence[Stretch]) -> np.ndarray:
        """Every token looks at itself and at those before it in its sequence."""
        # Nested, as in _mlp: what is not needed any more is not in memory while the next product is made.
        qkv = f"model.layers.{layer}.self_attn.qkv_proj.weight"
        mixed = self._mix_each(layer, self.weights.product(qkv, x), stretches)
        return self.weights.product(f"model.layers.{layer}.self_attn.o_proj.weight", mixed)

    def _mix_each(self, layer: int, qkv: np.ndarray, stretches: Sequence[Stretch]) -> np.ndarray:
        ends = np.cumsum([len(stretch.positions) for stretch in stretches])
        parts = zip(np.split(qkv, ends[:-1]), stretches, strict=True)
        return np.concatenate([self._mix(layer, part, stretch) for part, stretch in parts])

    def _mix(self, layer: int, qkv: np.ndarray, stretch: Stretch) -> np.ndarray:
        """The attention of one sequence: [tokens, qkv_size] -> [tokens, heads * head_size]."""
        config, tokens = self.config, len(qkv)
        heads, kv_heads, size = config.attention_heads, config.kv_heads, config.head_size
        by_head = qkv.reshape(tokens, heads + 2 * kv_heads, size).swapaxes(0, 1)
        queries, keys, values = np.split(by_head, [heads, heads + kv_heads])

        angles = stretch.positions[:, None].astype(np.float32)
        angles = angles * config.inverse_frequencies(long=stretch.long)
        scale = config.rope_scale(long=stretch.long)
        keys, values = stretch.cache.append(layer, rotate(keys, angles, scale), values)
        # Neighbouring query heads share a key/value head: [kv_heads, queries each, tokens, size].
        queries = rotate(queries, angles, scale).reshape(kv_heads, heads // kv_heads, tokens, size)

        mixed = np.empty_like(queries)
        step = max(1, _SCORES_AT_ONCE // (heads * keys.shape[1]))
        for start in range(0, tokens, step):
            block = slice(start, start + step)
            mixed[:, :, block] = attend(
                queries[:, :, block], keys, values, stretch.positions[block], config.sliding_window
            )
        return mixed.reshape(heads, tokens, size).swapaxes(0, 1).reshape(tokens, heads * size)

    def _mlp(self, layer: int, x: np.ndarray) -> np.ndarray:
        between = gated(self.weights.product(f"model.layers.{layer}.mlp.gate_up_proj.weight", x))
        return self.weights.product(f"model.layers.{layer}.mlp.down_proj.weight", between)

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        """RMSNorm over the last axis."""
        mean_square = np.mean(x * x, axis=-1, keepdims=True)
        scaled = x / np.sqrt(mean_square + np.float32(self.config.rms_norm_eps))
        normed: np.ndarray = scaled * self.weights.vector(f"model.{name}.weight")
        return normed


def forward(decoder: Decoder, sequences: Sequence[Sequence[int]]) -> Iterator[tuple[int, np.ndarray]]:
    """All tokens of all sequences through one layer after the other, so that each weight is needed once.

    sequences   token ids, each sequence for itself; none is empty
    yields      each layer's number and what comes out of it, [tokens, hidden_size] float32, the
                sequences one after another
    """
    x = decoder.embed([token for ids in sequences for token in ids])
    border = decoder.config.rope_border
    stretches = [
        Stretch(np.arange(len(ids)), NothingKept(), takes_long_factors(border, len(ids), 1))
        for ids in sequences
    ]
    for layer in range(decoder.config.layers):
        x = decoder.layer(layer, x, stretches)
        yield layer, x


def attend(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, positions: np.ndarray, window: int | None
) -> np.ndarray:
    """Scaled dot-product attention of neighbouring tokens to all keys up to their own.

    queries        [kv_heads, queries each, tokens, size]
    keys, values   [kv_heads, tokens so far, size], from position 0 on
    positions      [tokens] of the queries
    window         see `visible`
    returns        the shape of queries
    """
    seen = int(positions[-1]) + 1
    keys, values = keys[:, None, :seen], values[:, None, :seen]
    scores = queries @ keys.swapaxes(-1, -2) / np.float32(np.sqrt(queries.shape[-1]))
    scores[..., ~visible(positions, seen, window)] = -np.inf
    mixed: np.ndarray = softmax(scores) @ values
    return mixed


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


def gated(both: np.ndarray) -> np.ndarray:
    """[..., 2 n], of which the first half is the gate of the second, -> [..., n]."""
    gate, up = np.split(both, 2, axis=-1)
    opened = silu(gate)
    opened *= up
    return opened


def silu(x: np.ndarray) -> np.ndarray:
    """x * sigmoid(x), written so that it cannot overflow."""
    activated: np.ndarray = x * (np.float32(0.5) + np.float32(0.5) * np.tanh(x * np.float32(0.5)))
    return activated


def softmax(scores: np.ndarray) -> np.ndarray:
    """Along the last axis; at least one entry of each row is finite."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return shares
