"""Phi-3 in plain torch, small enough to train on a laptop, and its rounding to int4 and int8."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

Precision = Literal["fp16", "int4", "int4-channel"]
GROUP_SIZE = 128
_EPSILON = 1.19e-7


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of the demo model: heads of 64 and matrices of whole groups of 128."""

    vocab_size: int = 1280
    hidden_size: int = 256
    intermediate_size: int = 384
    layers: int = 6
    heads: int = 4
    context_length: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0


def round_to_int4(weight: Tensor, group_size: int) -> Tensor:
    """The weight as symmetric int4 gives it back: NNCF's rule, the scale stored in float16."""
    groups = weight.reshape(weight.shape[0], -1, group_size)
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = torch.where(-low >= high, -low, -high) / 8
    scale = torch.where(scale.abs() < _EPSILON, _EPSILON, scale)
    codes = (groups / scale).round().clamp(-8, 7)
    return (codes * scale.half().float()).reshape(weight.shape)


def round_to_int8(weight: Tensor) -> Tensor:
    """The weight as asymmetric int8 with a scale a row gives it back."""
    low = weight.amin(-1, keepdim=True).clamp(max=0)
    high = weight.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=_EPSILON)
    zero = (-low / scale).round().clamp(0, 255)
    codes = ((weight / scale).round() + zero).clamp(0, 255)
    return (codes - zero) * scale.half().float()


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps), scaled."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), (x.shape[-1],), self.weight, self.eps)


class Matrix(nn.Linear):
    """A projection without bias that can act as if its weight were quantised."""

    precision: Precision = "fp16"

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__(size_in, size_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        if self.precision != "fp16":
            group_size = GROUP_SIZE if self.precision == "int4" else weight.shape[1]
            # Straight through: the rounding acts forwards, the gradient passes it by.
            weight = weight + (round_to_int4(weight, group_size) - weight).detach()
        return F.linear(x, weight)


class Attention(nn.Module):
    """Causal attention with rotary positions; queries, keys and values in one projection."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.qkv_proj = Matrix(shape.hidden_size, 3 * shape.hidden_size)
        self.o_proj = Matrix(shape.hidden_size, shape.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, size = x.shape
        qkv = self.qkv_proj(x).view(batch, length, 3, self.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        cos, sin = cos.to(qkv.dtype), sin.to(qkv.dtype)
        query, key = rotate(query, cos, sin), rotate(key, cos, sin)
        y = attend(query, key, value)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, size))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (i, i + half) of a head's channels by its position's angle."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention, written out: on short rows quicker than torch's on a CPU."""
    length = query.shape[-2]
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    return scores.masked_fill(hidden, -torch.inf).softmax(-1).to(value.dtype) @ value


class MLP(nn.Module):
    """down(silu(gate(x)) · up(x)), gate and up in one projection."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.gate_up_proj = Matrix(shape.hidden_size, 2 * shape.intermediate_size)
        self.down_proj = Matrix(shape.intermediate_size, shape.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.mlp = MLP(shape)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class TinyPhi3(nn.Module):
    """Phi3ForCausalLM with tied embeddings; its parameters carry transformers' names."""

    def __init__(self, shape: Shape, dropout: float = 0.0) -> None:
        super().__init__()
        self.shape = shape
        self.precision: Precision = "fp16"
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.model.layers = nn.ModuleList(Layer(shape, dropout) for _ in range(shape.layers))
        self.model.norm = RMSNorm(shape.hidden_size, shape.rms_norm_eps)
        self.dropout = nn.Dropout(dropout)
        self._initialise()

    def _initialise(self) -> None:
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * self.shape.layers) if residual else 0.02)

    def set_precision(self, precision: Precision) -> None:
        """Act from now on as if the weights were stored so."""
        self.precision = precision
        for module in self.modules():
            if isinstance(module, Matrix):
                module.precision = precision

    def embedding(self) -> Tensor:
        """[vocabulary, hidden], which is the head too."""
        weight = self.model.embed_tokens.weight
        if self.precision == "fp16":
            return weight
        return weight + (round_to_int8(weight) - weight).detach()

    def hidden(self, ids: Tensor) -> Tensor:
        """The state after the last norm, [batch, length, hidden] float32, of ids [batch, length]."""
        head_size = self.shape.hidden_size // self.shape.heads
        exponents = torch.arange(0, head_size, 2, dtype=torch.float32) / head_size
        positions = torch.arange(ids.shape[1], dtype=torch.float32)
        angles = torch.outer(positions, 1.0 / self.shape.rope_theta**exponents).repeat(1, 2)
        x = self.dropout(F.embedding(ids, self.embedding()))
        for layer in self.model.layers:
            x = layer(x, angles.cos(), angles.sin())
        return self.model.norm(x)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [batch, length, vocabulary] of ids [batch, length]."""
        return F.linear(self.hidden(ids), self.embedding())
