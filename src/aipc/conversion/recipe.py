"""Which scheme each weight gets: by its role, its shape and, for a mixture, how much it would lose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from aipc.conversion.quantize import (
    CHANNEL_WISE,
    FP16,
    GROUP_SIZES,
    INT8_ASYM,
    INT8_SYM,
    Scheme,
    packed_nbytes,
    row_errors,
)
from aipc.errors import SchemeError, UsageError
from aipc.phi3 import Phi3Config, Role, WeightSpec

WEIGHT_FORMATS = ("int4", "int8", "fp16")
DEFAULT_GROUP_SIZE = 128
QUANT_METHODS = ("rtn", "mse", "gptq-random", "gptq")
# They choose the codes by what the model computes with them.
CALIBRATED_METHODS = ("gptq-random", "gptq")

# An int4 conversion keeps these at 8 bits: NNCF's rule for the embedding and the last matrix.
_ALWAYS_INT8 = {Role.EMBEDDING, Role.HEAD}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What becomes of every weight of a model.

    group_size     of the 4-bit matrices, or of most of them where the notes say so; -1 otherwise
    quant_method   of the 4-bit matrices; "rtn" where there are none
    int8_weights   names of the matrices that a ratio below 1 leaves at 8 bits
    notes          what was decided for the user, a sentence each
    """

    weight_format: str
    sym: bool
    group_size: int
    ratio: float
    quant_method: str = "rtn"
    int8_weights: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def scheme_for(self, spec: WeightSpec) -> Scheme | None:
        """How to store one weight; None keeps it as float32, which norms are."""
        if spec.role is Role.NORM:
            return None
        if self.weight_format == "fp16":
            return FP16
        if self.weight_format == "int8":
            return INT8_SYM if self.sym else INT8_ASYM
        if spec.role in _ALWAYS_INT8 or spec.name in self.int8_weights:
            return INT8_ASYM
        return Scheme(4, self.sym, _fitting(self.group_size, spec.shape[1]))

    def is_4_bit(self, spec: WeightSpec) -> bool:
        """Whether a weight is stored in 4 bits."""
        scheme = self.scheme_for(spec)
        return scheme is not None and scheme.bits == 4

    def nbytes(self, specs: Iterable[WeightSpec]) -> int:
        """What the weights take when they are stored."""
        return sum(packed_nbytes(spec.shape, self.scheme_for(spec)).total for spec in specs)

    def describe(self) -> dict[str, Any]:
        """The recipe in words and numbers of JSON, for the folder's manifest."""
        return {
            "weight_format": self.weight_format,
            "sym": self.sym,
            "group_size": self.group_size,
            "ratio": self.ratio,
            "quant_method": self.quant_method,
            "int8_weights": sorted(self.int8_weights),
            "notes": list(self.notes),
        }


def make_recipe(
    config: Phi3Config,
    *,
    weight_format: str = "int4",
    group_size: int | None = None,
    sym: bool = True,
    ratio: float = 1.0,
    quant_method: str = "rtn",
    scores: Mapping[str, float] | None = None,
) -> Recipe:
    """Decide what becomes of every weight of a model, in optimum-cli's words.

    weight_format   "fp16": all matrices float16. "int8": all 8 bits, a scale per row. "int4":
                    embedding and head int8 asymmetric, the other matrices 4 bits
    group_size      32, 64, 128, 256 or -1 (a scale per row), taken exactly; None is 128, or less where
                    128 does not divide a matrix, said in the notes
    ratio           share of the 4-bit matrices' numbers that becomes 4 bits; the others become int8
                    asymmetric, those that lose most by 8 bits first into 4, as NNCF's data-free
                    criterion has it
    quant_method    of the 4-bit matrices. "rtn": each number to the nearest code, the scale by the range
                    of its group, as NNCF does without data. "mse": the scale with the least squared error.
                    "gptq": its scales, and codes that mend each other's errors on a text. "gptq-random":
                    on random tokens, for which no text is needed
    scores          `sensitivity` of each matrix that `is_ranked`, by name; read where ratio < 1
    raises          UsageError for a word or number that does not exist; SchemeError if the group
                    size that was asked for does not divide a matrix
    """
    if weight_format not in WEIGHT_FORMATS:
        raise UsageError(
            f"the weight format {weight_format!r} does not exist; possible are {', '.join(WEIGHT_FORMATS)}"
        )
    if not 0.0 < ratio <= 1.0:
        raise UsageError(
            f"the ratio is {ratio}; it must be above 0 and at most 1",
            hint="to have no 4-bit weights take int8: --weight-format int8",
        )
    if quant_method not in QUANT_METHODS:
        raise UsageError(
            f"the quantisation method {quant_method!r} does not exist; possible: {', '.join(QUANT_METHODS)}"
        )
    if weight_format != "int4" and quant_method in CALIBRATED_METHODS:
        raise UsageError(
            f"{quant_method} quantises to 4 bits; {weight_format} has no 4-bit weights",
            hint="take int4: --weight-format int4",
        )
    if weight_format != "int4":
        return _uniform(weight_format, group_size, sym, ratio)
    matrices = [spec for spec in config.weights() if is_ranked(spec)]
    notes: tuple[str, ...] = ()
    if group_size is None:
        group_size, notes = _choose_group_size(matrices)
    else:
        _require_divisible(matrices, Scheme(4, sym, group_size))
    int8_weights = _int8_by_ratio(matrices, ratio, scores) if ratio < 1.0 else frozenset[str]()
    return Recipe(weight_format, sym, group_size, ratio, quant_method, int8_weights, notes)


