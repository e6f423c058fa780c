"""Which weight gets which scheme, what is said about it, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from aipc.conversion.quantize import FP16, INT8_ASYM, INT8_SYM, Scheme, packed_nbytes
from aipc.conversion.recipe import is_ranked, make_recipe, sensitivity
from aipc.errors import CheckpointError, SchemeError, UsageError
from aipc.phi3 import Phi3Config, Role, WeightSpec

CONFIG = Phi3Config(
    hidden_size=256,
    intermediate_size=512,
    layers=2,
    attention_heads=4,
    kv_heads=4,
    vocab_size=320,
    context_length=512,
    rope_theta=1e4,
    rotary_size=64,
    rms_norm_eps=1e-5,
    sliding_window=None,
    tied_embeddings=False,
    eos_ids=(2,),
)


def schemes(recipe, config: Phi3Config = CONFIG) -> dict[Role, set[Scheme | None]]:
    found: dict[Role, set[Scheme | None]] = {}
    for spec in config.weights():
        found.setdefault(spec.role, set()).add(recipe.scheme_for(spec))
    return found


def ranked(config: Phi3Config = CONFIG) -> list[WeightSpec]:
    return [spec for spec in config.weights() if is_ranked(spec)]


def test_the_default_is_what_every_device_takes() -> None:
    int4 = {Scheme(4, True, 128)}
    recipe = make_recipe(CONFIG)
    assert schemes(recipe) == {
        Role.EMBEDDING: {INT8_ASYM},
        Role.HEAD: {INT8_ASYM},
        Role.NORM: {None},
        **dict.fromkeys((Role.QKV, Role.ATTENTION_OUTPUT, Role.GATE_UP, Role.DOWN), int4),
    }
    assert recipe.notes == ()


@pytest.mark.parametrize(
    ("weight_format", "sym", "expected"),
    [("fp16", True, FP16), ("fp16", False, FP16), ("int8", True, INT8_SYM), ("int8", False, INT8_ASYM)],
)
def test_one_scheme_for_all_matrices(weight_format: str, sym: bool, expected: Scheme) -> None:
    found = schemes(make_recipe(CONFIG, weight_format=weight_format, sym=sym))
    assert found.pop(Role.NORM) == {None}
    assert set.union(*found.values()) == {expected}


@pytest.mark.parametrize("group_size", [32, 64, 128, 256, -1])
@pytest.mark.parametrize("sym", [True, False])
def test_the_group_size_asked_for_is_taken(group_size: int, sym: bool) -> None:
    recipe = make_recipe(CONFIG, group_size=group_size, sym=sym)
    assert schemes(recipe)[Role.DOWN] == {Scheme(4, sym, group_size)}
    assert recipe.group_size == group_size


def test_roles_decide_and_names_do_not() -> None:
    recipe = make_recipe(CONFIG)
    head_in_disguise = WeightSpec("model.layers.0.norm.weight", (8, 256), Role.HEAD)
    matrix_in_disguise = WeightSpec("lm_head.weight", (8, 256), Role.DOWN)
    assert recipe.scheme_for(head_in_disguise) == INT8_ASYM
    assert recipe.scheme_for(matrix_in_disguise) == Scheme(4, True, 128)


def test_a_smaller_default_group_is_said_aloud() -> None:
    config = replace(CONFIG, intermediate_size=512 + 64)
    recipe = make_recipe(config)
    assert schemes(recipe, config)[Role.DOWN] == {Scheme(4, True, 64)}
    assert schemes(recipe, config)[Role.QKV] == {Scheme(4, True, 128)}
    assert recipe.group_size == 128
    (note,) = recipe.notes
    assert "576" in note
    assert "down" in note
    assert "group size is 64" in note


def test_channel_wise_where_no_group_fits_is_said_aloud() -> None:
    config = replace(CONFIG, intermediate_size=500)
    recipe = make_recipe(config)
    assert schemes(recipe, config)[Role.DOWN] == {Scheme(4, True, -1)}
    (note,) = recipe.notes
    assert "500" in note
    assert "one scale each" in note


def test_a_default_that_all_matrices_leave_is_no_longer_the_recipe_s() -> None:
    config = replace(CONFIG, hidden_size=320, intermediate_size=320)
    recipe = make_recipe(config)
    assert recipe.group_size == 64
    assert "320" in recipe.notes[0]


def test_a_group_size_asked_for_exactly_is_refused_where_it_does_not_fit() -> None:
    config = replace(CONFIG, intermediate_size=512 + 64)
    with pytest.raises(SchemeError) as caught:
        make_recipe(config, group_size=128)
    assert "model.layers.0.mlp.down_proj.weight" in caught.value.message
    assert "576 inputs" in caught.value.message
    assert "64, 32, -1" in caught.value.message
    assert make_recipe(config, group_size=64).notes == ()


def test_a_group_size_that_does_not_exist() -> None:
    with pytest.raises(SchemeError, match="256, 128, 64, 32, -1"):
        make_recipe(CONFIG, group_size=100)


@pytest.mark.parametrize("weight_format", ["fp16", "int8"])
def test_a_group_size_without_groups_is_said_aloud(weight_format: str) -> None:
    (note,) = make_recipe(CONFIG, weight_format=weight_format, group_size=128).notes
    assert "128" in note
    assert weight_format in note
    assert make_recipe(CONFIG, weight_format=weight_format, group_size=-1).notes == ()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ({"weight_format": "int3"}, "int4, int8, fp16"),
        ({"ratio": 0.0}, "above 0"),
        ({"ratio": 1.5}, "at most 1"),
        ({"ratio": float("nan")}, "nan"),
        ({"weight_format": "int8", "ratio": 0.5}, "nothing to mix"),
    ],
)
def test_words_that_do_not_exist(words: dict[str, object], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        make_recipe(CONFIG, **words)


ELEMENTS = {spec.name: spec.elements for spec in ranked()}
TOTAL = sum(ELEMENTS.values())


def int4_names(ratio: float, scores: dict[str, float]) -> list[str]:
    recipe = make_recipe(CONFIG, ratio=ratio, scores=scores)
    return [spec.name for spec in ranked() if recipe.scheme_for(spec).bits == 4]


def test_the_lowest_scores_become_int4_until_the_ratio() -> None:
    names = list(ELEMENTS)
    scores = {name: float(len(names) - index) for index, name in enumerate(names)}
    taken = int4_names(0.5, scores)
    assert taken == names[-len(taken) :]
    share = sum(ELEMENTS[name] for name in taken) / TOTAL
    following = ELEMENTS[names[-len(taken) - 1]] / TOTAL
    assert share < 0.5 <= share + following


def test_the_matrix_that_reaches_the_ratio_is_left_out_and_ends_it() -> None:
    names = list(ELEMENTS)
    first, second = names[0], names[1]
    scores = dict.fromkeys(names, 3.0) | {first: 1.0, second: 2.0}
    exactly = (ELEMENTS[first] + ELEMENTS[second]) / TOTAL
    assert int4_names(exactly, scores) == [first]
    assert set(int4_names(exactly + 1e-9, scores)) == {first, second}
    # A small matrix behind a large one that no longer fits is not taken.
    assert int4_names(ELEMENTS[first] / TOTAL, scores) == []


def test_equal_scores_keep_the_order_of_the_model() -> None:
    names = list(ELEMENTS)
    taken = int4_names(0.6, dict.fromkeys(names, 1.0))
    assert taken == names[: len(taken)]
    assert taken


def test_what_a_ratio_leaves_is_int8_asymmetric_and_listed() -> None:
    names = list(ELEMENTS)
    recipe = make_recipe(CONFIG, ratio=0.5, scores=dict.fromkeys(names, 1.0))
    left = {spec.name for spec in ranked() if recipe.scheme_for(spec) == INT8_ASYM}
    assert left == recipe.int8_weights == set(recipe.describe()["int8_weights"])
    assert Counter(recipe.scheme_for(spec).bits for spec in ranked()).keys() == {4, 8}


def test_a_ratio_needs_scores() -> None:
    with pytest.raises(ValueError, match="score of every matrix"):
        make_recipe(CONFIG, ratio=0.5)


def test_embedding_and_head_are_not_ranked() -> None:
    roles = {spec.role for spec in ranked()}
    assert roles == {Role.QKV, Role.ATTENTION_OUTPUT, Role.GATE_UP, Role.DOWN}


def test_sensitivity_is_the_same_however_the_rows_come() -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((30, 64)).astype(np.float32)
    whole = sensitivity([weight])
    assert sensitivity([weight[20:], weight[:7], weight[7:20]]) == whole
    assert sensitivity([weight * np.float32(10)]) < whole
    worst_row = max(range(30), key=lambda row: np.ptp(weight[row]))
    assert sensitivity([weight[worst_row : worst_row + 1]]) == pytest.approx(whole, rel=0.2)


def test_sensitivity_of_zeros_is_finite() -> None:
    assert sensitivity([np.zeros((2, 32), np.float32)]) == pytest.approx(2.0**23)


def test_sensitivity_refuses_what_is_no_number() -> None:
    with pytest.raises(CheckpointError):
        sensitivity([np.full((2, 32), np.nan, np.float32)])


def test_the_description_is_json() -> None:
    recipe = make_recipe(
        replace(CONFIG, intermediate_size=500), ratio=0.5, scores=dict.fromkeys(ELEMENTS, 1.0)
    )
    described = json.loads(json.dumps(recipe.describe()))
    assert described["weight_format"] == "int4"
    assert described["ratio"] == 0.5
    assert described["quant_method"] == "rtn"
    assert described["notes"] == list(recipe.notes)


@pytest.mark.parametrize("weight_format", ["int4", "int8", "fp16"])
def test_the_size_of_a_model_is_the_sum_of_its_weights(weight_format: str) -> None:
    recipe = make_recipe(CONFIG, weight_format=weight_format)
    sizes = [packed_nbytes(spec.shape, recipe.scheme_for(spec)).total for spec in CONFIG.weights()]
    assert recipe.nbytes(CONFIG.weights()) == sum(sizes)
    matrices = CONFIG.parameters * {"int4": 4, "int8": 8, "fp16": 16}[weight_format] / 8
    assert matrices <= sum(sizes) <= 1.3 * matrices
