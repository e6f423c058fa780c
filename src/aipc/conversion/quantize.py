"""Weights to small integers and back: schemes, sizes, and NNCF's INT4 and INT8 rules, bit for bit.

    symmetric    w ~ scale * code              the scale carries a sign, the codes are signed
    asymmetric   w ~ scale * (code - zero)     the codes are unsigned

Source: NNCF 3.4, what `nncf.compress_weights` stores for an OpenVINO model, from 10,000 numbers a
matrix computed by OpenVINO's CPU plugin and below that by numpy: both divide in float32 and round
half to even, and give the same bits. Scales are rounded to float16 only after the codes are chosen.

Everything here is a pure function of its arguments that numpy runs without the GIL: blocks of rows
may be quantised in any order by any number of threads. Scratch memory is that of the block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from aipc.errors import CheckpointError, SchemeError

GROUP_SIZES = (256, 128, 64, 32)
CHANNEL_WISE = -1

# The smallest scale: it keeps a group of zeros from dividing by zero, and float16 holds it exactly.
_MIN_SCALE = np.finfo(np.float32).eps
_MAX_FLOAT16 = float(np.finfo(np.float16).max)
# From here on a number is nearer to what would be float16's next power of two, its infinity.
_FLOAT16_OVERFLOW = 65_520.0


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a matrix is stored.

    bits         16 (float16, nothing else to choose), 8 or 4
    group_size   numbers along the input axis that share a scale; -1 is the whole row (channel-wise)

    raises   SchemeError for a combination that does not exist
    """

    bits: int
    symmetric: bool = True
    group_size: int = CHANNEL_WISE

    def __post_init__(self) -> None:
        if self.bits not in {16, 8, 4}:
            raise SchemeError(f"weights of {self.bits} bits do not exist; possible are 16, 8 and 4")
        if self.bits == 16 and not self.symmetric:
            raise SchemeError("float16 weights have no zero point: fp16 is symmetric")
        allowed = (*GROUP_SIZES, CHANNEL_WISE) if self.bits == 4 else (CHANNEL_WISE,)
        if self.group_size not in allowed:
            raise SchemeError(
                f"{self.bits}-bit weights cannot have a group size of {self.group_size}; "
                f"possible: {', '.join(map(str, allowed))}",
                hint="-1 is one scale per row",
            )

    @property
    def name(self) -> str:
        """For people and manifests: "fp16", "int8_asym", "int4_sym_g128", "int4_sym" (channel-wise)."""
        if self.bits == 16:
            return "fp16"
        group = "" if self.group_size == CHANNEL_WISE else f"_g{self.group_size}"
        return f"int{self.bits}_{'sym' if self.symmetric else 'asym'}{group}"

    @property
    def code_range(self) -> tuple[int, int]:
        """The smallest and the largest code."""
        half = 2 ** (self.bits - 1)
        return (-half, half - 1) if self.symmetric else (0, 2 * half - 1)

    def groups(self, inputs: int) -> int:
        """How many scales a row of `inputs` numbers has.

        raises   SchemeError if the group size does not divide it
        """
        if self.group_size == CHANNEL_WISE:
            return 1
        if inputs % self.group_size:
            raise SchemeError(f"a group size of {self.group_size} does not divide a row of {inputs} numbers")
        return inputs // self.group_size


