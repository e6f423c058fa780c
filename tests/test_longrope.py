"""The family on both sides of LongRoPE's border, and who is computed with which factors."""

from __future__ import annotations

import numpy as np
import pytest

from aipc.longrope import Crossings, border_in, takes_long_factors
from aipc.phi3 import Phi3Config
from aipc.runtimes.reference import KVCache, ReferenceSession
from family import FAMILY, FamilyAnswer, load_family

RTOL = 1e-4


def reference(answer: FamilyAnswer) -> ReferenceSession:
    return ReferenceSession(Phi3Config.parse(answer.config), answer.weights)


def error(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("member", FAMILY)
def test_each_member_computes_what_transformers_does(member: str) -> None:
    answer = load_family(member)
    assert error(reference(answer).logits(answer.ids(50))[-1], answer.logits[50]) < RTOL


@pytest.mark.parametrize(("member", "tokens"), [("phi-3.5-mini", 4096), ("phi-4-mini", 4097)])
def test_both_sides_of_the_border_are_those_of_transformers(member: str, tokens: int) -> None:
    answer = load_family(member)
    assert error(reference(answer).logits(answer.ids(tokens))[-1], answer.logits[tokens]) < RTOL


@pytest.mark.parametrize("member", ["phi-3-mini-128k", "phi-3.5-mini", "phi-3-medium-128k", "phi-4-mini"])
def test_the_wrong_factors_would_be_noticed(member: str) -> None:
    answer = load_family(member)
    session = reference(answer)
    hidden = session._forward(answer.ids(50), KVCache(session.config, long=True))
    assert error(session._open_decoder().head(hidden[-1]), answer.logits[50]) > 200 * RTOL


@pytest.mark.parametrize(
    ("border", "prompt", "new", "long"),
    [
        (4096, 4096, 1, False),
        (4096, 4096, 2, True),
        (4096, 4097, 1, True),
        (4096, 100, 1024, False),
        (4096, 3073, 1024, False),
        (4096, 3073, 1025, True),
        (None, 10**6, 10**6, False),
    ],
)
def test_all_that_a_request_may_come_to_decides(
    border: int | None, prompt: int, new: int, long: bool
) -> None:
    assert takes_long_factors(border, prompt, new) is long


def test_a_chat_that_crosses_is_prefilled_anew_once() -> None:
    crossings = Crossings(100)
    chat = list(range(60))
    other = [7, 7, 7]
    assert crossings.add(chat, 20) == (False, False)
    assert crossings.add(other, 20) == (False, False)
    assert crossings.add(chat + list(range(30)), 11) == (False, False)
    assert crossings.add(chat + list(range(35)), 20) == (True, True)
    assert crossings.add(chat + list(range(50)), 20) == (True, False)
    assert crossings.add([9] * 99, 20) == (True, False), "it begins beyond the border"
    assert crossings.add(other, 5) == (False, False)
    assert crossings.add([*other, 1], 200) == (True, True)


def test_a_model_without_a_border_has_no_factors_to_speak_of() -> None:
    crossings = Crossings(None)
    assert crossings.add([1] * 5000, 5000) == (None, False)
    assert crossings.add([1] * 9000, 5000) == (None, False)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"rope_scaling": None},
        {"rope_scaling": "su"},
        {"rope_scaling": {"type": "linear"}, "max_position_embeddings": 9},
        {"rope_scaling": {"type": ["su"]}},
    ],
)
def test_a_folder_without_longrope_has_no_border(config: dict[str, object]) -> None:
    assert border_in(config) is None
