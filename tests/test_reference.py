"""The numpy reference is transformers' Phi-3, and behaves as a session must."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import golden
from aipc.decoder import rotate, silu, softmax, visible
from aipc.errors import PromptTooLongError, RuntimeFailedError, UsageError
from aipc.phi3 import Phi3Config
from aipc.runtimes.base import Session
from aipc.runtimes.reference import ReferenceSession
from aipc.runtimes.sampling import choose, probabilities
from aipc.types import Sampling
from checkpoints import TINY
from golden import CASES, SAMPLING, Golden, load_golden

LOGITS_RTOL = 1e-4


def open_reference(answer: Golden, **changes: object) -> ReferenceSession:
    return ReferenceSession(Phi3Config.parse({**answer.config, **changes}), answer.weights())


def tiny_session(**overrides: object) -> ReferenceSession:
    config = {**TINY, **overrides}
    return ReferenceSession(Phi3Config.parse(config), golden.make_weights(config, seed=0))


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=LOGITS_RTOL, atol=LOGITS_RTOL * np.abs(expected).max())


@pytest.mark.parametrize("case", CASES)
def test_logits_are_those_of_transformers(case: str) -> None:
    answer = load_golden(case)
    logits = open_reference(answer).logits(answer.prompt + answer.tokens)
    assert logits.shape == (len(answer.prompt) + len(answer.tokens), answer.config["vocab_size"])
    assert logits.dtype == np.float32
    assert_close(logits[list(answer.positions)], answer.logits)


@pytest.mark.parametrize("case", CASES)
def test_greedy_tokens_are_those_of_transformers(case: str) -> None:
    answer = load_golden(case)
    tokens = open_reference(answer).generate(answer.prompt, Sampling(max_new_tokens=len(answer.tokens)))
    assert tuple(tokens) == answer.tokens


@pytest.mark.parametrize("case", CASES)
def test_the_distribution_of_sampling_is_that_of_transformers(case: str) -> None:
    answer = load_golden(case)
    logits = open_reference(answer).logits(answer.prompt)[-1]
    ours = probabilities(logits, answer.prompt, SAMPLING)
    assert np.count_nonzero(ours) == np.count_nonzero(answer.probabilities)
    np.testing.assert_allclose(ours, answer.probabilities, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("case", "changes"),
    [
        ("mha", {"rope_theta": 9000.0}),
        ("mha", {"rms_norm_eps": 1e-3}),
        ("window", {"sliding_window": 9}),
        ("window", {"sliding_window": None}),
        ("partial", {"partial_rotary_factor": 1.0}),
    ],
)
def test_the_golden_logits_notice_a_wrong_model(case: str, changes: Mapping[str, object]) -> None:
    answer = load_golden(case)
    logits = open_reference(answer, **changes).logits(answer.prompt + answer.tokens)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_close(logits[list(answer.positions)], answer.logits)


def test_golden_margins_leave_room_for_rounding() -> None:
    assert min(min(load_golden(case).margins) for case in CASES) >= 0.02


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", CASES)
def test_live_transformers_agrees(case: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", exc_type=ImportError)
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    answer = load_golden(case)
    answer.write_checkpoint(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = answer.prompt + answer.tokens
    with torch.no_grad():
        theirs = model(torch.tensor([ids])).logits[0].numpy()
    assert_close(open_reference(answer).logits(ids), theirs)


def test_it_is_a_session() -> None:
    session = tiny_session()
    assert isinstance(session, Session)
    assert (session.device, session.context_length) == ("CPU", TINY["max_position_embeddings"])


def test_a_stop_id_is_the_last_id_given() -> None:
    session = tiny_session()
    free = list(session.generate([5, 6, 7], Sampling(max_new_tokens=8)))
    stopped = list(session.generate([5, 6, 7], Sampling(max_new_tokens=8, stop_ids=frozenset({free[3]}))))
    assert stopped == free[: free.index(free[3]) + 1]


def test_generation_ends_when_the_context_is_full() -> None:
    session = tiny_session(max_position_embeddings=12)
    assert len(list(session.generate([5] * 9, Sampling(max_new_tokens=100)))) == 3


@pytest.mark.parametrize(
    ("prompt", "error", "names"),
    [
        ([], UsageError, "empty"),
        ([5, 320], UsageError, "320.*319"),
        ([5, -1], UsageError, "-1"),
        ([5] * 12, PromptTooLongError, "12 tokens.*11"),
    ],
)
def test_an_impossible_prompt_is_refused(prompt: list[int], error: type[UsageError], names: str) -> None:
    session = tiny_session(max_position_embeddings=12)
    with pytest.raises(error, match=names):
        next(session.generate(prompt, Sampling()))


def test_logits_may_fill_the_context_and_no_more() -> None:
    session = tiny_session(max_position_embeddings=12)
    assert len(session.logits([5] * 12)) == 12
    with pytest.raises(PromptTooLongError):
        session.logits([5] * 13)


def test_closing_ends_every_stream() -> None:
    session = tiny_session()
    running = session.generate([5, 6, 7], Sampling())
    next(running)
    session.close()
    with pytest.raises(RuntimeFailedError):
        next(running)
    with pytest.raises(RuntimeFailedError):
        next(session.generate([5, 6, 7], Sampling()))


def test_two_streams_do_not_disturb_each_other() -> None:
    session, sampling = tiny_session(), Sampling(max_new_tokens=6)
    prompts = [5, 6, 7], [200, 100]
    alone = [list(session.generate(prompt, sampling)) for prompt in prompts]
    together = zip(*(session.generate(prompt, sampling) for prompt in prompts), strict=True)
    assert [list(tokens) for tokens in zip(*together, strict=True)] == alone


def test_the_seed_decides_the_draw() -> None:
    session = tiny_session()

    def drawn(seed: int) -> list[int]:
        return list(session.generate([5, 6, 7], Sampling(max_new_tokens=12, temperature=2.0, seed=seed)))

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@pytest.mark.parametrize("limit", [{"top_k": 1}, {"top_p": 1e-9}, {"temperature": 1e-3}])
def test_each_limit_alone_can_leave_only_the_likeliest(limit: Mapping[str, float]) -> None:
    logits = np.array([0.5, 3.0, 2.9, -1.0], np.float32)
    sampling = Sampling(**{"temperature": 1.0, **limit})  # type: ignore[arg-type]
    draws = {choose(logits, [0], sampling, np.random.default_rng(seed)) for seed in range(50)}
    assert draws == {1}


def test_the_penalty_falls_once_and_before_the_choice() -> None:
    logits = np.array([2.0, 1.9, -0.5], np.float32)
    rng = np.random.default_rng(0)
    assert choose(logits, [0, 0], Sampling(repetition_penalty=1.1), rng) == 1
    assert choose(logits, [0, 0, 0, 1], Sampling(repetition_penalty=1.1), rng) == 0


def test_top_p_keeps_the_token_that_reaches_it() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    shares = probabilities(logits, [], Sampling(temperature=1.0, top_p=0.7))
    np.testing.assert_allclose(shares, [0.625, 0.375, 0.0, 0.0], rtol=1e-6)


def test_rotation_keeps_lengths_and_leaves_the_rest_alone() -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    turned = rotate(x, np.arange(10, dtype=np.float32).reshape(5, 2))
    np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
    np.testing.assert_allclose(
        np.hypot(turned[..., :2], turned[..., 2:4]), np.hypot(x[..., :2], x[..., 2:4]), 1e-5
    )
    np.testing.assert_allclose(rotate(x, np.zeros((5, 4), np.float32)), x)


def test_visible_is_causal_and_as_wide_as_the_window() -> None:
    for window, (query, key) in itertools.product((None, 1, 3, 99), itertools.product(range(6), repeat=2)):
        expected = key <= query and (window is None or query - key < window)
        assert visible(np.array([query]), 6, window)[0, key] == expected


def test_extreme_values_stay_finite() -> None:
    assert silu(np.array([-1e30, 0.0, 1e30], np.float32)).tolist() == [0.0, 0.0, np.float32(1e30)]
    assert softmax(np.array([1e30, -1e30, -np.inf], np.float32)).tolist() == [1.0, 0.0, 0.0]
