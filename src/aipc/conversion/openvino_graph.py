"""The graph of a Phi-3 for OpenVINO, with a Parameter in the place of every stored tensor.

The forms are those that the runtime recognises and fuses: compressed weights into the matrix
products, RMS norm, RoPE, attention with its cache, the sliding window in paged attention.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from aipc.conversion.quantize import Scheme
from aipc.phi3 import Phi3Config, WeightSpec

# openvino carries no types.
Node: TypeAlias = Any

# What a masked score becomes: the lowest float16, so that the mask survives half precision.
_MASKED = -65504.0

# The end of the name of a weight's last conversion, which is marked as decompression in the IR.
DECOMPRESSED = "/float32"

# The names of LongRoPE's two sets in the IR, where a program that loads it may find and exchange them.
ROPE_SETS = ("rope/short", "rope/long")

_TO_THE_END = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor that the graph reads from the blob.

    element_type   OpenVINO's word for it, such as "i4"
    shape          as the graph sees it; groups are an axis of their own
    """

    name: str
    element_type: str
    shape: tuple[int, ...]


def stored_tensors(spec: WeightSpec, scheme: Scheme | None) -> dict[str, StoredTensor]:
    """What is stored of one weight: "codes", and "scale" and "zero_point" where the scheme has them."""
    if scheme is None:
        return {"codes": StoredTensor(spec.name, "f32", spec.shape)}
    if scheme.bits == 16:
        return {"codes": StoredTensor(spec.name, "f16", spec.shape)}
    rows, columns = spec.shape
    grouped = scheme.group_size > 0
    groups = columns // scheme.group_size if grouped else 1
    codes_shape = (rows, groups, scheme.group_size) if grouped else (rows, columns)
    scale_shape = (rows, groups, 1) if grouped else (rows, 1)
    sign = "i" if scheme.symmetric else "u"
    element_type = f"{sign}{scheme.bits}"
    parts = {
        "codes": StoredTensor(f"{spec.name}/codes", element_type, codes_shape),
        "scale": StoredTensor(f"{spec.name}/scale", "f16", scale_shape),
    }
    if not scheme.symmetric:
        parts["zero_point"] = StoredTensor(f"{spec.name}/zero_point", element_type, scale_shape)
    return parts


def build_graph(config: Phi3Config, scheme_for: Callable[[WeightSpec], Scheme | None]) -> ov.Model:
    """A stateful causal language model: ids, mask, positions and beam indices in, logits out.

    Every stored tensor is a Parameter of its name, type and shape; the caller makes constants of them.
    """
    model = _Builder(config, scheme_for).build()
    _give_unique_names(model)
    return model