FP16 = Scheme(16)
INT8_SYM = Scheme(8)
INT8_ASYM = Scheme(8, symmetric=False)


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows of a weight in the form that is stored. A group is in // groups numbers.

    codes        [rows, in] int8 (symmetric), uint8 (asymmetric) or float16 (fp16), float32 for a
                 weight that is kept; 4-bit codes take a byte each until `pack_nibbles`
    scale        [rows, groups] float16; None for fp16 and a weight that is kept
    zero_point   [rows, groups] uint8; None unless asymmetric
    scheme       None for a weight that is kept
    """

    codes: np.ndarray
    scale: np.ndarray | None
    zero_point: np.ndarray | None
    scheme: Scheme | None


@dataclass(frozen=True, slots=True)
class PackedSize:
    """Bytes of each part of a stored matrix, 4-bit values two to a byte."""

    codes: int
    scale: int
    zero_point: int

    @property
    def total(self) -> int:
        """Bytes of the whole matrix."""
        return self.codes + self.scale + self.zero_point


def packed_nbytes(shape: tuple[int, ...], scheme: Scheme | None) -> PackedSize:
    """How large a weight of `shape` becomes, known before any of it is read.

    shape    (rows, in) of a matrix; any where the scheme is None, which keeps float32
    raises   SchemeError if the group size does not divide a row
    """
    if scheme is None:
        return PackedSize(codes=4 * math.prod(shape), scale=0, zero_point=0)
    rows, inputs = shape
    if scheme.bits == 16:
        return PackedSize(codes=2 * rows * inputs, scale=0, zero_point=0)
    scales = rows * scheme.groups(inputs)
    zero_points = 0 if scheme.symmetric else scales
    return PackedSize(
        codes=math.ceil(rows * inputs * scheme.bits / 8),
        scale=2 * scales,
        zero_point=math.ceil(zero_points * scheme.bits / 8),
    )


def quantize(weight: np.ndarray, scheme: Scheme | None) -> Packed:
    """Quantise a matrix, or any block of its rows: a row's result depends on nothing but the row.

    weight   [rows, in] float32; any shape where the scheme is None, which keeps it as it is
    returns  codes, scale and zero point as NNCF gives them for INT4_SYM, INT4_ASYM, INT8_SYM and
             INT8_ASYM; for fp16 the weight rounded to the nearest float16
    raises   SchemeError if the group size does not divide `in`, or a weight is out of float16's
             reach; CheckpointError if a weight is NaN or infinite
    error    |w - w'| <= |scale| / 2 before the scale is rounded, up to |scale| where a symmetric
             code is clipped at its top; rounding the scale adds 2^-11 of |w'|, or for scales
             below 6.1e-5, which float16 holds as subnormals, 2^-25 a step of the code.
             fp16: 2^-11 of |w|, or 2^-25 where |w| is below 6.1e-5
    """
    if scheme is None:
        return Packed(weight, None, None, None)
    if scheme.bits == 16:
        return Packed(_to_float16(weight), None, None, scheme)
    levels, scale, zero = _quantize_groups(split_groups(weight, scheme), scheme)
    return pack(levels, scale, zero, scheme, weight.shape)


def pack(
    levels: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, scheme: Scheme, shape: tuple[int, ...]
) -> Packed:
    """The codes, scales and zero points of all groups of a matrix of `shape`, in the types that are stored.

    levels   [n, size]; scale and zero [n, 1]; all of any type
    raises   SchemeError for a scale that is out of float16's reach
    """
    rows = shape[0]
    return Packed(
        levels.astype(np.int8 if scheme.symmetric else np.uint8, copy=False).reshape(shape),
        scale_to_float16(scale).reshape(rows, -1),
        None if zero is None else zero.astype(np.uint8).reshape(rows, -1),
        scheme,
    )


def dequantize(packed: Packed) -> np.ndarray:
    """The weights that the codes stand for, in their shape, float32; see `quantize` for the error."""
    values = packed.codes.astype(np.float32, order="C")
    if packed.scale is None:
        return values
    groups = values.reshape(packed.scale.size, -1)
    if packed.zero_point is not None:
        groups -= packed.zero_point.reshape(-1, 1).astype(np.float32)
    groups *= packed.scale.reshape(-1, 1).astype(np.float32)
    return values


def row_errors(weight: np.ndarray, scheme: Scheme) -> np.ndarray:
    """Mean squared error of each row, [rows] float32, before scales are rounded: NNCF ranks by it.

    weight   [rows, in] float32
    scheme   of 8 or 4 bits
    raises   SchemeError if the group size does not divide `in`; CheckpointError as `quantize`
    """
    groups = split_groups(weight, scheme)
    levels, scale, zero = _quantize_groups(groups, scheme)
    if zero is not None:
        levels -= zero
    levels *= scale
    levels -= groups
    np.square(levels, out=levels)
    errors: np.ndarray = levels.reshape(weight.shape).mean(axis=1)
    return errors


def pack_nibbles(codes: np.ndarray) -> np.ndarray:
    """Two 4-bit codes to a byte in the order of rows, the first one in the low half.

    codes     [...] int8 in -8..7 or uint8 in 0..15, n in all
    returns   [ceil(n / 2)] uint8; the high half of the last byte is 0 where n is odd
    """
    flat = np.ascontiguousarray(codes).reshape(-1)
    if flat.size % 2:
        flat = np.append(flat, np.zeros_like(flat[:1]))
    pairs = flat.view("<u2")
    packed: np.ndarray = ((pairs & 0x0F) | ((pairs >> 4) & 0xF0)).astype(np.uint8)
    return packed


def unpack_nibbles(packed: np.ndarray, shape: tuple[int, ...], *, signed: bool) -> np.ndarray:
    """The codes in packed bytes, `shape` int8 (signed) or uint8: undoes `pack_nibbles`."""
    pairs = np.stack([packed & 0x0F, packed >> 4], axis=-1)
    codes = pairs.reshape(-1)[: math.prod(shape)].reshape(shape)
    return (codes ^ 8).view(np.int8) - np.int8(8) if signed else codes


def split_groups(weight: np.ndarray, scheme: Scheme) -> np.ndarray:
    """The numbers of each scale in a row of their own, [n, size], without a copy where there can be.

    raises   SchemeError if the group size does not divide a row
    """
    rows, inputs = weight.shape
    return np.ascontiguousarray(weight).reshape(rows * scheme.groups(inputs), -1)


def range_scales(groups: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray | None]:
    """The scale of each group [n, size] by the range of its numbers, and its zero point, both [n, 1] float32.

    raises   CheckpointError if a weight is NaN or infinite
    """
    low, high = _extremes(groups)
    if scheme.symmetric:
        scale = np.where(np.abs(low) >= high, np.abs(low), -high) / np.float32(2 ** (scheme.bits - 1))
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        with np.errstate(over="ignore"):  # an infinite scale is refused with the float16 ones
            scale = (high - low) / np.float32(2**scheme.bits - 1)
    scale[np.abs(scale) < _MIN_SCALE] = _MIN_SCALE
    zero = None if scheme.symmetric else np.clip(-np.rint(low / scale), *scheme.code_range)
    return scale, zero


def _quantize_groups(groups: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Codes of each group [n, size] still as float32, its scale [n, 1] float32 and zero point [n, 1]."""
    scale, zero = range_scales(groups, scheme)
    levels = groups / scale
    if zero is not None:
        levels += zero
    np.rint(levels, out=levels)
    np.clip(levels, *scheme.code_range, out=levels)
    return levels, scale, zero


