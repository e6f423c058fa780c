"""OpenAI's Responses API, asked by OpenAI's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from aipc.errors import EngineLostError
from aipc.types import Guidance, Message, Sampling, ScoredToken
from serving import ANSWER, Served, serving
from test_serve_openai import FUNCTION

TOOLS: Any = [{"type": "function", **FUNCTION}]
CALL = '<|tool_call|>[{"name": "weather", "arguments": {"place": "Oslo"}}]<|/tool_call|>'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("serve"), ("tools",)) as served:
        yield served


@pytest.fixture
def served(server: Served) -> Served:
    server.session.begin(server.saying(ANSWER, server.tools_text))
    return server


def ask(served: Served, **options: Any) -> Any:
    return served.client().responses.create(**{"model": "tools", "input": "What is an NPU?"} | options)


def test_a_whole_response(served: Served) -> None:
    response = ask(served, instructions="Be brief.", max_output_tokens=200, temperature=0.5, top_p=0.5)
    assert response.output_text == ANSWER
    assert response.status == "completed"
    messages = [Message("system", "Be brief."), Message("user", "What is an NPU?")]
    assert served.session.prompts == [served.tools_text.encode_chat(messages)]
    sampling = served.session.samplings[0]
    assert (sampling.max_new_tokens, sampling.temperature, sampling.top_p) == (200, 0.5, 0.5)
    assert response.usage.input_tokens == len(served.session.prompts[0])
    assert response.usage.output_tokens == len(served.tools_text.encode(ANSWER)) + 1


def test_a_response_in_events(served: Served) -> None:
    events = list(ask(served, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == ANSWER
    assert events[-1].response.output_text == ANSWER
    assert events[-1].response.id == events[0].response.id
    assert events[-1].response.output[0].id == events[2].item.id


def test_what_agents_send_besides(served: Served) -> None:
    """The tools of OpenAI's own servers are not offered, and what another model thought is passed over."""
    hosted = [
        {"type": "web_search", "external_web_access": False},
        {"type": "namespace", "name": "agents", "tools": TOOLS},
        {"type": "custom", "name": "apply_patch", "format": {"type": "grammar"}},
    ]
    thought = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"}
    question = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Rain?"}]}
    besides = {
        "store": False,
        "reasoning": {"summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "extra_body": {"prompt_cache_key": "x", "client_metadata": {"a": "b"}},
    }
    response = ask(served, input=[thought, question], tools=[*TOOLS, *hosted], **besides)
    assert response.output_text == ANSWER
    (prompt,) = served.session.prompts
    described = Message("system", "You are a helpful assistant with some tools.", json.dumps([FUNCTION]))
    assert prompt == served.tools_text.encode_chat([described, Message("user", "Rain?")])
    for wrong in ({"type": "function"}, {"name": "f"}):
        with pytest.raises(openai.BadRequestError, match=r"tools\.0"):
            ask(served, tools=[wrong])
    with pytest.raises(openai.BadRequestError, match="not offered; offered: none"):
        ask(served, tools=hosted, tool_choice="required")
    with pytest.raises(openai.BadRequestError, match="no images"):
        ask(served, input=[{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}])


def test_how_likely_the_tokens_of_a_response_were(served: Served) -> None:
    def play(prompt: list[int], sampling: Sampling) -> Iterator[int]:
        for token in [*served.tools_text.encode(ANSWER), min(served.tools_text.stop_ids)]:
            asked = sampling.logprobs
            yield token if asked is None else ScoredToken(token, -0.5, [(token, -0.5), (7, -1.0)][:asked])

    served.session.play = play
    (part,) = ask(served, top_logprobs=2).output[0].content
    assert b"".join(bytes(token.bytes) for token in part.logprobs).decode() == ANSWER
    assert {len(token.top_logprobs) for token in part.logprobs} == {2}
    events = list(ask(served, include=["message.output_text.logprobs"], stream=True))
    told = [one for e in events if e.type == "response.output_text.delta" for one in e.logprobs]
    assert [one.token for one in told] == [token.token for token in part.logprobs]
    done = next(event for event in events if event.type == "response.output_text.done")
    assert [one.logprob for one in done.logprobs] == [-0.5] * len(told)
    assert ask(served).output[0].content[0].logprobs == []
    assert [sampling.logprobs for sampling in served.session.samplings] == [2, 0, None]


def test_tokens_from_a_cache_are_counted(served: Served) -> None:
    assert ask(served).usage.input_tokens_details.cached_tokens == 0, "nobody said so"
    served.session.cached = 7
    assert ask(served).usage.input_tokens_details.cached_tokens == 7
    assert list(ask(served, stream=True))[-1].response.usage.input_tokens_details.cached_tokens == 7
    served.session.cached = None


def test_an_answer_that_is_cut_off_is_incomplete(served: Served) -> None:
    response = ask(served, max_output_tokens=2)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert list(ask(served, max_output_tokens=2, stream=True))[-1].type == "response.incomplete"


def test_the_conversation_comes_with_the_request(served: Served) -> None:
    ask(
        served,
        input=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
            {"type": "function_call", "call_id": "1", "name": "weather", "arguments": '{"place": "Oslo"}'},
            {"type": "function_call_output", "call_id": "1", "output": "rain"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wet."}]},
            {"role": "user", "content": "And now?"},
        ],
    )
    words = [
        ("system", "Be brief."),
        ("user", "Weather?"),
        ("assistant", CALL),
        ("tool", "rain"),
        ("assistant", "Wet."),
        ("user", "And now?"),
    ]
    assert served.session.prompts == [served.tools_text.encode_chat([Message(*word) for word in words])]


def test_a_schema_and_functions(served: Served) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    ask(served, text={"format": {"type": "json_schema", "name": "x", "schema": schema}})
    assert served.session.samplings[0].guidance == Guidance(
        "json_schema", json.dumps(schema, separators=(",", ":"))
    )
    served.session.play = served.saying(CALL, served.tools_text)
    (call,) = ask(served, tools=TOOLS).output
    assert (call.type, call.name, json.loads(call.arguments)) == (
        "function_call",
        "weather",
        {"place": "Oslo"},
    )
    events = list(ask(served, tools=TOOLS, tool_choice={"type": "function", "name": "weather"}, stream=True))
    kinds = [event.type for event in events]
    assert "response.function_call_arguments.done" in kinds
    assert "response.output_text.delta" not in kinds
    assert events[-1].response.output[0].name == "weather"
    guidance = served.session.samplings[-1].guidance
    assert guidance is not None
    assert json.loads(guidance.text)["items"]["properties"]["name"] == {"const": "weather"}


def test_what_needs_a_memory_is_refused(served: Served) -> None:
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        ask(served, previous_response_id="resp_1")
    with pytest.raises(openai.BadRequestError, match="background"):
        ask(served, background=True)


def test_a_stream_that_breaks_off_says_why(served: Served) -> None:
    def play(*_: object) -> Iterator[int]:
        yield from served.tools_text.encode(ANSWER)[:3]
        raise EngineLostError("the process has ended", hint="ask again")

    served.session.play = play
    with pytest.raises(openai.APIError, match="has ended; ask again") as caught:
        list(ask(served, stream=True))
    assert caught.value.code == "engine_lost"
