"""Codes, scales, zero points and the choice of a ratio against NNCF itself, bit for bit."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from aipc.conversion.quantize import INT8_ASYM, INT8_SYM, Packed, Scheme, quantize, unpack_nibbles
from aipc.conversion.recipe import is_ranked, make_recipe, sensitivity
from aipc.phi3 import Phi3Config, Role, WeightSpec

pytestmark = pytest.mark.nncf

SCHEMES = (
    INT8_SYM,
    INT8_ASYM,
    *(Scheme(4, symmetric, size) for size in (256, 128, 64, 32, -1) for symmetric in (True, False)),
)
CONFIG = Phi3Config(
    hidden_size=128,
    intermediate_size=256,
    layers=4,
    attention_heads=4,
    kv_heads=2,
    vocab_size=160,
    context_length=512,
    rope_theta=1e4,
    rotary_size=32,
    rms_norm_eps=1e-5,
    sliding_window=None,
    tied_embeddings=False,
    eos_ids=(2,),
)


@pytest.fixture(scope="module")
def nncf() -> Iterator[ModuleType]:
    """NNCF without telemetry: where that package is out of reach, it and OpenVINO take a stub.

    Importing either would otherwise write to the home directory and send an event.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "openvino_telemetry", None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip("openvino")
            module = pytest.importorskip("nncf")
        module.set_log_level(logging.ERROR)
        yield module


@dataclass(frozen=True)
class Stored:
    """What NNCF stored of one matrix, in our shapes."""

    element_type: str
    codes: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray | None


def compress(nncf: ModuleType, model: Any, scheme: Scheme, **options: Any) -> dict[str, Stored]:
    """Compress a model whose weights are constants w.NAME; what became of each, by name."""
    mode = getattr(nncf.CompressWeightsMode, f"INT{scheme.bits}_{'SYM' if scheme.symmetric else 'ASYM'}")
    if scheme.bits == 4:
        options["group_size"] = scheme.group_size
    compressed = nncf.compress_weights(model, mode=mode, **options)
    constants = {
        node.get_friendly_name(): node
        for node in compressed.get_ordered_ops()
        if node.get_type_name() == "Constant"
    }
    names = [name for name in constants if name.startswith("w.") and f"{name}/scale" in constants]
    return {name.removeprefix("w."): stored(constants, name) for name in names}


def stored(constants: Mapping[str, Any], name: str) -> Stored:
    codes = constants[name]
    rows = codes.shape[0]
    zero_point = constants.get(f"{name}/zero_point")
    return Stored(
        codes.get_element_type().get_type_name(),
        numbers(codes).reshape(rows, -1),
        numbers(constants[f"{name}/scale"]).reshape(rows, -1),
        None if zero_point is None else numbers(zero_point).reshape(rows, -1),
    )


def numbers(constant: Any) -> np.ndarray:
    kind = constant.get_element_type().get_type_name()
    if kind in {"i4", "u4"}:
        packed = np.array(constant.data).view(np.uint8)
        return unpack_nibbles(packed, tuple(constant.shape), signed=kind == "i4")
    return np.array(constant.data)


def assert_same_bits(ours: Packed, theirs: Stored) -> None:
    np.testing.assert_array_equal(ours.codes, theirs.codes)
    np.testing.assert_array_equal(ours.scale.view(np.uint16), theirs.scale.view(np.uint16))
    assert (ours.zero_point is None) == (theirs.zero_point is None)
    if ours.zero_point is not None:
        np.testing.assert_array_equal(ours.zero_point, theirs.zero_point)


def constant(name: str, weight: np.ndarray, dtype: str = "f32") -> Any:
    """A weight as an export writes it: a constant, and a conversion where it is not float32."""
    import openvino as ov
    from openvino import opset13 as ops

    node = ops.constant(weight, dtype=getattr(ov.Type, dtype), name=f"w.{name}")
    return node if dtype == "f32" else ops.convert(node, ov.Type.f32)


def parallel_model(weights: Mapping[str, np.ndarray], dtype: str) -> Any:
    """Every weight in a product of its own."""
    import openvino as ov
    from openvino import opset13 as ops

    inputs, products = [], []
    for name, weight in weights.items():
        inputs.append(ops.parameter([-1, weight.shape[1]], np.float32, name=f"in.{name}"))
        node = constant(name, weight, dtype)
        products.append(ops.matmul(inputs[-1], node, False, True, name=name))
    return ov.Model(products, inputs)


