"""The stream: ids from a scripted session become text, and its end has a reason and figures."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import aipc.model
from aipc import inventory, plan, prepare
from aipc.errors import DeviceError, UsageError
from aipc.model import Model, load
from aipc.runtimes.base import OPENVINO, Device
from aipc.text import Text
from aipc.types import Chunk, Message, Prefill, Sampling, ScoredToken, TokenLogprob, TokenStream
from tokenizers_for_tests import write_llama_style

ANSWER = "The neural processing unit runs the model – naïve, 日本語."


class ScriptedSession:
    """Says what it is told to, and remembers what it was asked."""

    device, precision, context_length, notes = "CPU", "int4", 64, ("loaded by hand",)

    def __init__(self, ids: Sequence[int]) -> None:
        self.ids = ids
        self.prompts: list[list[int]] = []
        self.samplings: list[Sampling] = []
        self.given = 0
        self.stopped = False
        self.closed = False

    def generate(self, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
        self.prompts.append(list(prompt))
        self.samplings.append(sampling)
        return self._ids(sampling.max_new_tokens)

    def _ids(self, most: int) -> Iterator[int]:
        try:
            for token in self.ids[:most]:
                self.given += 1
                yield token
        finally:
            self.stopped = True

    def close(self) -> None:
        self.closed = True


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    return Text.load(write_llama_style(tmp_path_factory.mktemp("tokenizer")))


@pytest.fixture
def session(text: Text) -> ScriptedSession:
    end = min(text.stop_ids)
    return ScriptedSession([*text.encode(ANSWER), end])


@pytest.fixture
def model(text: Text, session: ScriptedSession) -> Model:
    return Model("scripted", text, session, runtime="a script", load_s=1.5)


def test_the_pieces_are_the_answer_and_the_last_says_why_it_ended(model: Model, text: Text) -> None:
    *pieces, last = model.stream("Hello")
    assert "".join(chunk.text for chunk in [*pieces, last]) == ANSWER
    assert all(chunk.finish_reason is None and chunk.stats is None for chunk in pieces)
    assert [token for chunk in pieces for token in chunk.token_ids] == text.encode(ANSWER)
    assert last.finish_reason == "stop"


def test_the_figures_ride_on_the_last_chunk(model: Model, session: ScriptedSession) -> None:
    stats = model.generate("Hello").stats
    assert stats.prompt_tokens == len(session.prompts[0])
    assert stats.generated_tokens == len(session.ids)
    assert (stats.load_s, stats.device, stats.runtime, stats.precision) == (1.5, "CPU", "a script", "int4")
    assert stats.ttft_s is not None and stats.ttft_s >= 0
    assert stats.tpot_s is not None and stats.tpot_s >= 0


def test_what_was_not_measured_is_none(text: Text) -> None:
    silent = Model("silent", text, ScriptedSession([]), runtime="a script").generate("Hello").stats
    assert (silent.ttft_s, silent.tpot_s, silent.tokens_per_s) == (None, None, None)
    one_word = Model("brief", text, ScriptedSession([300]), runtime="a script").generate("Hello").stats
    assert one_word.tpot_s is None


def test_the_figures_say_that_a_chat_outgrew_its_first_factors(text: Text) -> None:
    session = ScriptedSession([300, 301])
    model = Model("scripted", text, session, runtime="a script", rope_border=32)
    chat = list(range(5, 25))
    seen = []
    for _ in range(3):
        stats = model.generate(chat, max_new_tokens=8).stats
        seen.append((stats.long_factors, stats.prefilled_anew))
        chat += [300, 301, 9, 9, 9]
    assert seen == [(False, False), (False, False), (True, True)]
    stats = model.generate(chat, max_new_tokens=8).stats
    assert (stats.long_factors, stats.prefilled_anew) == (True, False)


def test_the_limit_is_a_reason_of_its_own(model: Model) -> None:
    completion = model.generate("Hello", max_new_tokens=3)
    assert completion.finish_reason == "length"
    assert len(completion.token_ids) == 3


def test_a_stop_string_across_pieces_ends_the_work(model: Model, session: ScriptedSession) -> None:
    completion = model.generate("Hello", stop="unit runs")
    assert completion.text == "The neural processing "
    assert completion.finish_reason == "stop"
    assert session.stopped
    assert session.given < len(session.ids)


def test_closing_the_stream_stops_the_work(model: Model, session: ScriptedSession) -> None:
    stream = model.stream("Hello")
    next(stream)
    assert not session.stopped
    stream.close()  # type: ignore[attr-defined]
    assert session.stopped
    assert session.given == 1


def test_every_form_of_a_prompt(model: Model, text: Text, session: ScriptedSession) -> None:
    chat = text.encode_chat([Message("user", "Hello")])
    for prompt, raw, expected in [
        ("Hello", False, chat),
        ([{"role": "user", "content": "Hello"}], False, chat),
        ([Message("user", "Hello")], False, chat),
        ("Hello", True, text.encode("Hello")),
        ([5, 6, 7], False, [5, 6, 7]),
    ]:
        model.generate(prompt, raw=raw)  # type: ignore[arg-type]
        assert session.prompts[-1] == expected


@pytest.mark.parametrize(
    ("prompt", "options", "expected"),
    [
        ([], {}, "empty"),
        ([{"role": "robot", "content": "x"}], {}, "robot"),
        ([{"role": "user"}], {}, "NoneType"),
        ([1, "two"], {}, "mapping"),
        ("Hello", {"temperature": -1.0}, "temperature is -1"),
        ("Hello", {"max_new_tokens": 0}, "max_new_tokens is 0"),
        ("Hello", {"top_p": 0.0}, "top_p"),
        ("Hello", {"stop": ("",)}, "stop"),
    ],
)
def test_what_cannot_be_is_refused_before_the_session_is_asked(
    model: Model, session: ScriptedSession, prompt: Any, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UsageError, match=expected):
        model.stream(prompt, **options)
    assert session.prompts == []


def test_the_sampling_reaches_the_session_with_all_stop_ids(model: Model, session: ScriptedSession) -> None:
    model.generate("Hello", temperature=0.5, top_k=7, seed=3)
    (sampling,) = session.samplings
    assert (sampling.temperature, sampling.top_k, sampling.seed) == (0.5, 7, 3)
    assert sampling.stop_ids == model.text.stop_ids


class ScoringSession(ScriptedSession):
    """Its tokens are told to be the likelier, the earlier they come."""

    def _ids(self, most: int) -> Iterator[int]:
        for place, token in enumerate(super()._ids(most)):
            yield ScoredToken(token, -float(place), [(token, -float(place)), (7, -9.0)])


def likely(text: Text, words: str, **options: Any) -> tuple[list[Chunk], list[TokenLogprob]]:
    """The chunks, and what is told of all tokens."""
    session = ScoringSession([*text.encode(words), min(text.stop_ids)])
    model = Model("scripted", text, session, runtime="a script")
    chunks = list(model.stream("Hello", logprobs=1, **options))
    told = [one for chunk in chunks for one in chunk.logprobs]
    assert all(type(token) is int for chunk in chunks for token in chunk.token_ids)
    return chunks, told


def test_what_is_told_of_tokens_is_told_with_their_text(text: Text) -> None:
    words = "naïve 🙂 units"
    chunks, told = likely(text, words)
    ids = text.encode(words)
    assert "".join(chunk.text for chunk in chunks) == words
    # The face is bytes, which become text together.
    assert [len(chunk.logprobs) for chunk in chunks if "🙂" in chunk.text] > [1]
    assert [one.token_id for one in told] == ids
    assert b"".join(one.content for one in told).decode().lstrip() == words
    assert [one.logprob for one in told] == [-float(place) for place in range(len(ids))]
    assert [one.likeliest[1].token_id for one in told] == [7] * len(ids)
    assert told[0].likeliest[0] == TokenLogprob(ids[0], told[0].content, 0.0, 0)
    # "units" begins behind eight characters, whatever the tokenizer puts in front of the first word.
    assert max(one.offset for one in told if words[one.offset :].startswith(("units", " units"))) in {7, 8}
    assert all(words[one.offset :].encode().startswith(one.content.lstrip()) for one in told[:3])


def test_nothing_is_told_of_what_a_stop_string_swallows(text: Text) -> None:
    chunks, told = likely(text, ANSWER, stop="unit runs")
    assert "".join(chunk.text for chunk in chunks) == "The neural processing "
    # Tokens that began before the stop string are told of: the last of them may reach into it.
    content = b"".join(one.content for one in told).decode().lstrip()
    assert content.startswith("The neural processing")
    assert len(told) == len(text.encode("The neural processing"))


def test_a_token_that_only_began_a_stop_string_is_told_of_at_the_end(text: Text) -> None:
    words = "The neural model"
    chunks, told = likely(text, words, stop="model. And")
    assert [one.token_id for one in told] == text.encode(words)
    assert (
        b"".join(one.content for one in chunks[-1].logprobs).strip() == chunks[-1].text.encode() == b"model"
    )


def test_without_asking_nothing_is_told(model: Model, session: ScriptedSession) -> None:
    assert model.generate("Hello").logprobs == ()
    assert session.samplings[0].logprobs is None


def test_the_figures_say_what_the_runtime_says_of_its_cache(text: Text) -> None:
    class Caching(ScriptedSession):
        def generate(self, prompt: Sequence[int], sampling: Sampling) -> TokenStream:
            return TokenStream(iter_of(super().generate(prompt, sampling)), threading.Event(), Prefill(7))

    def iter_of(ids: Iterator[int]) -> Generator[int, None, None]:
        yield from ids

    model = Model("caching", text, Caching([300]), runtime="a script")
    assert model.generate("Hello").stats.cached_tokens == 7
    plain = Model("plain", text, ScriptedSession([300]), runtime="a script")
    assert plain.generate("Hello").stats.cached_tokens is None


def test_a_model_closes_with_its_block(model: Model, session: ScriptedSession) -> None:
    with model:
        assert not session.closed
    assert session.closed


class FakeRuntime:
    """Two devices, of which the first refuses the model."""

    def __init__(self, refuses: type[Exception] = DeviceError) -> None:
        self.refuses = refuses
        self.asked: list[str] = []

    def open_session(self, folder: Path, device: str, **_: Any) -> ScriptedSession:
        self.asked.append(device)
        if device == "NPU":
            raise self.refuses("the NPU takes no such weights")
        return ScriptedSession([])

    @staticmethod
    def version() -> str:
        return "fake 1.0"


def prepared(monkeypatch: pytest.MonkeyPatch, folder: Path, runtime: FakeRuntime, *, named: bool) -> None:
    devices = (Device("NPU", "AI Boost", "NPU"), Device("CPU", "Core", "CPU"))
    candidates = tuple(plan.Candidate(OPENVINO, device) for device in devices)
    monkeypatch.setattr(plan, "make_plan", lambda *_, **__: plan.Plan(candidates, named=named))
    monkeypatch.setattr(aipc.model.prepare, "formats_of", lambda _: None)
    monkeypatch.setattr(inventory, "runtime_module", lambda _: runtime)
    ready = prepare.ReadyModel("demo", write_llama_style(folder))
    (folder / "config.json").write_text('{"max_position_embeddings": 64}', encoding="utf-8")
    (folder / "openvino_model.xml").write_text("<net/>", encoding="utf-8")
    monkeypatch.setattr(aipc.model.prepare, "ready_model", lambda *_, **__: ready)


def test_auto_passes_over_a_device_that_refuses_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(monkeypatch, tmp_path, FakeRuntime(), named=False)
    model = load("demo")
    assert model.device == "CPU"
    assert model.notes == (
        "NPU with OpenVINO GenAI is passed over: the NPU takes no such weights",
        "loaded by hand",
    )


def test_a_named_device_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = FakeRuntime()
    prepared(monkeypatch, tmp_path, runtime, named=True)
    with pytest.raises(DeviceError, match="no such weights"):
        load("demo", device="NPU")
    assert runtime.asked == ["NPU"]