def _extremes(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest number of each group [n, size] float32, both [n, 1].

    Three times as fast as minimum and maximum of floats, which must look for NaN at every step: the
    bits of non-negative floats are ordered like signed integers, and as unsigned integers those of
    negative floats stand above them, the most negative one highest. What is left are groups of one
    sign, which trained weights hardly have.

    raises   CheckpointError if a number is NaN or infinite: their bits are beyond all others
    """
    if groups.dtype != np.float32:
        raise TypeError(f"float32 is quantised, not {groups.dtype}")
    starts = np.arange(0, groups.size, groups.shape[1])
    bits = groups.reshape(-1)
    high = np.maximum.reduceat(bits.view(np.int32), starts).view(np.float32)
    low = np.maximum.reduceat(bits.view(np.uint32), starts).view(np.float32)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise CheckpointError(
            "a weight is NaN or infinite: the checkpoint is damaged", hint="download the model again"
        )
    positive, negative = low > 0, high < 0
    low[positive] = groups[positive].min(axis=1)
    high[negative] = groups[negative].max(axis=1)
    return low[:, None], high[:, None]


def scale_to_float16(scale: np.ndarray) -> np.ndarray:
    """Scales as they are stored.

    raises   SchemeError for one that is out of float16's reach
    """
    with np.errstate(over="ignore"):
        rounded = scale.astype(np.float16)
    if not np.isfinite(rounded).all():
        raise SchemeError(
            f"the weights reach so far that their scale would be {float(np.abs(scale).max()):.3g}; "
            f"scales are float16, which ends at {_MAX_FLOAT16:.0f}",
            hint="no trained model has such weights: check where the checkpoint comes from",
        )
    return rounded


def _to_float16(weight: np.ndarray) -> np.ndarray:
    low, high = _extremes(weight.reshape(1, -1))
    farthest = max(low.item(), high.item(), key=abs)
    if abs(farthest) >= _FLOAT16_OVERFLOW:
        raise SchemeError(
            f"a weight of {farthest:.6g} is beyond float16, which ends at {_MAX_FLOAT16:.0f}",
            hint="take int8 instead of fp16: --weight-format int8",
        )
    return weight.astype(np.float16)
