"""The quantiser against its rules written plainly, against its error bounds, and against bad input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aipc.conversion.quantize import (
    FP16,
    INT8_ASYM,
    INT8_SYM,
    Scheme,
    dequantize,
    pack_nibbles,
    packed_nbytes,
    quantize,
    row_errors,
    unpack_nibbles,
)
from aipc.errors import CheckpointError, SchemeError

INTEGER_SCHEMES = (
    INT8_SYM,
    INT8_ASYM,
    *(Scheme(4, symmetric, size) for symmetric in (True, False) for size in (32, 64, 128, 256, -1)),
)
EPS = np.float32(2**-23)


def plainly(group: np.ndarray, scheme: Scheme) -> tuple[np.ndarray, np.float32, int]:
    """Codes, scale and zero point of one group, by the rule, one step after the other."""
    low, high = np.float32(group.min()), np.float32(group.max())
    if scheme.symmetric:
        half = 2 ** (scheme.bits - 1)
        scale = (abs(low) if abs(low) >= high else -high) / np.float32(half)
        scale = EPS if abs(scale) < EPS else scale
        return np.clip(np.rint(group / scale), -half, half - 1), scale, 0
    top = 2**scheme.bits - 1
    low, high = min(low, np.float32(0)), max(high, np.float32(0))
    scale = max((high - low) / np.float32(top), EPS)
    zero = int(np.clip(-np.rint(low / scale), 0, top))
    return np.clip(np.rint(group / scale + np.float32(zero)), 0, top), scale, zero


def awkward_rows(seed: int, inputs: int = 256) -> np.ndarray:
    """Rows of every kind that a rule could trip over, [rows, inputs] float32."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((4, inputs))
    rows = [
        *normal,
        *(rng.standard_t(1.5, (2, inputs)) * 0.02),
        np.abs(normal[0]),
        -np.abs(normal[1]),
        np.zeros(inputs),
        np.full(inputs, -0.0),
        np.full(inputs, 0.3),
        np.full(inputs, -0.3),
        np.where(normal[0] > 0, 1.0, -1.0),
        np.where(normal[0] > 0, np.abs(normal[1]), 0.0),
        np.where(normal[0] > 0, -np.abs(normal[1]), -0.0),
        rng.integers(-16, 17, inputs) / 2,
        normal[0] * 1e-5,
        normal[0] * 1e-7,
        normal[0] * 1e-40,
        normal[0] * 1e4,
    ]
    return np.array(rows, dtype=np.float32)


