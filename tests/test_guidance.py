"""response_format: what is refused before a runtime sees it, and what the demo model says under it."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from aipc import demo
from aipc.conversion.convert import convert_checkpoint
from aipc.errors import RuntimeFailedError, UsageError
from aipc.model import Model
from aipc.runtimes import openvino
from aipc.runtimes.base import RUNTIMES
from aipc.text import Text
from aipc.types import MAX_GUIDANCE_CHARS, MAX_SCHEMA_DEPTH, Completion, Guidance
from sessions import FORMATS

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "device": {"enum": ["NPU", "GPU", "CPU"]},
    },
    "required": ["name", "age", "device"],
    "additionalProperties": False,
}


def schema(content: object) -> dict[str, Any]:
    """A response_format as OpenAI's clients write it."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": content}}


def nested(levels: int) -> dict[str, Any]:
    content: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        content = {"items": content}
    return content


@pytest.mark.parametrize(
    ("response_format", "guidance"),
    [
        (None, None),
        ({"type": "text"}, None),
        ({"type": "json_object"}, Guidance("json_schema", '{"type":"object"}')),
        (schema({"const": "ü"}), Guidance("json_schema", '{"const":"ü"}')),
        ({"type": "regex", "pattern": "a|b"}, Guidance("regex", "a|b")),
    ],
)
def test_what_openai_writes_is_read(
    response_format: dict[str, Any] | None, guidance: Guidance | None
) -> None:
    assert Guidance.parse(response_format) == guidance