@dataclass
class _Builder:
    config: Phi3Config
    scheme_for: Callable[[WeightSpec], Scheme | None]
    stored: dict[str, Node] = field(default_factory=dict)
    decompressed: dict[str, Node] = field(default_factory=dict)
    assigns: list[Node] = field(default_factory=list)

    def build(self) -> ov.Model:
        config = self.config
        self.specs = {spec.name: spec for spec in config.weights()}
        self.input_ids = _input("input_ids", [-1, -1], np.int64)
        self.attention_mask = _input("attention_mask", [-1, -1], np.int64)
        self.position_ids = _input("position_ids", [-1, -1], np.int64)
        self.beam_idx = _input("beam_idx", [-1], np.int32)

        embedding = self.specs["model.embed_tokens.weight"]
        hidden = ops.gather(self.weight(embedding), self.input_ids, _i64(0))
        self.cos, self.sin = self.rotations()
        self.mask = self.attention_bias()
        self.batch = ops.gather(ops.shape_of(self.input_ids), _i64([0]), _i64(0))
        for layer in range(config.layers):
            hidden = self.decoder_layer(hidden, layer)
        hidden = self.norm(hidden, "model.norm.weight")
        head = embedding if config.tied_embeddings else self.specs["lm_head.weight"]
        logits = self.project(hidden, head)
        logits.output(0).set_names({"logits"})
        inputs = [self.input_ids, self.attention_mask, self.position_ids, self.beam_idx]
        result = ops.result(logits)
        return ov.Model([result], self.assigns, inputs + list(self.stored.values()), "phi3")

    # Weights

    def weight(self, spec: WeightSpec) -> Node:
        """A weight in float32: one node, however often it is used."""
        if spec.name not in self.decompressed:
            self.decompressed[spec.name] = self.decompress(spec, self.scheme_for(spec))
        return self.decompressed[spec.name]

    def decompress(self, spec: WeightSpec, scheme: Scheme | None) -> Node:
        """The chain from what is stored to float32, which the plugins fuse away."""
        parts = {part: self.parameter(tensor) for part, tensor in stored_tensors(spec, scheme).items()}
        if scheme is None:
            return parts["codes"]
        value = parts["codes"]
        if scheme.bits < 16:
            value = ops.convert(value, np.float16)
            if "zero_point" in parts:
                value = ops.subtract(value, ops.convert(parts["zero_point"], np.float16))
            value = ops.multiply(value, parts["scale"])
        if scheme.group_size > 0:
            value = ops.reshape(value, _i64(spec.shape), special_zero=False)
        value = ops.convert(value, np.float32)
        value.set_friendly_name(spec.name + DECOMPRESSED)
        return value

    def parameter(self, tensor: StoredTensor) -> Node:
        node = ops.parameter(list(tensor.shape), getattr(ov.Type, tensor.element_type))
        node.set_friendly_name(tensor.name)
        node.output(0).set_names({tensor.name})
        self.stored[tensor.name] = node
        return node

    def project(self, hidden: Node, spec: WeightSpec) -> Node:
        return ops.matmul(hidden, self.weight(spec), transpose_a=False, transpose_b=True)

    def norm(self, hidden: Node, name: str) -> Node:
        """RMS norm, in the form of its published definition."""
        mean_square = ops.reduce_mean(ops.power(hidden, _f32([[[2.0]]])), _i64([-1]), keep_dims=True)
        root = ops.sqrt(ops.add(mean_square, _f32([[[self.config.rms_norm_eps]]])))
        normed = ops.multiply(hidden, ops.divide(_f32([[[1.0]]]), root))
        scale = ops.reshape(self.weight(self.specs[name]), _i64([1, 1, -1]), special_zero=False)
        return ops.multiply(normed, scale)

    # Attention

    def rotations(self) -> tuple[Node, Node]:
        """cos and sin of every position, [batch, 1, tokens, rotary_size]."""
        frequencies, scale = self.rope_factors()
        positions = ops.convert(ops.unsqueeze(self.position_ids, _i64(1)), np.float32)
        angles = ops.transpose(ops.matmul(frequencies, positions, False, False), _i64([0, 2, 1]))
        angles = ops.concat([angles, angles], axis=-1)
        waves = ops.cos(angles), ops.sin(angles)
        if scale is not None:
            waves = ops.multiply(waves[0], scale), ops.multiply(waves[1], scale)
        return ops.unsqueeze(waves[0], _i64(1)), ops.unsqueeze(waves[1], _i64(1))

    def rope_factors(self) -> tuple[Node, Node | None]:
        """The inverse frequencies, [1 or batch, rotary_size / 2, 1], and the scale of cos and sin."""
        config = self.config
        if config.rope_border is None:
            scale = config.rope_scale()
            frequencies = config.inverse_frequencies().reshape(1, -1, 1)
            return _f32(frequencies), None if scale == 1.0 else _f32([[[scale]]])
        # Each sequence by itself, as transformers does with one: all of it, once it is beyond the border.
        reach = ops.reduce_max(self.position_ids, _i64([1]), keep_dims=True)
        is_long = ops.unsqueeze(ops.greater_equal(reach, _i64(config.rope_border)), _i64(2))
        chosen = ops.select(is_long, self.rope_set(long=True), self.rope_set(long=False))
        pairs = config.rotary_size // 2
        frequencies, scale = ops.variadic_split(chosen, _i64(1), _i64([pairs, 1])).outputs()
        return frequencies, scale

    def rope_set(self, *, long: bool) -> Node:
        """A set of factors: the inverse frequencies, then the scale, [1, rotary_size / 2 + 1, 1]."""
        config = self.config
        values = np.append(config.inverse_frequencies(long=long), np.float32(config.rope_scale(long=long)))
        node = _f32(values.reshape(1, -1, 1))
        node.set_friendly_name(ROPE_SETS[long])
        return node

    def attention_bias(self) -> Node:
        """0 where a token may look and the lowest float16 elsewhere, [batch, 1, tokens, keys].

        Keys count their positions over the attention mask, not over the buffer: the NPU pipeline
        leaves gaps in its static cache, and a window measured over the buffer would count them.
        """
        keys = ops.subtract(ops.cumsum(self.attention_mask, _i64(1)), _i64(1))
        keys = ops.unsqueeze(keys, _i64([1, 2]))
        queries = ops.unsqueeze(self.position_ids, _i64([1, 3]))
        allowed = ops.less_equal(keys, queries)
        if self.config.sliding_window is not None:
            # The sequence of ANDs is the one by which paged attention finds the window.
            true = ops.constant(np.array(True))
            inside = ops.greater(keys, ops.add(queries, _i64(-self.config.sliding_window)))
            inside = ops.bitwise_and(ops.bitwise_and(true, inside), allowed)
            allowed = ops.bitwise_and(true, inside)
        padding = ops.unsqueeze(ops.not_equal(self.attention_mask, _i64(0)), _i64([1, 2]))
        allowed = ops.bitwise_and(allowed, padding)
        if self.config.sliding_window is not None:
            allowed = ops.broadcast(allowed, ops.shape_of(allowed))
        bias = ops.select(allowed, _f32(0.0), _f32(_MASKED))
        if self.config.sliding_window is not None:
            bias = ops.slice(bias, _i64([0]), _i64([_TO_THE_END]), _i64([1]), _i64([3]))
        return bias

    def decoder_layer(self, hidden: Node, layer: int) -> Node:
        prefix = f"model.layers.{layer}"
        normed = self.norm(hidden, f"{prefix}.input_layernorm.weight")
        hidden = ops.add(hidden, self.attention(normed, layer, f"{prefix}.self_attn"))
        normed = self.norm(hidden, f"{prefix}.post_attention_layernorm.weight")
        return ops.add(hidden, self.feed_forward(normed, f"{prefix}.mlp"))

    def attention(self, hidden: Node, layer: int, prefix: str) -> Node:
        config = self.config
        head = config.head_size
        sizes = [config.attention_heads * head, config.kv_heads * head, config.kv_heads * head]
        fused = self.project(hidden, self.specs[f"{prefix}.qkv_proj.weight"])
        query, key, value = ops.variadic_split(fused, _i64(-1), _i64(sizes)).outputs()
        query = self.rotate(_split_heads(query, config.attention_heads, head))
        key = self.cached(self.rotate(_split_heads(key, config.kv_heads, head)), f"{layer}.key")
        value = self.cached(_split_heads(value, config.kv_heads, head), f"{layer}.value")
        scale = _f32(1.0 / np.sqrt(np.float32(head)))
        scores = ops.scaled_dot_product_attention(
            query, self.repeat_heads(key), self.repeat_heads(value), self.mask, scale, causal=False
        )
        merged = ops.reshape(ops.transpose(scores, _i64([0, 2, 1, 3])), _i64([0, 0, sizes[0]]), True)
        return self.project(merged, self.specs[f"{prefix}.o_proj.weight"])

    def rotate(self, states: Node) -> Node:
        """RoPE over the first rotary_size channels of each head."""
        size = self.config.rotary_size
        whole = size == self.config.head_size
        rotated = states if whole else _channels(states, 0, size)
        first, second = _channels(rotated, 0, size // 2), _channels(rotated, size // 2, _TO_THE_END)
        turned = ops.concat([ops.multiply(second, _f32([[[[-1.0]]]])), first], axis=-1)
        rotated = ops.add(ops.multiply(rotated, self.cos), ops.multiply(turned, self.sin))
        return rotated if whole else ops.concat([rotated, _channels(states, size, _TO_THE_END)], axis=-1)

    def cached(self, states: Node, name: str) -> Node:
        """The states of all tokens so far: those kept from earlier calls, then these."""
        kv_heads, head = self.config.kv_heads, self.config.head_size
        shape = ops.concat([self.batch, _i64([kv_heads]), _i64([0]), _i64([head])], axis=0)
        variable = f"past_key_values.{name}present.{name}"
        past = ops.read_value(
            ops.broadcast(_f32(0.0), shape), variable, np.float32, ov.PartialShape([-1, kv_heads, -1, head])
        )
        past = ops.gather(past, self.beam_idx, _i64(0))
        present = ops.concat([past, states], axis=-2)
        self.assigns.append(ops.assign(present, variable))
        return present

    def repeat_heads(self, states: Node) -> Node:
        """Each key/value head once for every query head that shares it."""
        config = self.config
        times = config.attention_heads // config.kv_heads
        if times == 1:
            return states
        copies = _i64([1, 1, times, 1, 1])
        repeated = ops.broadcast(ops.unsqueeze(states, _i64(2)), copies, broadcast_spec="BIDIRECTIONAL")
        return ops.reshape(repeated, _i64([0, config.attention_heads, -1, config.head_size]), True)

    def feed_forward(self, hidden: Node, prefix: str) -> Node:
        size = self.config.intermediate_size
        fused = self.project(hidden, self.specs[f"{prefix}.gate_up_proj.weight"])
        gate, up = ops.variadic_split(fused, _i64(-1), _i64([size, size])).outputs()
        return self.project(ops.multiply(up, ops.swish(gate)), self.specs[f"{prefix}.down_proj.weight"])


def _split_heads(states: Node, heads: int, head_size: int) -> Node:
    """[batch, tokens, heads x head_size] to [batch, heads, tokens, head_size]."""
    shaped = ops.reshape(states, _i64([0, 0, heads, head_size]), special_zero=True)
    return ops.transpose(shaped, _i64([0, 2, 1, 3]))


def _channels(states: Node, start: int, stop: int) -> Node:
    return ops.slice(states, _i64([start]), _i64([stop]), _i64([1]), _i64([3]))


def _input(name: str, shape: list[int], dtype: type) -> Node:
    node = ops.parameter(shape, dtype)
    node.set_friendly_name(name)
    node.output(0).set_names({name})
    return node


def _i64(value: Any) -> Node:
    return ops.constant(np.array(value, dtype=np.int64))


def _f32(value: Any) -> Node:
    return ops.constant(np.array(value, dtype=np.float32))


def _give_unique_names(model: ov.Model) -> None:
    """Name every node by its place: the NPU compiler refuses a graph with duplicate names."""
    for index, node in enumerate(model.get_ordered_ops()):
        name = node.get_friendly_name()
        named = node.get_type_name() == "Parameter" or name.endswith(DECOMPRESSED) or name in ROPE_SETS
        if not named:
            node.set_friendly_name(f"{node.get_type_name()}_{index}")
