"""How weights lie in model.onnx.data: the codes and scales of every runtime, in the forms of ONNX Runtime.

MatMulNBits takes unsigned codes in blocks along the input axis, each with a scale of its own. A signed
4-bit code and its unsigned twin differ in one bit, so a packed byte becomes the other by XOR 0x88. A row
with a single scale (channel-wise), or a group too long for a kernel, is cut into blocks that repeat it.
The scales are the float16 numbers that OpenVINO's folder holds; where the arithmetic is float32 they are
stored widened, which is exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from aipc.conversion.quantize import CHANNEL_WISE, Packed, Scheme, dequantize, pack_nibbles
from aipc.errors import SchemeError, UsageError
from aipc.phi3 import Phi3Config, Role, WeightSpec

SchemeFor: TypeAlias = Callable[[WeightSpec], Scheme | None]

COS, SIN = "cos_cache", "sin_cache"

# Sizes that the kernels of MatMulNBits take.
_BLOCK_SIZES = (256, 128, 64, 32, 16)
# Numbers of a rotation table that are computed at once.
_TABLE_ELEMENTS = 2**18


@dataclass(frozen=True, slots=True)
class Target:
    """What the kernels of one execution provider take.

    float_type          numpy's word for activations, scales and the cache
    accuracy_level      of MatMulNBits; 4 lets a CPU quantise activations to int8, 0 leaves it out
    longest_block       of numbers that share a scale
    fused_rotary        GroupQueryAttention rotates queries and keys itself, out of packed qkv
    quantized_lookup    GatherBlockQuantized exists; else the embedding is stored as float16
    paired_blocks       zero points are stored, and each row has an even number of them: what the kernel
                        makes of an odd number differs between its versions
    sliding_window      GroupQueryAttention heeds local_window_size
    """

    name: str
    float_type: str
    accuracy_level: int = 0
    longest_block: int = 128
    fused_rotary: bool = True
    quantized_lookup: bool = True
    paired_blocks: bool = False
    sliding_window: bool = True

    def needs_positions(self, config: Phi3Config) -> bool:
        """Whether the graph takes position_ids: where GroupQueryAttention does not rotate by itself.

        It can where heads have a multiple of 16 channels, and of 8 rotated pairs, and where a position
        has one rotation.
        """
        fits = config.head_size % 16 == 0 and config.rotary_size // 2 % 8 == 0 and config.rope_border is None
        return not (self.fused_rotary and fits)


# What DirectML lacks was read in onnxruntime's source, core/providers/dml, and seen with onnxruntime-directml
# 1.24.4 (tools/dml_check). There, odd numbers of 4-bit zero points want the padding that the source that was
# read does not have, and with odd numbers of 8-bit ones products are wrong.
TARGETS = {
    # With 256 int4 numbers instead of 128 a decode step takes 9 % less, and a prompt 10 (bench_turns.py).
    "cpu": Target("cpu", "float32", accuracy_level=4, longest_block=256),
    "cuda": Target("cuda", "float16"),
    "dml": Target(
        "dml",
        "float16",
        fused_rotary=False,
        quantized_lookup=False,
        paired_blocks=True,
        sliding_window=False,
    ),
}


def target_named(name: str) -> Target:
    """One of `TARGETS`.

    raises   UsageError
    """
    if name not in TARGETS:
        raise UsageError(f"there is no target {name!r}; possible are {', '.join(TARGETS)}")
    return TARGETS[name]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in the data file. `dtype` is numpy's word; packed 4-bit codes are uint8."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Of the whole tensor."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def row_nbytes(self) -> int:
        """Of what belongs to one row of the weight."""
        return self.nbytes // self.shape[0]


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """One weight of the model, and the tensors that it becomes.

    block_size   numbers that share a scale; 0 where there is none
    parts        "values" in floating point, or "codes" [rows, blocks, bytes], "scale" [rows, blocks]
                 and "zero_point" [rows, bytes]; a tied embedding may have all of them
    """

    spec: WeightSpec
    scheme: Scheme | None
    block_size: int
    parts: dict[str, StoredTensor]

    def pack(self, packed: Packed) -> Iterator[tuple[str, np.ndarray]]:
        """The arrays to store for a block of rows, by part, in any shape."""
        if "values" in self.parts:
            yield "values", dequantize(packed).astype(self.parts["values"].dtype)
        if self.scheme is None or packed.scale is None or "codes" not in self.parts:
            return
        blocks = self.parts["scale"].shape[1]
        scale = _for_each_block(packed.scale, blocks)
        yield "codes", _unsigned(packed.codes, self.scheme)
        yield "scale", scale.astype(self.parts["scale"].dtype)
        if "zero_point" in self.parts:
            points = packed.zero_point
            if points is None:
                points = np.full((len(scale), 1), 2 ** (self.scheme.bits - 1), np.uint8)
            yield "zero_point", _packed_rows(_for_each_block(points, blocks), self.scheme.bits)


def stored_weights(config: Phi3Config, scheme_for: SchemeFor, target: Target) -> dict[str, StoredWeight]:
    """Every weight of the model by its name, in the order of the config.

    raises   SchemeError for a row length that the kernels do not take
    """
    return {spec.name: _stored(spec, scheme_for(spec), config, target) for spec in config.weights()}


def rope_tensors(config: Phi3Config, target: Target) -> dict[str, StoredTensor]:
    """The tables of cosines and sines, a row for each position.

    With two sets of factors, the short set's rows come first, up to the border, and the long set's follow.
    """
    rows = sum(stop for stop, _ in _rope_sets(config))
    shape = (rows, config.rotary_size // 2)
    return {name: StoredTensor(name, target.float_type, shape) for name in (COS, SIN)}


def rope_rows(config: Phi3Config) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """The tables' rows in blocks: the first row, cosines and sines [rows, rotary_size / 2].

    The angles are float32 products, as in transformers and in the reference.
    """
    first_row = 0
    for stop, long in _rope_sets(config):
        frequencies = config.inverse_frequencies(long=long)
        scale = np.float32(config.rope_scale(long=long))
        step = max(1, _TABLE_ELEMENTS // len(frequencies))
        for start in range(0, stop, step):
            positions = np.arange(start, min(start + step, stop), dtype=np.float32)
            angles = positions[:, None] * frequencies
            yield first_row + start, np.cos(angles) * scale, np.sin(angles) * scale
        first_row += stop


def _rope_sets(config: Phi3Config) -> list[tuple[int, bool]]:
    """The sets of factors that the model has: for how many positions, and whether it is the long one."""
    if config.rope_border is None:
        return [(config.context_length, False)]
    return [(config.rope_border, False), (config.context_length, True)]


def stored_nbytes(config: Phi3Config, scheme_for: SchemeFor, target: Target) -> int:
    """How large the data becomes, known before any of it is read.

    raises   as `stored_weights`
    """
    weights = stored_weights(config, scheme_for, target).values()
    tensors = [tensor for weight in weights for tensor in weight.parts.values()]
    return sum(tensor.nbytes for tensor in (*tensors, *rope_tensors(config, target).values()))


def _stored(spec: WeightSpec, scheme: Scheme | None, config: Phi3Config, target: Target) -> StoredWeight:
    if scheme is None or scheme.bits == 16:
        dtype = target.float_type if scheme is None else "float16"
        return StoredWeight(spec, scheme, 0, {"values": StoredTensor(spec.name, dtype, spec.shape)})
    is_lookup = spec.role is Role.EMBEDDING
    parts: dict[str, StoredTensor] = {}
    if is_lookup and not target.quantized_lookup:
        parts["values"] = StoredTensor(f"{spec.name}/values", "float16", spec.shape)
        if not config.tied_embeddings:
            return StoredWeight(spec, scheme, 0, parts)
    block_size = _block_size(spec, scheme, target)
    rows, blocks = spec.shape[0], spec.shape[1] // block_size
    sizes: dict[str, tuple[str, tuple[int, ...]]] = {
        "codes": ("uint8", (rows, blocks, block_size * scheme.bits // 8)),
        "scale": (target.float_type, (rows, blocks)),
    }
    if not scheme.symmetric or target.paired_blocks:
        sizes["zero_point"] = ("uint8", (rows, -(-blocks * scheme.bits // 8)))
    for part, (dtype, shape) in sizes.items():
        parts[part] = StoredTensor(f"{spec.name}/{part}", dtype, shape)
    return StoredWeight(spec, scheme, block_size, parts)


def _block_size(spec: WeightSpec, scheme: Scheme, target: Target) -> int:
    inputs = spec.shape[1]
    group = inputs if scheme.group_size == CHANNEL_WISE else scheme.group_size
    longest = min(group, target.longest_block)
    for size in _BLOCK_SIZES:
        even = inputs // size % 2 == 0
        if size <= longest and inputs % size == 0 and (even or not target.paired_blocks):
            return size
    raise SchemeError(
        f"rows of {inputs} numbers ({spec.name}) cannot be cut into the blocks of {_BLOCK_SIZES[-1]} "
        f"or more that ONNX Runtime's kernels for quantised weights take",
        hint="take fp16: --weight-format fp16",
    )


def _unsigned(codes: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The codes as bytes; those that were signed have a zero point of 8 or 128 now."""
    data = pack_nibbles(codes) if scheme.bits == 4 else codes.view(np.uint8)
    if not scheme.symmetric:
        return data
    flipped: np.ndarray = data ^ np.uint8(0x88 if scheme.bits == 4 else 0x80)
    return flipped


def _for_each_block(values: np.ndarray, blocks: int) -> np.ndarray:
    """[rows, groups] to [rows, blocks]: a group's value for each block in it."""
    return np.repeat(values, blocks // values.shape[1], axis=1)


def _packed_rows(points: np.ndarray, bits: int) -> np.ndarray:
    """Zero points as they are stored: a row of 4-bit ones ends with a whole byte."""
    if bits == 8:
        return points
    return pack_nibbles(np.pad(points, ((0, 0), (0, points.shape[1] % 2))))
