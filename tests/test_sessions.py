"""What every runtime that computes in a process of its own owes to its callers: the same tests for all."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
import pytest

from aipc.errors import PromptTooLongError, RuntimeFailedError, UsageError
from aipc.runtimes.base import RUNTIMES
from aipc.runtimes.session import EngineSession
from aipc.types import Sampling, ScoredToken
from checkpoints import GQA, LONGROPE, WINDOW
from sessions import CONTEXT, GREEDY, RandomModel, ids


@pytest.fixture(scope="module", params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, runtime: str) -> RandomModel:
    return RandomModel(runtime, tmp_path_factory.mktemp("fp16"), GQA, weight_format="fp16")


@pytest.fixture(scope="module")
def session(model: RandomModel) -> Iterator[EngineSession]:
    session = model.open(exact=True)
    yield session
    session.close()


@pytest.mark.parametrize("length", [1, 5, 40, 300])
def test_exact_is_the_reference_token_for_token(
    model: RandomModel, session: EngineSession, length: int
) -> None:
    prompt = ids(length, seed=length)
    assert list(session.generate(prompt, GREEDY)) == list(model.reference.generate(prompt, GREEDY))


def test_exact_holds_where_the_window_slides(runtime: str, tmp_path: Path) -> None:
    model = RandomModel(runtime, tmp_path, WINDOW, weight_format="fp16")
    session = model.open(exact=True)
    for prompt in (ids(70), ids(70) + ids(90, seed=1)):
        assert list(session.generate(prompt, GREEDY)) == list(model.reference.generate(prompt, GREEDY))
    session.close()


def test_a_repeated_beginning_changes_nothing(model: RandomModel, session: EngineSession) -> None:
    """What the cache kept of an earlier prompt is what it would compute again."""
    beginning = ids(100, seed=5)
    for tail in (ids(3, seed=6), ids(40, seed=7), []):
        prompt = beginning + tail
        assert list(session.generate(prompt, GREEDY)) == list(model.reference.generate(prompt, GREEDY))


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(max_new_tokens=24, repetition_penalty=1.3)])
def test_a_chat_that_goes_on_is_the_reference_token_for_token(
    model: RandomModel, session: EngineSession, sampling: Sampling
) -> None:
    tokens = ids(50, seed=8)
    for turn in range(4):
        answer = list(session.generate(tokens, sampling))
        assert answer == list(model.reference.generate(tokens, sampling))
        # The third turn is asked again: the answer that was there is forgotten.
        tokens += (answer if turn != 2 else answer[:7]) + ids(9, seed=turn)


@pytest.fixture(scope="module")
def longrope(tmp_path_factory: pytest.TempPathFactory, runtime: str) -> RandomModel:
    shape = LONGROPE | {"num_key_value_heads": 2, "partial_rotary_factor": 1.0}
    return RandomModel(runtime, tmp_path_factory.mktemp("longrope"), shape, weight_format="fp16")


@pytest.fixture(scope="module")
def long_session(longrope: RandomModel) -> Iterator[EngineSession]:
    session = longrope.open(exact=True)
    yield session
    session.close()


@pytest.mark.parametrize("prompt", [20, 40, 41, 63, 64, 65, 300, 1100])
def test_all_that_a_request_may_come_to_decides_longropes_factors(
    longrope: RandomModel, long_session: EngineSession, prompt: int
) -> None:
    expected = list(longrope.reference.generate(ids(prompt, seed=prompt), GREEDY))
    assert list(long_session.generate(ids(prompt, seed=prompt), GREEDY)) == expected


def test_a_chat_that_grows_across_longropes_border_is_the_references(
    longrope: RandomModel, long_session: EngineSession
) -> None:
    """No key of the short factors is left in a cache, also not of a chat that begins alike."""
    sampling = Sampling(max_new_tokens=8)
    tokens = ids(30, seed=1)
    for turn in range(5):
        answer = list(long_session.generate(tokens, sampling))
        assert answer == list(longrope.reference.generate(tokens, sampling))
        tokens = tokens + answer + ids(9, seed=turn)
    for length in (40, 80, 30, 57, 58):
        answer = list(long_session.generate(tokens[:length], sampling))
        assert answer == list(longrope.reference.generate(tokens[:length], sampling))


def test_streams_of_both_sides_of_the_border_do_not_disturb_each_other(
    longrope: RandomModel, long_session: EngineSession
) -> None:
    requests = [(ids(9, seed=1), 40), (ids(600, seed=2), 30), (ids(20, seed=3), 60), (ids(3, seed=4), 50)]
    streams = [long_session.generate(prompt, Sampling(max_new_tokens=new)) for prompt, new in requests]
    columns = zip(*zip_longest(*streams), strict=True)
    for (prompt, new), column in zip(requests, columns, strict=True):
        expected = list(longrope.reference.generate(prompt, Sampling(max_new_tokens=new)))
        assert [token for token in column if token is not None] == expected


def test_the_session_says_what_it_is(session: EngineSession) -> None:
    assert (session.device, session.precision, session.context_length) == ("CPU", "fp16, exact", CONTEXT)
    assert session.notes == ()


def test_streams_side_by_side_are_those_alone(session: EngineSession) -> None:
    requests = [
        (ids(300, seed=1), GREEDY),
        (ids(3, seed=2), Sampling(max_new_tokens=60, temperature=1.5, seed=3)),
        (ids(20, seed=3), Sampling(max_new_tokens=40, temperature=1.5, seed=3)),
    ]
    alone = [list(session.generate(*request)) for request in requests]
    together = zip_longest(*(session.generate(*request) for request in requests))
    columns = zip(*together, strict=True)
    assert [[token for token in column if token is not None] for column in columns] == alone


def test_closing_one_stream_leaves_the_others(session: EngineSession) -> None:
    alone = list(session.generate(ids(9), GREEDY))
    closed = session.generate(ids(200), Sampling(max_new_tokens=3000))
    kept = session.generate(ids(9), GREEDY)
    first = list(islice(kept, 3))
    next(closed)
    closed.close()
    assert first + list(kept) == alone


def test_a_closed_stream_stops_the_work(session: EngineSession) -> None:
    alone = list(session.generate(ids(9), GREEDY))
    closed = session.generate(ids(200), Sampling(max_new_tokens=3000))
    next(closed)
    closed.close()
    assert list(session.generate(ids(9), GREEDY)) == alone


def test_it_ends_with_the_first_of_the_stop_ids(session: EngineSession) -> None:
    whole = list(session.generate(ids(7), Sampling(max_new_tokens=30)))
    for place in (0, 4, 9):
        stop = frozenset({whole[place], 319})
        expected = whole[: min(whole.index(token) for token in stop if token in whole) + 1]
        assert list(session.generate(ids(7), Sampling(max_new_tokens=30, stop_ids=stop))) == expected


def test_without_stop_ids_the_models_own_end_is_no_end(
    model: RandomModel, session: EngineSession, tmp_path: Path
) -> None:
    """The runtimes would take eos_token_id from the folder's files."""
    whole = list(session.generate(ids(7), GREEDY))
    other = tmp_path / "with-eos"
    shutil.copytree(model.folder, other)
    for path in other.glob("*config.json"):
        config = json.loads(path.read_text(encoding="utf-8"))
        config.get("model", config)["eos_token_id"] = whole[2]
        path.write_text(json.dumps(config), encoding="utf-8")
    ending = model.open(exact=True, folder=other)
    assert list(ending.generate(ids(7), GREEDY)) == whole
    ending.close()


