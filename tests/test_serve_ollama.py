"""Ollama's API, asked by Ollama's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import pytest

from aipc.errors import EngineLostError
from aipc.types import Guidance, Message, Sampling
from serving import ANSWER, MESSAGES, Served, serving
from test_serve_openai import FUNCTION, TOOLS


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("serve"), ("tools", "demo")) as served:
        yield served


@pytest.fixture
def served(server: Served) -> Served:
    server.session.begin(server.saying(ANSWER, server.tools_text))
    return server


@pytest.fixture
def client(served: Served) -> Iterator[ollama.Client]:
    client = ollama.Client(served.url)
    yield client
    client._client.close()


def test_a_chat_whole_and_in_lines(served: Served, client: ollama.Client) -> None:
    whole = client.chat("tools:latest", MESSAGES)
    assert whole.message.content == ANSWER
    assert (whole.done, whole.done_reason) == (True, "stop")
    assert whole.prompt_eval_count == len(served.session.prompts[0])
    assert whole.eval_count == len(served.tools_text.encode(ANSWER)) + 1
    assert whole.eval_duration and whole.total_duration
    *lines, last = client.chat("tools", MESSAGES, stream=True)
    assert "".join(line.message.content or "" for line in lines) == ANSWER
    assert len(lines) > 5
    assert not any(line.done for line in lines)
    assert (last.done, last.eval_count) == (True, whole.eval_count)


def test_an_answer_to_a_prompt(served: Served, client: ollama.Client) -> None:
    whole = client.generate("tools", "What is an NPU?", system="Be brief.", options={"num_predict": 3})
    assert whole.done_reason == "length"
    asked = [Message("system", "Be brief."), Message("user", "What is an NPU?")]
    assert served.session.prompts == [served.tools_text.encode_chat(asked)]
    lines = client.generate("tools", "An NPU is", raw=True, stream=True)
    assert "".join(line.response for line in lines) == ANSWER
    assert served.session.prompts[1] == served.tools_text.encode("An NPU is")


def test_every_option_reaches_the_session(served: Served, client: ollama.Client) -> None:
    options = {
        "num_predict": 7,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 3,
        "repeat_penalty": 1.5,
        "seed": 5,
        "num_ctx": 1024,
    }
    client.chat("tools", MESSAGES, options=options, format="json")
    assert served.session.samplings == [
        Sampling(
            7, 0.5, 0.25, 3, 1.5, 5, served.tools_text.stop_ids, Guidance("json_schema", '{"type":"object"}')
        )
    ]
    client.chat("tools", MESSAGES, options={"num_predict": -1, "stop": ["unit"]}, format={"type": "array"})
    sampling = served.session.samplings[1]
    assert sampling.max_new_tokens == served.session.context_length
    assert sampling.guidance == Guidance("json_schema", '{"type":"array"}')


def test_functions(served: Served, client: ollama.Client) -> None:
    call = '<|tool_call|>[{"name": "weather", "arguments": {"place": "Oslo"}}]<|/tool_call|>'
    served.session.play = served.saying(call, served.tools_text)
    answer = client.chat("tools", MESSAGES, tools=TOOLS)
    (called,) = answer.message.tool_calls or ()
    assert (called.function.name, called.function.arguments) == ("weather", {"place": "Oslo"})
    described = Message("system", "You are a helpful assistant with some tools.", json.dumps([FUNCTION]))
    asked = Message("user", "What is an NPU?")
    assert served.session.prompts == [served.tools_text.encode_chat([described, asked])]
    lines = list(client.chat("tools", MESSAGES, tools=TOOLS, stream=True))
    assert [line.message.tool_calls for line in lines if line.message.tool_calls] == [[called]]
    turn: Any = {"role": "assistant", "content": "", "tool_calls": [called]}
    client.chat("tools", [*MESSAGES, turn, {"role": "tool", "content": "rain"}])
    expected = [asked, Message("assistant", call), Message("tool", "rain")]
    assert served.session.prompts[-1] == served.tools_text.encode_chat(expected)


def test_models_are_loaded_listed_and_unloaded(served: Served, client: ollama.Client) -> None:
    for path in ("", "/api/tags", "/api/version"):
        assert httpx.head(served.url + path).status_code == 200
    assert [model.model for model in client.list().models] == ["tools", "demo"]
    assert client.generate("demo", keep_alive="1h").done_reason == "load"
    (entry,) = [model for model in client.ps().models if model.model == "demo"]
    assert entry.context_length == 512
    assert entry.expires_at is not None
    assert client.chat("demo", keep_alive=0).done_reason == "unload"
    assert [model.model for model in client.ps().models] == ["tools"]
    assert served.sessions["demo"].closed
    shown = client.show("demo")
    assert shown.modelinfo == {
        "general.architecture": "phi3",
        "general.basename": "demo",
        "phi3.context_length": 2048,
    }
    assert shown.capabilities == ["completion"]
    assert httpx.get(f"{served.url}/api/version").json()["version"].count(".") == 2


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("chat", {"model": "nothing", "messages": MESSAGES}, 404, "served are tools, demo"),
        ("show", {}, 404, "is not served here"),
        ("chat", {"model": "tools", "messages": [{"role": "user", "images": ["x"]}]}, 400, "no images"),
        ("chat", {"model": "tools", "messages": MESSAGES, "format": "yaml"}, 400, "format: "),
        ("chat", {"model": "tools", "messages": MESSAGES, "keep_alive": "soon"}, 400, "which is no time"),
        ("generate", {"model": "tools", "prompt": "x", "suffix": "y"}, 400, "trained to fill a gap"),
        (
            "generate",
            {"model": "tools", "prompt": "x", "raw": True, "system": "y"},
            400,
            "no place for system",
        ),
        ("generate", {"model": "tools", "prompt": "x", "options": {"top_p": 2}}, 400, "options.top_p"),
        ("nothing", {}, 404, "there is no POST /api/nothing here"),
        ("embed", {"model": "tools", "input": "x"}, 404, "no Phi model makes embeddings"),
        ("pull", {"model": "llama3"}, 404, "by aipc serve MODEL"),
        ("chat", {"model": "demo", "messages": MESSAGES, "tools": TOOLS}, 400, "does not support tools"),
    ],
)
def test_errors_are_a_sentence(served: Served, path: str, body: Any, status: int, words: str) -> None:
    response = httpx.post(f"{served.url}/api/{path}", json=body)
    assert response.status_code == status
    assert words in response.json()["error"]
    assert list(response.json()) == ["error"]


def test_what_the_program_ollama_sends(served: Served) -> None:
    """`ollama run tools` and `ollama stop tools`, as Go writes their structures: empty words and nulls.

    source   Ollama's cmd/cmd.go and the structures of its package api, as forks of 2026 have them
    """
    shown = {"model": "", "system": "", "template": "", "verbose": False, "options": None, "name": "tools"}
    load = {"model": "tools", "prompt": "", "suffix": "", "system": "", "template": "", "options": None}
    ask = {"model": "tools", "messages": MESSAGES, "format": "", "keep_alive": "5m0s", "options": {}}
    assert httpx.head(served.url).status_code == 200
    info = httpx.post(f"{served.url}/api/show", json=shown).json()
    assert info["capabilities"] == ["completion"]
    assert httpx.post(f"{served.url}/api/generate", json=load).json()["done_reason"] == "load"
    lines = [json.loads(line) for line in httpx.post(f"{served.url}/api/chat", json=ask).iter_lines()]
    assert "".join(line["message"]["content"] for line in lines) == ANSWER
    unload = load | {"keep_alive": "0s"}
    assert httpx.post(f"{served.url}/api/generate", json=unload).json()["done_reason"] == "unload"
    assert httpx.post(f"{served.url}/api/generate", json=load).json()["done_reason"] == "load"


def test_a_turn_may_have_no_content_and_an_answer_names_nothing_that_it_has_not(served: Served) -> None:
    call = {"function": {"name": "weather", "arguments": {"place": "Oslo"}}}
    turns = [*MESSAGES, {"role": "assistant", "content": None, "tool_calls": [call]}]
    turns += [{"role": "tool", "content": "rain", "tool_name": "weather"}]
    body = {"model": "tools", "messages": turns, "stream": False, "think": False, "truncate": True}
    answer = httpx.post(f"{served.url}/api/chat", json=body).json()
    assert answer["message"] == {"role": "assistant", "content": ANSWER}
    loaded = httpx.post(f"{served.url}/api/generate", json={"model": "tools"}).json()
    assert None not in loaded.values()


def test_a_stream_that_breaks_off_says_why(served: Served, client: ollama.Client) -> None:
    def play(*_: object) -> Iterator[int]:
        yield from served.tools_text.encode(ANSWER)[:3]
        raise EngineLostError("the process has ended", hint="ask again")

    served.session.play = play
    with pytest.raises(ollama.ResponseError, match="has ended; ask again"):
        list(client.chat("tools", MESSAGES, stream=True))


def test_curl_need_not_say_that_it_sends_json(served: Served) -> None:
    content = json.dumps({"model": "tools", "messages": MESSAGES, "stream": False})
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    response = httpx.post(f"{served.url}/api/chat", content=content, headers=headers)
    assert response.json()["message"]["content"] == ANSWER
