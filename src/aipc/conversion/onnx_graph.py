"""The graph of a Phi-3 for ONNX Runtime's generate(), with every weight at its place in a data file.

The operators are those that its kernels were written for: quantised products, RMS norm with the
residual, attention with rotation, cache and sliding window in one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper

from aipc.conversion.onnx_weights import COS, SIN, StoredTensor, StoredWeight, Target, rope_tensors
from aipc.phi3 import ONNX_LONG_FACTORS, Phi3Config

# The name of a tensor in the graph.
Value: TypeAlias = str

# What onnxruntime-directml 1.24, the last one, and the newest of the other packages both read.
OPSET = 21
IR_VERSION = 10
_CONTRIB = "com.microsoft"

_ELEMENT_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
}


def build_model(
    config: Phi3Config,
    target: Target,
    weights: Mapping[str, StoredWeight],
    data_file: str,
    offsets: Mapping[str, int],
    *,
    asks_for_factors: bool = False,
) -> onnx.ModelProto:
    """A causal language model: ids, mask and cache in, logits and cache out.

    data_file          where the tensors lie, beside the model
    offsets            of each stored tensor in it
    asks_for_factors   whether `ONNX_LONG_FACTORS` is an input
    """
    return _Builder(config, target, weights, data_file, offsets, asks_for_factors).build()


@dataclass
class _Builder:
    config: Phi3Config
    target: Target
    weights: Mapping[str, StoredWeight]
    data_file: str
    offsets: Mapping[str, int]
    asks_for_factors: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: dict[str, TensorProto] = field(default_factory=dict)

    def build(self) -> onnx.ModelProto:
        config = self.config
        self.float_type = _ELEMENT_TYPES[self.target.float_type]
        self.positions = self.target.needs_positions(config)
        for tensor in rope_tensors(config, self.target).values():
            self.external(tensor)
        self.lengths, self.total = self.sequence_lengths()
        self.rows = "position_ids" if config.rope_border is None else self.rope_rows(config.rope_border)

        embedding = "model.embed_tokens.weight"
        hidden, delta = self.embed(embedding), ""
        for layer in range(config.layers):
            prefix = f"model.layers.{layer}"
            normed, hidden = self.norm(hidden, delta, f"{prefix}.input_layernorm")
            delta = self.attention(normed, layer, f"{prefix}.self_attn")
            normed, hidden = self.norm(hidden, delta, f"{prefix}.post_attention_layernorm")
            delta = self.feed_forward(normed, f"{prefix}.mlp")
        normed, _ = self.norm(hidden, delta, "model.norm")
        self.project(normed, embedding if config.tied_embeddings else "lm_head.weight", "logits")
        return self.model()

    def model(self) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "phi3", self.inputs(), self.outputs(), list(self.initializers.values())
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(_CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="aipc")

    def inputs(self) -> list[onnx.ValueInfoProto]:
        found = [_info("input_ids", TensorProto.INT64, ["batch", "tokens"])]
        found += [_info("attention_mask", TensorProto.INT64, ["batch", "total"])]
        if self.positions:
            found += [_info("position_ids", TensorProto.INT64, ["batch", "tokens"])]
        if self.asks_for_factors:
            found += [_info(ONNX_LONG_FACTORS, TensorProto.INT64, ["batch", 1])]
        return found + self.cache("past_key_values", "past")

    def outputs(self) -> list[onnx.ValueInfoProto]:
        logits = _info("logits", self.float_type, ["batch", "tokens", self.config.vocab_size])
        return [logits, *self.cache("present", "total")]

    def cache(self, prefix: str, length: str) -> list[onnx.ValueInfoProto]:
        shape: list[int | str] = ["batch", self.config.kv_heads, length, self.config.head_size]
        return [
            _info(f"{prefix}.{layer}.{part}", self.float_type, shape)
            for layer in range(self.config.layers)
            for part in ("key", "value")
        ]

    # Tensors and nodes

    def external(self, tensor: StoredTensor, shape: Sequence[int] | None = None, name: str = "") -> Value:
        """A stored tensor; one place in the file may be seen in several shapes, under a name each."""
        name = name or tensor.name
        if name not in self.initializers:
            dims = tensor.shape if shape is None else shape
            proto = TensorProto(name=name, data_type=_ELEMENT_TYPES[tensor.dtype], dims=dims)
            proto.data_location = TensorProto.EXTERNAL
            place = {
                "location": self.data_file,
                "offset": str(self.offsets[tensor.name]),
                "length": str(tensor.nbytes),
            }
            for key, value in place.items():
                proto.external_data.add(key=key, value=value)
            self.initializers[name] = proto
        return name

    def constant(self, name: str, values: Sequence[int]) -> Value:
        """A few whole numbers in the description itself."""
        array = np.array(values, np.int64)
        if name not in self.initializers:
            self.initializers[name] = helper.make_tensor(name, TensorProto.INT64, array.shape, array)
        return name

    def node(self, kind: str, inputs: Sequence[Value], name: str, **attributes: Any) -> Value:
        """An operator with one output, which has its name."""
        self.add(kind, inputs, [name], name, **attributes)
        return name

    def add(
        self, kind: str, inputs: Sequence[Value], outputs: Sequence[Value], name: str, **attributes: Any
    ) -> None:
        self.nodes.append(helper.make_node(kind, inputs, outputs, name=name, **attributes))

    # Weights

    def embed(self, name: str) -> Value:
        """The row of each token id, [batch, tokens, hidden_size]."""
        weight = self.weights[name]
        if "values" in weight.parts:
            rows = self.node("Gather", [self.external(weight.parts["values"]), "input_ids"], "embed_tokens")
            return self.widened(rows, "embed_tokens/float")
        codes = weight.parts["codes"]
        # As many bytes as numbers: an embedding has 8 bits. MatMulNBits would see blocks here.
        inputs = [self.external(codes, weight.spec.shape, f"{codes.name}/rows"), "input_ids"]
        inputs += [
            self.external(weight.parts[part]) for part in ("scale", "zero_point") if part in weight.parts
        ]
        return self.node(
            "GatherBlockQuantized",
            inputs,
            "embed_tokens",
            domain=_CONTRIB,
            gather_axis=0,
            quantize_axis=1,
            block_size=weight.block_size,
            bits=8,
        )

    def project(self, hidden: Value, weight_name: str, name: str) -> Value:
        """[..., in] to [..., out]."""
        weight = self.weights[weight_name]
        if weight.scheme is None or weight.scheme.bits == 16:
            matrix = self.widened(self.external(weight.parts["values"]), f"{weight_name}/float")
            return self.node("FusedMatMul", [hidden, matrix], name, domain=_CONTRIB, transB=1)
        parts = ("codes", "scale", "zero_point")
        stored = [self.external(weight.parts[part]) for part in parts if part in weight.parts]
        outs, ins = weight.spec.shape
        level = self.target.accuracy_level
        return self.node(
            "MatMulNBits",
            [hidden, *stored],
            name,
            domain=_CONTRIB,
            N=outs,
            K=ins,
            bits=weight.scheme.bits,
            block_size=weight.block_size,
            **({"accuracy_level": level} if level else {}),
        )

    def widened(self, value: Value, name: str) -> Value:
        """A float16 tensor in the type of the arithmetic."""
        if self.float_type == TensorProto.FLOAT16:
            return value
        return self.node("Cast", [value], name, to=self.float_type)

    def norm(self, hidden: Value, delta: Value, name: str) -> tuple[Value, Value]:
        """RMS norm of hidden + delta, and that sum; the first norm of all has no delta yet."""
        weight = self.external(self.weights[f"{name}.weight"].parts["values"])
        epsilon = self.config.rms_norm_eps
        if not delta:
            kind = "SimplifiedLayerNormalization"
            normed = self.node(kind, [hidden, weight], name, axis=-1, epsilon=epsilon, stash_type=1)
            return normed, hidden
        total = f"{name}/residual"
        outputs = [name, "", "", total]
        self.add(
            "SkipSimplifiedLayerNormalization",
            [hidden, delta, weight],
            outputs,
            name,
            domain=_CONTRIB,
            epsilon=epsilon,
        )
        return name, total

    # Attention

    def sequence_lengths(self) -> tuple[Value, Value]:
        """The index of each sequence's last token [batch], and the length of the mask; both int32."""
        ones = self.node(
            "ReduceSum", ["attention_mask", self.constant("axis_1", [1])], "mask/sum", keepdims=0
        )
        last = self.node("Sub", [ones, self.constant("one", [1])], "mask/last")
        shape = self.node("Shape", ["attention_mask"], "mask/shape", start=1)
        total = self.node("Squeeze", [shape], "mask/total")
        return (
            self.node("Cast", [last], "seqlens_k", to=TensorProto.INT32),
            self.node("Cast", [total], "total_sequence_length", to=TensorProto.INT32),
        )

    def rope_rows(self, border: int) -> Value:
        """Where each token's rotation stands in the tables, [batch, tokens].

        Chosen for each sequence by itself: sequences of a batch differ in length. In whole numbers
        throughout, by choices and sums: a product of int64 is more than tools/dml_check can compute.
        """
        axis, rows = self.constant("axis_1", [1]), self.constant("rope/border", [border])
        reach = self.node("ReduceSum", ["attention_mask", axis], "rope/length", keepdims=1)
        none = self.constant("rope/none", [0])
        if self.asks_for_factors:
            is_asked = self.node("Cast", [ONNX_LONG_FACTORS], "rope/is_asked", to=TensorProto.BOOL)
            asked = self.node("Where", [is_asked, rows, none], "rope/asked")
            reach = self.node("Add", [reach, asked], "rope/reach")
        is_long = self.node("Greater", [reach, rows], "rope/is_long")
        first = self.node("Where", [is_long, rows, none], "rope/first_row")
        return self.node("Add", ["position_ids", first], "rope/rows")

    def attention(self, hidden: Value, layer: int, prefix: str) -> Value:
        config = self.config
        fused = self.project(hidden, f"{prefix}.qkv_proj.weight", f"{prefix}.qkv_proj")
        inputs = self.rotated(fused, prefix) if self.positions else [fused, "", ""]
        inputs += [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value", self.lengths, self.total]
        if not self.positions:
            inputs += [COS, SIN]
        self.add(
            "GroupQueryAttention",
            inputs,
            [f"{prefix}.attention", f"present.{layer}.key", f"present.{layer}.value"],
            f"{prefix}.attention",
            domain=_CONTRIB,
            num_heads=config.attention_heads,
            kv_num_heads=config.kv_heads,
            scale=float(1.0 / np.sqrt(np.float32(config.head_size))),
            local_window_size=config.sliding_window or -1,
            do_rotary=0 if self.positions else 1,
            rotary_interleaved=0,
        )
        return self.project(f"{prefix}.attention", f"{prefix}.o_proj.weight", f"{prefix}.o_proj")

    def rotated(self, fused: Value, prefix: str) -> list[Value]:
        """Queries and keys, turned by their positions, and values."""
        config = self.config
        heads, kv_heads, size = config.attention_heads, config.kv_heads, config.head_size
        sizes = self.constant("qkv_sizes", [heads * size, kv_heads * size, kv_heads * size])
        query, key, value = (f"{prefix}.{part}" for part in ("query", "key", "value"))
        self.add("Split", [fused, sizes], [query, key, value], f"{prefix}.split", axis=-1)
        return [self.rotate(query, heads), self.rotate(key, kv_heads), value]

    def rotate(self, states: Value, heads: int) -> Value:
        """RoPE over the first rotary_size channels of each head."""
        partial = self.config.rotary_size != self.config.head_size
        attributes = {"num_heads": heads, "rotary_embedding_dim": self.config.rotary_size} if partial else {}
        inputs = [states, self.rows, COS, SIN]
        name = f"{states}/rotated"
        return self.node("RotaryEmbedding", inputs, name, domain=_CONTRIB, interleaved=0, **attributes)

    def feed_forward(self, hidden: Value, prefix: str) -> Value:
        fused = self.project(hidden, f"{prefix}.gate_up_proj.weight", f"{prefix}.gate_up_proj")
        gate, up = f"{prefix}.gate", f"{prefix}.up"
        self.add("Split", [fused], [gate, up], f"{prefix}.split", axis=-1, num_outputs=2)
        # Sigmoid and the product with its input become one kernel when the model is loaded.
        share = self.node("Sigmoid", [gate], f"{prefix}.sigmoid")
        activated = self.node("Mul", [gate, share], f"{prefix}.activated")
        product = self.node("Mul", [activated, up], f"{prefix}.product")
        return self.project(product, f"{prefix}.down_proj.weight", f"{prefix}.down_proj")


def _info(name: str, element_type: int, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, element_type, shape)