def test_a_seed_repeats_an_answer_and_no_seed_draws_one(session: EngineSession) -> None:
    def answer(seed: int | None) -> list[int]:
        return list(session.generate(ids(5), Sampling(max_new_tokens=16, temperature=3.0, seed=seed)))

    assert answer(1) == answer(1) != answer(2)
    assert answer(2**70) == answer(2**70)
    assert answer(-1) == answer(-1)
    assert answer(None) != answer(None)


def test_sampling_reaches_the_runtime(model: RandomModel, session: EngineSession) -> None:
    prompt = ids(12)
    greedy = list(session.generate(prompt, GREEDY))
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}):
        sampling = Sampling(**{"max_new_tokens": 24, "temperature": 5.0, "seed": 1} | narrow)  # type: ignore[arg-type]
        assert list(session.generate(prompt, sampling)) == greedy
    penalised = Sampling(max_new_tokens=24, repetition_penalty=1.5)
    assert list(session.generate(prompt, penalised)) == list(model.reference.generate(prompt, penalised))
    assert list(session.generate(prompt, penalised)) != greedy


SAMPLINGS = [
    GREEDY,
    Sampling(max_new_tokens=24, temperature=2.0, top_p=0.8, top_k=40, seed=1),
    Sampling(max_new_tokens=24, repetition_penalty=1.5),
]


def scores_of(model: RandomModel, prompt: list[int], answer: list[int]) -> np.ndarray:
    """The log-softmax of the reference's scores before each token of an answer, [answer, vocab_size]."""
    logits = model.reference.logits(prompt + answer)[len(prompt) - 1 : -1].astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "drawn", "penalised"])
def test_log_probabilities_are_those_of_the_models_own_scores(
    model: RandomModel, session: EngineSession, sampling: Sampling
) -> None:
    """Before temperature, top_p, top_k and penalty, which decide what is taken all the same."""
    prompt = ids(30, seed=4)
    count = 0 if model.runtime == "openvino" else 20
    plain = list(session.generate(prompt, sampling))
    assert not any(isinstance(token, ScoredToken) for token in plain)
    answer = list(session.generate(prompt, replace(sampling, logprobs=count)))
    assert answer == plain
    expected = scores_of(model, prompt, answer)
    for token, scores in zip(answer, expected, strict=True):
        assert isinstance(token, ScoredToken)
        assert token.logprob == pytest.approx(scores[token], abs=1e-4)
        assert [one for one, _ in token.likeliest] == [*np.argsort(-scores, kind="stable")[:count]]
        assert [logprob for _, logprob in token.likeliest] == pytest.approx(
            np.sort(-scores)[:count] * -1, abs=1e-4
        )


