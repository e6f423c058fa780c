"""OpenAI's API, asked by OpenAI's own client over a real socket; the models are scripted."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from aipc.errors import EngineLostError, PromptTooLongError, RuntimeFailedError, UsageError
from aipc.serve import streaming
from aipc.types import Guidance, Message, Sampling, ScoredToken
from serving import ANSWER, MESSAGES, Served, serving

FUNCTION = {
    "name": "weather",
    "description": "The weather of a place",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}},
}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("serve"), ("scripted", "tools")) as served:
        yield served


@pytest.fixture
def served(server: Served) -> Served:
    """The server, whose model says ANSWER and has not been asked anything."""
    server.session.begin(server.saying(ANSWER))
    return server


def ask(served: Served, **options: Any) -> Any:
    return served.client().chat.completions.create(
        **{"model": "scripted", "messages": MESSAGES} | options  # type: ignore[arg-type]
    )


def test_models_are_listed_by_the_names_they_were_given(served: Served) -> None:
    assert [model.id for model in served.client().models.list()] == ["scripted", "tools"]
    assert served.client().models.retrieve("scripted").id == "scripted"
    with pytest.raises(openai.NotFoundError, match="served are scripted, tools"):
        served.client().models.retrieve("some/other")


def test_a_whole_answer(served: Served) -> None:
    completion = ask(served)
    (choice,) = completion.choices
    assert choice.message.content == ANSWER
    assert choice.finish_reason == "stop"
    tokens = len(served.text.encode(ANSWER)) + 1
    asked = len(served.session.prompts[0])
    usage = completion.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (
        asked,
        tokens,
        asked + tokens,
    )


def test_an_answer_in_pieces(served: Served) -> None:
    *chunks, last = list(ask(served, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
    assert len(chunks) > 5
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "stop"]
    assert last.choices == []
    assert last.usage.completion_tokens == len(served.text.encode(ANSWER)) + 1


def test_every_message_reaches_the_model_in_its_template(served: Served) -> None:
    ask(
        served,
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
            {"role": "assistant", "content": "Hi <|end|>"},
            {"role": "user", "content": "More"},
        ],
    )
    messages = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Hi <|end|>"), ("user", "More")]
    assert served.session.prompts == [served.text.encode_chat([Message(*message) for message in messages])]


def test_every_option_reaches_the_session(served: Served) -> None:
    ask(
        served,
        max_tokens=9,
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.25,
        seed=2**40,
        response_format={"type": "json_object"},
        extra_body={"top_k": 3, "repetition_penalty": 1.5},
    )
    assert served.session.samplings == [
        Sampling(
            max_new_tokens=7,
            temperature=0.5,
            top_p=0.25,
            top_k=3,
            repetition_penalty=1.5,
            seed=2**40,
            stop_ids=served.text.stop_ids,
            guidance=Guidance("json_schema", '{"type":"object"}'),
        )
    ]


def test_without_a_limit_an_answer_may_fill_the_context(served: Served) -> None:
    ask(served)
    assert served.session.samplings[0].max_new_tokens == served.session.context_length


def test_stop_strings_and_limits_end_an_answer(served: Served) -> None:
    stopped = ask(served, stop=["unit runs", "never"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("The neural processing ", "stop")
    pieces = list(ask(served, stop="unit runs", stream=True))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == "The neural processing "
    assert ask(served, max_tokens=2).choices[0].finish_reason == "length"


def test_several_choices_come_side_by_side_each_with_its_own_seed(served: Served) -> None:
    assert [choice.index for choice in ask(served, n=3, seed=5, temperature=1).choices] == [0, 1, 2]
    assert sorted(sampling.seed or 0 for sampling in served.session.samplings) == [5, 6, 7]
    texts = ["", ""]
    for chunk in ask(served, n=2, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [ANSWER, ANSWER]


def said_by(tokens: list[Any]) -> str:
    return b"".join(bytes(token.bytes) for token in tokens).decode().lstrip()


def test_how_likely_the_tokens_of_a_chat_were(served: Served) -> None:
    session = served.session
    session.play = served.scoring("naïve 🙂")
    tokens = ask(served, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert said_by(tokens) == "naïve 🙂"
    assert [token.logprob for token in tokens] == [-float(place) for place in range(len(tokens))]
    for token in tokens:
        assert (token.top_logprobs[0].token, token.top_logprobs[0].bytes) == (token.token, token.bytes)
        assert len(token.top_logprobs) == 2
    # The face is four tokens of a byte each, which are no text alone.
    assert [token.token for token in tokens[-4:]] == [f"bytes:\\x{byte:02x}" for byte in "🙂".encode()]
    alone = ask(served, logprobs=True).choices[0].logprobs.content
    assert [(one.token, one.top_logprobs) for one in alone] == [(token.token, []) for token in tokens]
    assert ask(served, logprobs=False).choices[0].logprobs is None
    assert [sampling.logprobs for sampling in session.samplings] == [2, 0, None]
    chunks = list(ask(served, logprobs=True, top_logprobs=2, stream=True))
    streamed = [t for chunk in chunks if (told := chunk.choices[0].logprobs) for t in told.content]
    assert streamed == tokens
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == "naïve 🙂"


def test_how_likely_the_tokens_of_a_text_were(served: Served) -> None:
    served.session.play = served.scoring("naïve 🙂 unit")
    client = served.client()
    told = client.completions.create(model="scripted", prompt="An NPU", logprobs=3).choices[0].logprobs
    assert told is not None and told.tokens and told.top_logprobs and told.text_offset
    count = len(served.text.encode("naïve 🙂 unit"))
    assert told.token_logprobs == [-float(place) for place in range(count)]
    assert [len(likeliest) for likeliest in told.top_logprobs] == [3] * count
    assert [likeliest[token] for token, likeliest in zip(told.tokens, told.top_logprobs, strict=True)] == (
        told.token_logprobs
    )
    assert (told.text_offset[0], "naïve 🙂 unit"[told.text_offset[-1] :].strip()) == (
        0,
        told.tokens[-1].strip(),
    )
    pieces = list(client.completions.create(model="scripted", prompt="An NPU", logprobs=0, stream=True))
    parts = [part for piece in pieces if (part := piece.choices[0].logprobs)]
    assert [token for part in parts for token in part.tokens or ()] == told.tokens
    assert [at for part in parts for at in part.text_offset or ()] == told.text_offset
    assert {part.top_logprobs for part in parts} == {None}


def test_an_impossible_token_is_a_number_to_json(served: Served) -> None:
    def play(prompt: list[int], sampling: Sampling) -> Iterator[int]:
        yield from (ScoredToken(300, float("-inf"), [(301, float("nan"))]), min(served.text.stop_ids))

    served.session.play = play
    (token,) = ask(served, logprobs=True, top_logprobs=1).choices[0].logprobs.content
    assert (token.logprob, token.top_logprobs[0].logprob) == (-9999.0, -9999.0)


def test_what_a_runtime_does_not_tell_is_the_clients_mistake(served: Served) -> None:
    def play(*_: object) -> Iterator[int]:
        raise UsageError("on NPU this runtime gives no log-probabilities", hint="take another")
        yield

    served.session.play = play
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="no log-probabilities; take another"):
            ask(served, logprobs=True, stream=stream)


def test_tokens_from_a_cache_are_counted(served: Served) -> None:
    session = served.session
    assert ask(served).usage.prompt_tokens_details is None, "nobody said so"
    session.cached = 5
    assert ask(served).usage.prompt_tokens_details.cached_tokens == 5
    last = list(ask(served, stream=True, stream_options={"include_usage": True}))[-1]
    assert last.usage.prompt_tokens_details.cached_tokens == 5
    client = served.client()
    # Two prompts with two answers each: a prompt counts once.
    text = client.completions.create(model="scripted", prompt=["An NPU", "A CPU"], n=2)
    assert text.usage and text.usage.prompt_tokens_details
    assert text.usage.prompt_tokens_details.cached_tokens == 10
    session.cached = None


def test_text_is_continued_as_it_stands(served: Served) -> None:
    client = served.client()
    two = client.completions.create(model="scripted", prompt=["An NPU", "A CPU"], echo=True)
    assert [choice.text for choice in two.choices] == ["An NPU" + ANSWER, "A CPU" + ANSWER]
    assert two.usage and two.usage.prompt_tokens == sum(map(len, served.session.prompts))
    served.session.prompts.clear()
    pieces = client.completions.create(model="scripted", prompt=[5, 6, 7], stream=True)
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == ANSWER
    assert served.session.prompts == [[5, 6, 7]]


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"top_logprobs": 2}, None, "top_logprobs is there without logprobs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "repetition_penalty is what there is"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "cannot be made likelier"),
        ({"temperature": "warm"}, "temperature", "valid number"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"n": 9}, "n", "less than or equal to 8"),
        ({"stop": ""}, "stop", "at least 1 character"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages", "'system', 'developer'"),
        ({"messages": [{"role": "user"}]}, None, "a user message has no content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "no images"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, None, "half a surrogate"),
        ({"response_format": {"type": "json_schema"}}, None, "no JSON schema"),
        ({"response_format": {"type": "yaml"}}, "response_format", "'text', 'json_object'"),
        ({"messages": [{"role": "user", "content": [{"type": "thought"}]}]}, "messages", "'text'"),
        ({"tools": TOOLS}, None, "does not support tools"),
        ({"tool_choice": "required"}, None, "function that is not offered; offered: none"),
        ({"messages": [*MESSAGES, {"role": "tool", "content": "x"}]}, None, "not trained to call functions"),
    ],
)
def test_what_is_not_possible_is_said(
    served: Served, body: dict[str, Any], param: str | None, words: str
) -> None:
    """By a 400 before any work, whether the answer was to be whole or streamed."""
    for stream in (False, True):
        content = json.dumps({"model": "scripted", "messages": MESSAGES, "stream": stream} | body)
        response = httpx.post(f"{served.url}/v1/chat/completions", content=content)
        error = response.json()["error"]
        assert response.status_code == 400
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert words in error["message"]
        assert "Value error" not in error["message"]
    assert served.session.prompts == []


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("POST", "/v1/embeddings", "no Phi model makes embeddings"),
        ("POST", "/chat/completions", "OpenAI's API begins with /v1"),
        ("POST", "/v1/v1/chat/completions", "no POST /v1/v1/chat/completions here"),
        ("GET", "/static/nothing.js", "no GET /static/nothing.js here"),
    ],
)
def test_a_wrong_address_is_told_from_a_right_one(served: Served, method: str, path: str, words: str) -> None:
    response = httpx.request(method, served.url + path)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (404, "unknown_url")
    assert words in error["message"]


def test_what_editors_send_besides_has_no_effect(served: Served) -> None:
    besides = {
        "store": False,
        "metadata": {"a": "b"},
        "reasoning_effort": "low",
        "parallel_tool_calls": True,
        "service_tier": "auto",
        "prediction": None,
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": {},
        "stream_options": None,
        "cache_prompt": True,
    }
    content = json.dumps({"model": "scripted", "messages": MESSAGES} | besides)
    response = httpx.post(f"{served.url}/v1/chat/completions", content=content)
    assert response.json()["choices"][0]["message"]["content"] == ANSWER


def test_a_prompt_that_is_too_long_has_its_own_code(served: Served) -> None:
    def too_long(*_: object) -> Iterator[int]:
        raise PromptTooLongError("the prompt has 5000 tokens; 512 fit", hint="shorten the prompt")
        yield

    served.session.play = too_long
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match="512 fit; shorten") as caught:
            ask(served, stream=stream)
        assert caught.value.code == "context_length_exceeded"


def fails_after(ids: list[int], *errors: Exception) -> Any:
    """A script whose first plays break after these ids; the next says them all."""
    left = list(errors)

    def play(*_: object) -> Iterator[int]:
        yield from ids[:3]
        if left:
            raise left.pop(0)
        yield from ids[3:]

    return play


def lost() -> EngineLostError:
    return EngineLostError("the process has ended", hint="ask again")


def test_a_whole_answer_is_begun_anew_when_its_process_is_lost(served: Served) -> None:
    ids = [*served.text.encode(ANSWER), min(served.text.stop_ids)]
    served.session.play = fails_after(ids, lost())
    assert ask(served).choices[0].message.content == ANSWER
    assert len(served.session.prompts) == 2
    assert (
        'aipc_replays_total{device="CPU",model="scripted",runtime="onnxruntime"} 1.0'
        in httpx.get(f"{served.url}/metrics").text
    )
    served.session.play = fails_after(ids, lost(), lost())
    with pytest.raises(openai.InternalServerError, match="has ended; ask again") as caught:
        ask(served)
    assert caught.value.code == "engine_lost"


def test_a_stream_is_begun_anew_only_if_nothing_was_sent(served: Served) -> None:
    ids = [*served.text.encode(ANSWER), min(served.text.stop_ids)]
    begun: list[int] = []

    def lost_at_once(*_: object) -> Iterator[int]:
        begun.append(1)
        if len(begun) == 1:
            raise lost()
        yield from ids

    served.session.play = lost_at_once
    assert "".join(c.choices[0].delta.content or "" for c in ask(served, stream=True)) == ANSWER
    served.session.play = fails_after(ids, lost())
    received = ""
    with pytest.raises(openai.APIError, match="has ended; ask again") as caught:
        for chunk in ask(served, stream=True):
            received += chunk.choices[0].delta.content or ""
    assert caught.value.code == "engine_lost"
    assert ANSWER.startswith(received) and received


def test_an_error_of_the_model_is_not_answered_by_asking_again(served: Served) -> None:
    served.session.play = fails_after([5, 6, 7, 8], RuntimeFailedError("no memory for the KV cache"))
    with pytest.raises(openai.InternalServerError, match="no memory"):
        ask(served)
    assert len(served.session.prompts) == 1


def test_an_error_of_our_own_tells_no_words_of_the_request(served: Served) -> None:
    served.session.play = fails_after([], ValueError("secret words"))
    with pytest.raises(
        openai.InternalServerError, match="the server itself has failed, with ValueError"
    ) as e:
        ask(served)
    assert "secret" not in str(e.value)


def test_a_slow_prefill_sends_comments(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr("aipc.serve.handling.HEARTBEAT_S", 0.05)
    heard = threading.Event()

    def slow(*_: object) -> Iterator[int]:
        assert heard.wait(20)
        yield from [*served.text.encode(ANSWER), min(served.text.stop_ids)]

    served.session.play = slow
    body = {"model": "scripted", "messages": MESSAGES, "stream": True}
    with httpx.stream("POST", f"{served.url}/v1/chat/completions", json=body, timeout=20) as response:
        text = ""
        for part in response.iter_text():
            text += part
            if text.count(streaming.HEARTBEAT) > 1:
                heard.set()
    assert text.endswith("data: [DONE]\n\n")
    assert (
        "".join(
            json.loads(line[6:])["choices"][0]["delta"].get("content", "")
            for line in text.splitlines()
            if line.startswith("data: {")
        )
        == ANSWER
    )


def test_a_client_that_leaves_ends_its_own_work_and_no_other(served: Served) -> None:
    """One leaves in the middle of a stream, one waits for a whole answer; a third goes on."""
    hold = threading.Event()
    started = threading.Semaphore(0)

    def endless(*_: object) -> Iterator[int]:
        started.release()
        while not hold.wait(0.01):
            yield 300
        yield min(served.text.stop_ids)

    session = served.session
    session.play = endless
    staying: list[Any] = []
    stayer = threading.Thread(target=lambda: staying.append(ask(served)))
    stayer.start()
    assert started.acquire(timeout=20)
    stream = ask(served, stream=True)
    next(iter(stream))
    stream.close()
    with pytest.raises(openai.APITimeoutError):
        served.client().with_options(timeout=0.3).chat.completions.create(model="scripted", messages=MESSAGES)  # type: ignore[arg-type]
    until = threading.Event()
    for _ in range(500):
        if session.ended == 2 and served.entry().slots.running == 1:
            break
        until.wait(0.02)
    assert session.ended == 2
    hold.set()
    stayer.join(20)
    assert staying[0].choices[0].finish_reason == "stop"


# Functions


@pytest.fixture
def caller(served: Served) -> Served:
    """The server, its second model loaded: it knows functions, and says ANSWER."""
    ask(served, model="tools", max_tokens=1)
    session = served.sessions["tools"]
    session.begin(served.saying(ANSWER, served.tools_text))
    return served


def test_functions_are_described_where_the_model_was_trained_to_read_them(caller: Served) -> None:
    completion = ask(caller, model="tools", tools=TOOLS)
    assert completion.choices[0].message.content == ANSWER
    assert completion.choices[0].message.tool_calls is None
    described = Message("system", "You are a helpful assistant with some tools.", json.dumps([FUNCTION]))
    asked = Message("user", "What is an NPU?")
    assert caller.sessions["tools"].prompts == [caller.tools_text.encode_chat([described, asked])]
    ask(caller, model="tools", tools=TOOLS, tool_choice="none")
    assert caller.sessions["tools"].prompts[1] == caller.tools_text.encode_chat([asked])


@pytest.mark.parametrize("before", ["", "Let me look. "])
@pytest.mark.parametrize(
    "call",
    [
        '<|tool_call|>[{"name": "weather", "arguments": {"place": "Oslo", "days": [1, 2]}}]<|/tool_call|>',
        'functools[{"name": "weather", "arguments": {"place": "Oslo", "days": [1, 2]}}]',
    ],
)
def test_calls_are_told_from_text(caller: Served, before: str, call: str) -> None:
    caller.sessions["tools"].play = caller.saying(before + call, caller.tools_text)
    choice = ask(caller, model="tools", tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert (choice.message.content or "") == before
    (called,) = choice.message.tool_calls
    assert called.function.name == "weather"
    assert json.loads(called.function.arguments) == {"place": "Oslo", "days": [1, 2]}
    text, calls, reasons = "", [], []
    for chunk in ask(caller, model="tools", tools=TOOLS, stream=True):
        text += chunk.choices[0].delta.content or ""
        calls += chunk.choices[0].delta.tool_calls or []
        reasons.append(chunk.choices[0].finish_reason)
    assert (text, reasons[-1]) == (before, "tool_calls")
    assert json.loads(calls[0].function.arguments)["place"] == "Oslo"


@pytest.mark.parametrize(
    "words",
    [
        '[{"name": "unknown", "arguments": {}}]',
        "[1, 2, 3] are numbers",
        '<|tool_call|>[{"name": "weather", "argu',
        "functools is a module of Python",
        "f",
    ],
)
def test_what_is_no_call_stays_text(caller: Served, words: str) -> None:
    caller.sessions["tools"].play = caller.saying(words, caller.tools_text)
    # The tokenizer of the test knows the marker as a token that swallows the spaces behind it.
    choice = ask(caller, model="tools", tools=TOOLS).choices[0]
    assert (choice.message.content, choice.finish_reason) == (words, "stop")


def test_a_call_that_must_be_made_is_held_to_its_schema(caller: Served) -> None:
    other = {"type": "function", "function": {"name": "time"}}
    tools = [*TOOLS, other]
    named = {"type": "function", "function": {"name": "weather"}}
    for choice, names in (("required", ["weather", "time"]), (named, ["weather"])):
        ask(caller, model="tools", tools=tools, tool_choice=choice, parallel_tool_calls=False)
        guidance = caller.sessions["tools"].samplings.pop().guidance
        assert guidance is not None
        schema = json.loads(guidance.text)
        items = schema["items"].get("anyOf", [schema["items"]])
        assert [item["properties"]["name"]["const"] for item in items] == names
        arguments = {"additionalProperties": False, **FUNCTION["parameters"]}  # type: ignore[dict-item]
        assert items[0]["properties"]["arguments"] == arguments
        assert (schema["minItems"], schema["maxItems"]) == (1, 1)


def test_calls_and_their_results_are_part_of_the_conversation(caller: Served) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"place": "Oslo"}'}}
    messages = [
        *MESSAGES,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "rain"},
    ]
    ask(caller, model="tools", messages=messages)
    said = '<|tool_call|>[{"name": "weather", "arguments": {"place": "Oslo"}}]<|/tool_call|>'
    expected = [Message("user", "What is an NPU?"), Message("assistant", said), Message("tool", "rain")]
    assert caller.sessions["tools"].prompts == [caller.tools_text.encode_chat(expected)]