@pytest.mark.parametrize(
    ("response_format", "words"),
    [
        ({}, "possible types: text, json_object, json_schema, regex"),
        ({"type": "yaml"}, "'yaml'"),
        ("json_object", "possible types"),
        ({"type": "json_schema"}, "no JSON schema"),
        ({"type": "json_schema", "json_schema": {"schema": "x"}}, "no JSON schema"),
        ({"type": "json_schema", "schema": PERSON}, "no JSON schema"),
        (schema({"const": float}), "cannot be written"),
        (schema(nested(MAX_SCHEMA_DEPTH)), "levels deep"),
        (schema(nested(100_000)), "levels deep"),
        (schema({"const": "x" * MAX_GUIDANCE_CHARS}), "characters"),
        ({"type": "regex"}, "pattern"),
        ({"type": "regex", "pattern": ""}, "pattern"),
        ({"type": "regex", "pattern": ["a"]}, "pattern"),
        ({"type": "regex", "pattern": "x" * (MAX_GUIDANCE_CHARS + 1)}, "characters"),
    ],
)
def test_what_cannot_be_is_refused_by_name(response_format: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Guidance.parse(response_format)


def assert_object(answer: Completion) -> None:
    """It is one, or may become one: so small a model may find no end, but not by blanks."""
    if answer.finish_reason == "stop":
        assert isinstance(json.loads(answer.text), dict)
    else:
        outside_strings = re.sub(r'"(\\.|[^"\\])*("|$)', "", answer.text)
        assert outside_strings.startswith("{")
        assert not re.search(r"\s", outside_strings)


@pytest.fixture(scope="module", params=RUNTIMES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    folder = tmp_path_factory.mktemp("demo") / "out"
    convert_checkpoint(demo.path(), folder, name="demo", to=(FORMATS[request.param],))
    module = importlib.import_module(RUNTIMES[request.param].module)
    session = module.open_session(folder, "CPU", context_length=2048, precision="int4")
    with Model("demo", Text.load(folder), session, runtime=request.param) as model:
        yield model


def test_an_object_is_an_object(model: Model) -> None:
    schema_of_any = schema(
        {"type": "object", "maxProperties": 2, "additionalProperties": {"type": "integer"}}
    )
    for response_format in ({"type": "json_object"}, schema_of_any):
        answer = model.generate("What is an NPU?", response_format=response_format, max_new_tokens=300)
        assert_object(answer)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_schema_is_kept(model: Model, temperature: float) -> None:
    answer = model.generate(
        "Who are you?",
        response_format=schema(PERSON),
        temperature=temperature,
        seed=5,
        max_new_tokens=200,
    )
    said = json.loads(answer.text)
    assert answer.finish_reason == "stop"
    assert list(said) == ["name", "age", "device"]
    assert len(said["name"]) <= 20
    assert 0 <= said["age"] <= 120
    assert said["device"] in {"NPU", "GPU", "CPU"}


@pytest.mark.parametrize("pattern", [r"[a-c]{3}-\d{2}", r"(yes|no), (NPU|GPU)\.", r"grö(ß|ss)er"])
def test_a_pattern_is_kept(model: Model, pattern: str) -> None:
    response_format = {"type": "regex", "pattern": pattern}
    answer = model.generate("Is it fast?", response_format=response_format, max_new_tokens=60)
    assert answer.finish_reason == "stop"
    assert re.fullmatch(pattern, answer.text)


@pytest.mark.parametrize(
    "response_format",
    [
        schema({"type": "nonsense"}),
        schema({"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}, "required": ["a"]}),
        {"type": "regex", "pattern": "[a-c{3}("},
    ],
    ids=["no such type", "no such reference", "no pattern"],
)
def test_what_the_runtime_refuses_is_the_callers_mistake(
    model: Model, response_format: dict[str, Any]
) -> None:
    free = model.generate("What is an NPU?", max_new_tokens=20).text
    with pytest.raises(UsageError, match="response_format"):
        model.generate("What is an NPU?", response_format=response_format, max_new_tokens=20)
    assert model.generate("What is an NPU?", max_new_tokens=20).text == free


def test_log_probabilities_know_nothing_of_the_grammar(model: Model) -> None:
    """Of the few tokens that may follow, one would have a large share; of all tokens each has a small one."""
    answer = model.generate(
        "What is an NPU?", response_format={"type": "regex", "pattern": "qqq"}, logprobs=0, max_new_tokens=20
    )
    assert b"".join(token.content for token in answer.logprobs).strip() == b"qqq"
    assert answer.logprobs[0].logprob < -5


def test_free_text_is_free_again_after_guided(model: Model) -> None:
    free = model.generate("What is an NPU?", max_new_tokens=20).text
    model.generate("What is an NPU?", response_format={"type": "regex", "pattern": "x+"}, max_new_tokens=3)
    assert model.generate("What is an NPU?", max_new_tokens=20).text == free


def test_grammars_are_compiled_while_others_are_answered(model: Model) -> None:
    patterns = [rf"[a-c]{{3}}-\d{{{digits}}}" for digits in range(1, 6)]
    with ThreadPoolExecutor(8) as pool:
        free = pool.submit(model.generate, "What is an NPU?", max_new_tokens=100)
        guided = [
            pool.submit(
                model.generate,
                "Is it fast?",
                response_format={"type": "regex", "pattern": pattern},
                max_new_tokens=60,
            )
            for pattern in patterns
        ]
        refused = pool.submit(
            model.generate, "Is it fast?", response_format={"type": "regex", "pattern": "[a-c{3}("}
        )
        withdrawn = model.stream("Is it fast?", response_format=schema(PERSON))
        leaving = pool.submit(list, withdrawn)
        withdrawn.cancel()
    assert free.result().text
    for pattern, answer in zip(patterns, guided, strict=True):
        assert re.fullmatch(pattern, answer.result().text)
    with pytest.raises(UsageError, match="response_format"):
        refused.result()
    assert leaving.result()[-1].finish_reason in {"cancelled", "stop"}


@pytest.mark.parametrize(
    "response_format",
    [{"type": "json_object"}, schema(PERSON), {"type": "regex", "pattern": "(yes|no), .{3,9}!"}],
    ids=lambda wanted: wanted["type"],
)
def test_the_npus_pipeline_is_held_too(response_format: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    convert_checkpoint(demo.path(), folder, name="demo")
    session = openvino.open_session(
        folder,
        "NPU",
        properties={"NPUW_DEVICES": "CPU", "NPUW_ONLINE_PIPELINE": "NONE", "INFERENCE_PRECISION_HINT": "f32"},
        compiled_dir=tmp_path / "compiled",
        context_length=2048,
        precision="int4",
    )
    with Model("demo", Text.load(folder), session, runtime="openvino") as model:
        answer = model.generate("What is an NPU?", response_format=response_format, max_new_tokens=100)
    if response_format["type"] == "json_object":
        assert_object(answer)
        return
    assert answer.finish_reason == "stop"
    if response_format["type"] == "regex":
        assert re.fullmatch(response_format["pattern"], answer.text)
    else:
        assert json.loads(answer.text)["device"] in {"NPU", "GPU", "CPU"}


@pytest.mark.parametrize(
    "response_format",
    [
        schema({"$ref": "#"}),
        schema({"type": "array", "items": {"type": "array", "uniqueItems": True}}),
        schema({"type": "string", "pattern": "((a{1000}){1000}){1000}"}),
        {"type": "regex", "pattern": "((a{0,100}){0,100}){0,100}"},
    ],
    ids=["reference to itself", "unknown keyword", "pattern in a schema", "pattern"],
)
def test_a_hostile_format_ends_and_leaves_the_model_as_it_was(
    model: Model, response_format: dict[str, Any]
) -> None:
    pid = model.session.pid
    with suppress(UsageError, RuntimeFailedError):
        answer = model.generate("What is an NPU?", response_format=response_format, max_new_tokens=5)
        assert len(answer.text) <= 5 * 16
    assert model.generate("What is an NPU?", max_new_tokens=5).finish_reason == "length"
    assert model.session.pid == pid