def test_only_who_asks_is_told_of_log_probabilities(model: RandomModel, session: EngineSession) -> None:
    asks = replace(GREEDY, logprobs=0)
    streams = [session.generate(ids(9), sampling) for sampling in (asks, GREEDY, asks)]
    columns = [*zip(*zip_longest(*streams), strict=True)]
    kinds = [{type(token) for token in column} for column in columns]
    assert kinds == [{ScoredToken}, {int}, {ScoredToken}]
    assert columns[0] == columns[1] == columns[2]


def test_log_probabilities_that_a_runtime_lacks_are_refused_at_once(
    session: EngineSession, runtime: str
) -> None:
    for count in (21, -1):
        with pytest.raises(UsageError, match=f"logprobs is {count}; it must be None"):
            replace(GREEDY, logprobs=count)
    if runtime == "openvino":
        with pytest.raises(
            UsageError, match=r"3 alternatives.*CPU this runtime tells.*chosen token"
        ) as caught:
            session.generate(ids(3), replace(GREEDY, logprobs=3))
        assert "--runtime onnxruntime" in caught.value.hint


def test_the_tokens_that_a_cache_gave_are_told_where_the_runtime_says_it(
    model: RandomModel, session: EngineSession
) -> None:
    prompt = ids(90, seed=99)
    first = session.generate(prompt, GREEDY)
    assert first.prefill.cached_tokens is None, "nothing is known before it is read"
    answer = list(first)
    turn = session.generate(prompt + answer + ids(9, seed=98), GREEDY)
    list(turn)
    known = (first.prefill.cached_tokens, turn.prefill.cached_tokens)
    # OpenVINO GenAI keeps it to itself. The last token of an answer is not computed.
    assert known == ((None, None) if model.runtime == "openvino" else (0, 90 + 24 - 1))


@pytest.mark.parametrize("least", [5e-324, 1e-40, 1e-30])
def test_what_is_next_to_nothing_is_no_failure(session: EngineSession, least: float) -> None:
    """In float32 it would be 0, which the runtimes refuse, or divide by."""
    greedy = list(session.generate(ids(12), GREEDY))
    for narrow in ({"top_p": least}, {"temperature": least}):
        sampling = Sampling(**{"max_new_tokens": 24, "temperature": 5.0, "seed": 1} | narrow)  # type: ignore[arg-type]
        assert list(session.generate(ids(12), sampling)) == greedy
    praised = Sampling(max_new_tokens=24, repetition_penalty=least)
    assert set(session.generate(ids(12), praised)) <= {*ids(12), *greedy}


def test_a_top_k_beyond_the_vocabulary_is_all_of_it(session: EngineSession) -> None:
    wide = Sampling(max_new_tokens=8, temperature=3.0, top_k=10**6, seed=1)
    assert list(session.generate(ids(5), wide)) == list(session.generate(ids(5), replace(wide, top_k=0)))


def test_the_answer_is_cut_where_the_context_is_full(session: EngineSession) -> None:
    assert len(list(session.generate(ids(CONTEXT - 5), Sampling(max_new_tokens=100)))) == 5


@pytest.mark.parametrize(
    ("prompt", "error", "words"),
    [
        ([], UsageError, "empty"),
        ([1, -1], UsageError, "id -1; possible are 0 to 319"),
        ([320], UsageError, "id 320"),
        ([1] * CONTEXT, PromptTooLongError, "4096 tokens"),
        ([1] * 5000, PromptTooLongError, r"5000 tokens.*4096"),
    ],
)
def test_what_cannot_be_served_is_refused_at_once(
    session: EngineSession, prompt: list[int], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        session.generate(prompt, GREEDY)


def test_close_ends_the_streams(model: RandomModel) -> None:
    session = model.open()
    stream = session.generate(ids(5), Sampling(max_new_tokens=4000))
    next(stream)
    session.close()
    with pytest.raises(RuntimeFailedError, match="closed"):
        list(stream)
    with pytest.raises(RuntimeFailedError, match="closed"):
        next(session.generate(ids(5), GREEDY))


def test_a_killed_process_ends_its_stream_and_the_next_request_has_a_fresh_one(model: RandomModel) -> None:
    session = model.open(exact=True)
    stream = session.generate(ids(5), Sampling(max_new_tokens=4000))
    next(stream)
    session._worker._process._process.kill()
    ending = "code 1" if sys.platform == "win32" else "SIGKILL"
    with pytest.raises(RuntimeFailedError, match=ending):
        list(stream)
    assert list(session.generate(ids(5), GREEDY)) == list(model.reference.generate(ids(5), GREEDY))
    session.close()
