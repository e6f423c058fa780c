"""The search for better scales: never worse than rounding by range, and better by what is promised."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aipc.conversion import scale_search
from aipc.conversion.quantize import FP16, INT8_ASYM, INT8_SYM, Packed, Scheme, dequantize, quantize
from aipc.conversion.scale_search import quantize_least_squares
from aipc.errors import CheckpointError, SchemeError
from test_quantize import awkward_rows

SCHEMES = [Scheme(4, symmetric, size) for symmetric in (True, False) for size in (256, 128, 64, 32, -1)]
by_name = pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)


def squared_errors(weight: np.ndarray, packed: Packed) -> np.ndarray:
    """Of each group with the stored scale, in float64."""
    codes = packed.codes.reshape(packed.scale.size, -1).astype(np.float64)
    if packed.zero_point is not None:
        codes -= packed.zero_point.reshape(-1, 1)
    restored = codes * packed.scale.reshape(-1, 1).astype(np.float64)
    return np.sum((weight.reshape(codes.shape).astype(np.float64) - restored) ** 2, axis=1)


def rms_share(weight: np.ndarray, scheme: Scheme) -> float:
    """The rms error as a share of that of plain rounding."""
    ours, plain = (squared_errors(weight, f(weight, scheme)) for f in (quantize_least_squares, quantize))
    return float(np.sqrt(ours.sum() / plain.sum()))


@by_name
@pytest.mark.parametrize("factor", [1, 1e-4, 1e-6, 5])
def test_no_group_is_worse(scheme: Scheme, factor: float) -> None:
    for seed in range(8):
        weight = awkward_rows(seed, 1024) * np.float32(factor)
        ours, plain = quantize_least_squares(weight, scheme), quantize(weight, scheme)
        assert (squared_errors(weight, ours) <= squared_errors(weight, plain)).all()


@settings(deadline=None, max_examples=200)
@given(st.lists(st.floats(-1e4, 1e4, width=32), min_size=32, max_size=32), st.booleans())
def test_no_group_is_worse_whatever_it_holds(numbers: list[float], symmetric: bool) -> None:
    weight = np.array([numbers], dtype=np.float32)
    scheme = Scheme(4, symmetric, 32)
    ours, plain = quantize_least_squares(weight, scheme), quantize(weight, scheme)
    assert squared_errors(weight, ours) <= squared_errors(weight, plain)


@pytest.mark.parametrize(
    ("scheme", "share"),
    [
        (Scheme(4, True, 128), 0.94),
        (Scheme(4, True, 32), 0.95),
        (Scheme(4, True, -1), 0.82),
        (Scheme(4, False, 128), 0.95),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_normally_distributed_weights_lose_less(scheme: Scheme, share: float) -> None:
    weight = np.random.default_rng(0).standard_normal((256, 3072), np.float32) * np.float32(0.02)
    assert rms_share(weight, scheme) <= share


def test_it_comes_near_a_search_over_every_scale() -> None:
    weight = np.random.default_rng(1).standard_normal((2000, 128), np.float32)
    scheme = Scheme(4, True, 128)
    plain = quantize(weight, scheme).scale.astype(np.float32)
    best = squared_errors(weight, quantize(weight, scheme))
    for factor in [*np.arange(0.75, 1.35, 0.01), *-np.arange(0.75, 1.35, 0.01)]:
        codes = np.clip(np.rint(weight / plain * np.float32(factor)), -8, 7)
        scale = np.sum(weight * codes, axis=1) / np.sum(codes * codes, axis=1)
        best = np.minimum(best, np.sum((weight - codes * scale[:, None]) ** 2, axis=1))
    ours = squared_errors(weight, quantize_least_squares(weight, scheme))
    assert np.sqrt(ours.sum() / best.sum()) < 1.006


@by_name
def test_codes_are_in_range_and_of_the_same_types(scheme: Scheme) -> None:
    weight = awkward_rows(seed=5)
    ours, plain = quantize_least_squares(weight, scheme), quantize(weight, scheme)
    low, high = scheme.code_range
    assert (ours.codes.min(), ours.codes.max()) == (low, high)
    for part in ("codes", "scale", "zero_point"):
        a, b = getattr(ours, part), getattr(plain, part)
        assert (a is None) == (b is None)
        assert a is None or (a.dtype, a.shape) == (b.dtype, b.shape)
    if not scheme.symmetric:
        np.testing.assert_array_equal(ours.zero_point, plain.zero_point)


@by_name
def test_what_is_exact_stays_exact(scheme: Scheme) -> None:
    weight = np.tile(np.arange(-8, 8, dtype=np.float32) / 4, (3, 16))
    np.testing.assert_array_equal(dequantize(quantize_least_squares(weight, scheme)), weight)


@by_name
def test_a_row_depends_on_nothing_but_itself(scheme: Scheme, monkeypatch: pytest.MonkeyPatch) -> None:
    weight = awkward_rows(seed=3)
    whole = quantize_least_squares(weight, scheme)
    monkeypatch.setattr(scale_search, "_CHUNK_ELEMENTS", 1_000)
    for rows in (slice(0, 1), slice(3, 11), slice(5, None, 3)):
        block = quantize_least_squares(weight[rows], scheme)
        np.testing.assert_array_equal(block.codes, whole.codes[rows])
        np.testing.assert_array_equal(block.scale, whole.scale[rows])


@pytest.mark.parametrize("scheme", [FP16, INT8_SYM, INT8_ASYM], ids=lambda scheme: scheme.name)
def test_other_bits_are_rounded_as_ever(scheme: Scheme) -> None:
    weight = awkward_rows(seed=6)
    np.testing.assert_array_equal(
        dequantize(quantize_least_squares(weight, scheme)), dequantize(quantize(weight, scheme))
    )


def test_bad_weights_are_refused_as_ever() -> None:
    weight = np.ones((2, 128), np.float32)
    for bad, error in ((np.nan, CheckpointError), (np.inf, CheckpointError), (-3e38, SchemeError)):
        weight[1, 7] = bad
        with pytest.raises(error):
            quantize_least_squares(weight, Scheme(4, True, 128))