def as_groups(weight: np.ndarray, scheme: Scheme) -> np.ndarray:
    return weight.reshape(len(weight) * scheme.groups(weight.shape[1]), -1)


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES, ids=lambda scheme: scheme.name)
def test_follows_the_rule(scheme: Scheme) -> None:
    weight = awkward_rows(seed=0)
    packed = quantize(weight, scheme)

    expected = [plainly(group, scheme) for group in as_groups(weight, scheme)]
    codes, scales, zeros = (np.array(part) for part in zip(*expected, strict=True))
    assert packed.codes.dtype == (np.int8 if scheme.symmetric else np.uint8)
    np.testing.assert_array_equal(packed.codes, codes.reshape(weight.shape))
    np.testing.assert_array_equal(packed.scale, scales.astype(np.float16).reshape(len(weight), -1))
    if scheme.symmetric:
        assert packed.zero_point is None
    else:
        assert packed.zero_point.dtype == np.uint8
        np.testing.assert_array_equal(packed.zero_point, zeros.reshape(len(weight), -1))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=32, max_size=32), st.sampled_from(INTEGER_SCHEMES[:2])
)
def test_follows_the_rule_on_any_group(numbers: list[float], eight_bit: Scheme) -> None:
    weight = np.array([numbers], dtype=np.float32)
    for scheme in (eight_bit, Scheme(4, eight_bit.symmetric, 32)):
        codes, scale, zero = plainly(weight, scheme)
        packed = quantize(weight, scheme)
        np.testing.assert_array_equal(packed.codes, codes)
        assert packed.scale.item() == np.float16(scale)
        assert packed.zero_point is None or packed.zero_point.item() == zero


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES, ids=lambda scheme: scheme.name)
def test_error_bound(scheme: Scheme) -> None:
    weight = awkward_rows(seed=1)
    packed = quantize(weight, scheme)
    restored = dequantize(packed)

    codes = as_groups(packed.codes.astype(np.float64), scheme)
    scale = np.abs(packed.scale.astype(np.float64).reshape(-1, 1))
    steps = np.abs(codes if scheme.symmetric else codes - packed.zero_point.reshape(-1, 1))
    clipped = scheme.symmetric & (codes == 2 ** (scheme.bits - 1) - 1)
    # The stored scale is itself rounded: where the bound speaks of the one before, allow for that.
    exact_scale = scale * (1 + 2.0**-10) + 2.0**-25
    bound = exact_scale * np.where(clipped, 1.0, 0.5) + steps * np.maximum(scale * 2.0**-11, 2.0**-25)
    error = np.abs(as_groups(weight.astype(np.float64) - restored, scheme))
    assert (error <= bound * (1 + 1e-6)).all()
    # And it is a bound worth having: random weights come near it.
    assert (error[: len(error) // 5] > 0.4 * scale[: len(error) // 5]).any()


def test_fp16_error_bound() -> None:
    weight = awkward_rows(seed=2)
    error = np.abs(weight.astype(np.float64) - dequantize(quantize(weight, FP16)))
    assert (error <= np.maximum(np.abs(weight) * 2.0**-11, 2.0**-25)).all()


@pytest.mark.parametrize("scheme", [*INTEGER_SCHEMES, FP16], ids=lambda scheme: scheme.name)
def test_a_row_depends_on_nothing_but_itself(scheme: Scheme) -> None:
    weight = awkward_rows(seed=3)
    whole = quantize(weight, scheme)
    for rows in (slice(0, 1), slice(3, 11), slice(5, None, 3)):
        block = quantize(weight[rows], scheme)
        for part in ("codes", "scale", "zero_point"):
            expected = getattr(whole, part)
            if expected is not None:
                np.testing.assert_array_equal(getattr(block, part), expected[rows])


def test_the_weight_is_left_alone() -> None:
    weight = awkward_rows(seed=4)
    before = weight.copy()
    for scheme in (*INTEGER_SCHEMES, FP16):
        quantize(weight, scheme)
        if scheme is not FP16:
            row_errors(weight, scheme)
    np.testing.assert_array_equal(weight, before)


def test_without_a_scheme_a_weight_is_kept() -> None:
    norm = np.linspace(0.5, 1.5, 7, dtype=np.float32)
    packed = quantize(norm, None)
    assert packed.scheme is None
    np.testing.assert_array_equal(dequantize(packed), norm)
    assert packed_nbytes(norm.shape, None).total == norm.nbytes


@pytest.mark.parametrize("scheme", [*INTEGER_SCHEMES, FP16], ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("rows", [1, 5, 8])
def test_sizes_are_known_beforehand(scheme: Scheme, rows: int) -> None:
    weight = np.ones((rows, 256), dtype=np.float32)
    packed = quantize(weight, scheme)

    def stored(part: np.ndarray | None, *, nibbles: bool) -> int:
        if part is None:
            return 0
        return (pack_nibbles(part) if nibbles else part).nbytes

    size = packed_nbytes(weight.shape, scheme)
    assert size.codes == stored(packed.codes, nibbles=scheme.bits == 4)
    assert size.scale == stored(packed.scale, nibbles=False)
    assert size.zero_point == stored(packed.zero_point, nibbles=scheme.bits == 4)
    assert size.total == size.codes + size.scale + size.zero_point


def test_the_first_code_is_in_the_low_nibble() -> None:
    np.testing.assert_array_equal(pack_nibbles(np.array([[1, -2], [7, -8]], np.int8)), [0xE1, 0x87])
    np.testing.assert_array_equal(pack_nibbles(np.array([1, 15, 9], np.uint8)), [0xF1, 0x09])


@pytest.mark.parametrize("shape", [(3, 32), (5, 1), (4, 2, 8)])
@pytest.mark.parametrize("signed", [True, False])
def test_packing_can_be_undone(shape: tuple[int, ...], signed: bool) -> None:
    rng = np.random.default_rng(0)
    dtype = np.int8 if signed else np.uint8
    codes = rng.integers(-8 if signed else 0, 8 if signed else 16, shape).astype(dtype)
    restored = unpack_nibbles(pack_nibbles(codes), shape, signed=signed)
    assert restored.dtype == dtype
    np.testing.assert_array_equal(restored, codes)


def test_row_errors_are_those_of_unrounded_scales() -> None:
    weight = awkward_rows(seed=5)
    for scheme in (INT8_ASYM, Scheme(4, True, 64)):
        errors = [
            np.mean(((codes - np.float32(zero)) * scale - group) ** 2, dtype=np.float64)
            for group in as_groups(weight, scheme)
            for codes, scale, zero in [plainly(group, scheme)]
        ]
        expected = np.array(errors).reshape(len(weight), -1).mean(axis=1)
        np.testing.assert_allclose(row_errors(weight, scheme), expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((3,), "3 bits"),
        ((16, False), "float16"),
        ((8, True, 128), "8-bit weights cannot have a group size of 128"),
        ((4, True, 100), "possible: 256, 128, 64, 32, -1"),
        ((4, True, 0), "group size of 0"),
    ],
)
def test_schemes_that_do_not_exist(arguments: tuple[int, ...], words: str) -> None:
    with pytest.raises(SchemeError, match=words):
        Scheme(*arguments)


def test_names() -> None:
    schemes = (FP16, INT8_SYM, INT8_ASYM, Scheme(4), Scheme(4, False, 32))
    assert [scheme.name for scheme in schemes] == [
        "fp16",
        "int8_sym",
        "int8_asym",
        "int4_sym",
        "int4_asym_g32",
    ]


def test_a_group_size_must_divide_the_row() -> None:
    weight = np.ones((2, 96), dtype=np.float32)
    scheme = Scheme(4, True, 64)
    for refused in (lambda: quantize(weight, scheme), lambda: packed_nbytes(weight.shape, scheme)):
        with pytest.raises(SchemeError, match="64 does not divide a row of 96"):
            refused()


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("scheme", [INT8_SYM, Scheme(4, False, 32), FP16], ids=lambda scheme: scheme.name)
def test_weights_that_are_no_numbers(bad: float, scheme: Scheme) -> None:
    for sign in (1.0, -1.0):
        weight = np.full((2, 32), sign, dtype=np.float32)
        weight[1, 7] = bad
        with pytest.raises(CheckpointError, match="NaN or infinite"):
            quantize(weight, scheme)


@pytest.mark.parametrize("scheme", INTEGER_SCHEMES[:3], ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("reach", [1e8, 3e38])
def test_a_scale_beyond_float16_is_refused(scheme: Scheme, reach: float) -> None:
    weight = np.full((2, 32), reach, dtype=np.float32)
    weight[0, 0] = -reach
    with pytest.raises(SchemeError, match="scales are float16"):
        quantize(weight if scheme.bits == 8 else np.tile(weight, 4), scheme)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_weight_beyond_float16_is_refused(sign: int) -> None:
    fits = np.full((1, 32), sign * 65_519.0, dtype=np.float32)
    assert quantize(fits, FP16).codes[0, 0] == sign * 65_504
    fits[0, 3] = sign * 65_520.0
    with pytest.raises(SchemeError, match=f"a weight of {sign * 65_520} is beyond float16") as caught:
        quantize(fits, FP16)
    assert "int8" in caught.value.hint


def test_only_float32_is_quantised() -> None:
    with pytest.raises(TypeError, match="float64"):
        quantize(np.ones((2, 32)), INT8_SYM)