def is_ranked(spec: WeightSpec) -> bool:
    """Whether an int4 conversion may store this weight in 4 bits, and its sensitivity counts."""
    return spec.role is not Role.NORM and spec.role not in _ALWAYS_INT8


def sensitivity(blocks: Iterable[np.ndarray]) -> float:
    """NNCF's data-free score of a matrix: the lower, the more it loses already by 8 bits.

    blocks    row blocks of the matrix in any order, each [rows, in] float32
    returns   1 / (largest mean squared error of a row in int8 asymmetric + 1.19e-7)
    raises    CheckpointError if a weight is NaN or infinite
    """
    worst = max(float(row_errors(block, INT8_ASYM).max()) for block in blocks)
    return 1.0 / (worst + float(np.finfo(np.float32).eps))


def _uniform(weight_format: str, group_size: int | None, sym: bool, ratio: float) -> Recipe:
    """A recipe with one scheme for all matrices."""
    if ratio < 1.0:
        raise UsageError(
            f"a ratio of {ratio} mixes int4 with int8; {weight_format} has nothing to mix",
            hint="take int4 for a mixture: --weight-format int4",
        )
    notes: tuple[str, ...] = ()
    if group_size not in {None, CHANNEL_WISE}:
        notes = (f"the group size {group_size} is for int4 and is not used: {weight_format} has no groups",)
    return Recipe(weight_format, sym, CHANNEL_WISE, ratio, notes=notes)


def _fitting(group_size: int, inputs: int) -> int:
    """The largest group size, at most `group_size`, that divides a row; channel-wise if none does."""
    sizes = (size for size in GROUP_SIZES if size <= group_size and inputs % size == 0)
    return next(sizes, CHANNEL_WISE)


def _choose_group_size(matrices: list[WeightSpec]) -> tuple[int, tuple[str, ...]]:
    """The default group size, or the one that all matrices take instead, and what must be said."""
    roles: dict[int, list[Role]] = {}
    for spec in matrices:
        if spec.role not in roles.setdefault(spec.shape[1], []):
            roles[spec.shape[1]].append(spec.role)
    sizes = {inputs: _fitting(DEFAULT_GROUP_SIZE, inputs) for inputs in roles}
    notes = tuple(
        f"rows of {inputs} numbers ({', '.join(roles[inputs])}) are not divisible by {DEFAULT_GROUP_SIZE}: "
        + ("they get one scale each" if size == CHANNEL_WISE else f"their group size is {size}")
        for inputs, size in sizes.items()
        if size != DEFAULT_GROUP_SIZE
    )
    distinct = set(sizes.values())
    return (distinct.pop() if len(distinct) == 1 else DEFAULT_GROUP_SIZE), notes


def _require_divisible(matrices: list[WeightSpec], scheme: Scheme) -> None:
    if scheme.group_size == CHANNEL_WISE:
        return
    for spec in matrices:
        inputs = spec.shape[1]
        if inputs % scheme.group_size:
            possible = [size for size in GROUP_SIZES if all(m.shape[1] % size == 0 for m in matrices)]
            raise SchemeError(
                f"a group size of {scheme.group_size} does not divide the {inputs} inputs of {spec.name}; "
                f"possible for this model: {', '.join(map(str, [*possible, CHANNEL_WISE]))}",
                hint="take one of these; -1 is one scale per row",
            )


def _int8_by_ratio(
    matrices: list[WeightSpec], ratio: float, scores: Mapping[str, float] | None
) -> frozenset[str]:
    """Names of the matrices that stay at 8 bits: NNCF's rule, which stops before it reaches the ratio.

    source   NNCF 3.4, MixedPrecisionCriterion: ascending by score, equal scores in the model's
             order; the first matrix that would reach the ratio ends it, even if a later one fits
    """
    if scores is None:
        raise ValueError("a ratio below 1 needs the score of every matrix")
    total = sum(spec.elements for spec in matrices)
    taken = 0
    ranked = sorted(matrices, key=lambda spec: scores[spec.name])
    for index, spec in enumerate(ranked):
        if (taken + spec.elements) / total >= ratio:
            return frozenset(rest.name for rest in ranked[index:])
        taken += spec.elements
    return frozenset()