def to_bfloat16(weight: np.ndarray) -> np.ndarray:
    return (weight.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def to_float16(weight: np.ndarray) -> np.ndarray:
    return weight.astype(np.float16).astype(np.float32)


ROUNDED = {"f32": lambda weight: weight, "bf16": to_bfloat16, "f16": to_float16}


def kinds_of_weights() -> dict[str, np.ndarray]:
    """Matrices [8, 256] of every kind that a rule could trip over."""
    rng = np.random.default_rng(3)
    shape = (8, 256)
    normal = rng.standard_normal(shape)
    some_rows = normal.copy()
    some_rows[0] = 0
    some_rows[1, :128] = 0
    some_rows[2] = np.abs(some_rows[2])
    some_rows[3] = -np.abs(some_rows[3])
    some_rows[4] *= 1e-30
    some_rows[5] = 0.5
    some_rows[6, ::2] = -0.0
    kinds = {
        "normal": normal,
        "trained": normal * 0.02,
        "heavy_tails": rng.standard_t(1.5, shape) * 0.01,
        "positive": np.abs(normal),
        "negative": -np.abs(normal),
        "constant": np.full(shape, 0.3),
        "minus_constant": np.full(shape, -0.3),
        "zeros": np.zeros(shape),
        "minus_zeros": np.full(shape, -0.0),
        "ties_of_extremes": np.where(normal > 0, 1.0, -1.0),
        "ties_of_rounding": rng.integers(-16, 17, shape) / 2,
        "grid": np.round(normal * 4) / 4,
        "subnormal_scales": normal * 1e-5,
        "smallest_scales": normal * 1e-7,
        "subnormal_weights": normal * 1e-40,
        "large": normal * 1e4,
        "some_rows": some_rows,
    }
    return {name: kind.astype(np.float32) for name, kind in kinds.items()}


@pytest.mark.parametrize(
    ("scheme", "path", "dtype"),
    [
        *((scheme, path, "f32") for scheme in SCHEMES for path in ("openvino", "numpy")),
        *((scheme, "openvino", dtype) for scheme in SCHEMES[:4] for dtype in ("bf16", "f16")),
    ],
    ids=lambda value: value.name if isinstance(value, Scheme) else value,
)
def test_every_bit_is_nncf_s(nncf: ModuleType, scheme: Scheme, path: str, dtype: str) -> None:
    """NNCF computes matrices of 10,000 numbers and more with OpenVINO, smaller ones with numpy."""
    weights = {name: ROUNDED[dtype](weight) for name, weight in kinds_of_weights().items()}
    if path == "openvino":
        weights = {"all": np.vstack(list(weights.values()))}
    assert all((weight.size >= 10_000) == (path == "openvino") for weight in weights.values())

    options = {"all_layers": True} if scheme.bits == 4 else {}
    theirs = compress(nncf, parallel_model(weights, dtype), scheme, **options)
    assert theirs.keys() == weights.keys()
    for name, weight in weights.items():
        assert_same_bits(quantize(weight, scheme), theirs[name])


def phi3_model(config: Phi3Config, weights: Mapping[str, np.ndarray]) -> Any:
    """The matrices of a Phi-3 one after the other, with nothing of its arithmetic in between."""
    import openvino as ov
    from openvino import opset13 as ops

    ids = ops.parameter([-1], np.int64, name="ids")
    hidden = None
    constants = {}
    for spec in config.weights():
        if spec.role is Role.NORM:
            continue
        node = constants[spec.role] = constant(spec.name, weights[spec.name])
        if spec.role is Role.EMBEDDING:
            hidden = ops.gather(node, ids, ops.constant(0))
        else:
            hidden = ops.matmul(first_channels(hidden, spec.shape[1]), node, False, True, name=spec.name)
    if config.tied_embeddings:
        head = constants[Role.EMBEDDING]
        hidden = ops.matmul(first_channels(hidden, config.hidden_size), head, False, True, name="head")
    return ov.Model([hidden], [ids])


def first_channels(hidden: Any, size: int) -> Any:
    from openvino import opset13 as ops

    return ops.slice(hidden, np.array([0]), np.array([size]), np.array([1]), np.array([1]))


def random_weights(config: Phi3Config, *, alike: bool) -> dict[str, np.ndarray]:
    """Weights of many levels of error; or layers that are all the same, so that scores are equal."""
    rng = np.random.default_rng(7)

    def draw(spec: WeightSpec) -> np.ndarray:
        return (rng.standard_t(4, spec.shape) * 10 ** rng.uniform(-3, 0)).astype(np.float32)

    weights = {spec.name: draw(spec) for spec in config.weights()}
    if alike:
        by_role: dict[Role, np.ndarray] = {}
        for spec in config.weights():
            weights[spec.name] = by_role.setdefault(spec.role, weights[spec.name])
    return weights


@pytest.mark.parametrize(
    ("ratio", "tied", "alike"),
    [
        *((ratio, False, False) for ratio in (0.2, 0.5, 0.6, 0.8, 1.0)),
        pytest.param(0.6, True, False, id="0.6-tied"),
        pytest.param(0.5, False, True, id="0.5-equal-scores"),
    ],
)
def test_a_whole_model_is_stored_as_nncf_stores_it(
    nncf: ModuleType, ratio: float, tied: bool, alike: bool
) -> None:
    config = replace(CONFIG, tied_embeddings=tied)
    weights = random_weights(config, alike=alike)
    scores = {spec.name: sensitivity([weights[spec.name]]) for spec in config.weights() if is_ranked(spec)}
    recipe = make_recipe(config, ratio=ratio, scores=scores)

    theirs = compress(nncf, phi3_model(config, weights), Scheme(4, True, 128), ratio=ratio)
    matrices = [spec for spec in config.weights() if spec.role is not Role.NORM]
    assert theirs.keys() == {spec.name for spec in matrices}
    for spec in matrices:
        scheme = recipe.scheme_for(spec)
        assert theirs[spec.name].element_type == {4: "i4", 8: "u8"}[scheme.bits], spec.name
        assert_same_bits(quantize(weights[spec.name], scheme), theirs[spec.name])
    assert {part.element_type for part in theirs.values()} == {"i4", "u8"}
