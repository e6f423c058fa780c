"""What LangChain's ChatOpenAI promises, asked in LangChain's own environment of the server at a URL.

    python benchmarks/langchain_cell.py URL CALLER

`demo` answers there, and CALLER is a model whose chat template has a place for tools.
"""

from __future__ import annotations

import sys
from typing import Any, Literal

import openai
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

URL, CALLER = sys.argv[1:]
QUESTION = "What is an NPU?"
START = "An NPU (neural processing unit) is a processor"
SCHEMA = {
    "title": "answer",
    "type": "object",
    "properties": {"sure": {"type": "boolean"}},
    "required": ["sure"],
    "additionalProperties": False,
}


def chat(name: str = "demo", **options: Any) -> ChatOpenAI:
    return ChatOpenAI(model=name, base_url=URL, api_key="none", max_retries=0, **options)


@tool
def weather(place: Literal["Oslo", "Rome"]) -> str:
    """The weather of a place."""
    return f"rain in {place}"


def invoke() -> bool:
    answer = chat().invoke([SystemMessage(""), HumanMessage(QUESTION)])
    return answer.content.startswith(START) and answer.usage_metadata["output_tokens"] > 10


def stream() -> bool:
    chunks = list(chat(stream_usage=True).stream(QUESTION))
    total = sum(chunks[1:], chunks[0])
    return total.content.startswith(START) and total.usage_metadata["output_tokens"] > 10 and len(chunks) > 10


def batch() -> bool:
    return all(answer.content.startswith(START) for answer in chat().batch([QUESTION] * 4))


def conversation() -> bool:
    turns = [HumanMessage("Hello"), AIMessage("Hi."), HumanMessage(QUESTION)]
    return bool(chat(temperature=0.5, top_p=0.9, seed=5).invoke(turns).content)


def limits() -> bool:
    short = chat(max_tokens=3).invoke(QUESTION)
    stopped = chat(stop=["processor"]).invoke(QUESTION)
    return short.response_metadata["finish_reason"] == "length" and stopped.content.endswith("is a ")


def several() -> bool:
    return len(chat(n=3).generate([[HumanMessage(QUESTION)]]).generations[0]) == 3


def structured() -> bool:
    answer = chat().with_structured_output(SCHEMA, method="json_schema").invoke(QUESTION)
    return isinstance(answer["sure"], bool)


def tools(**options: Any) -> bool:
    """A call that must be made, streamed and whole, and the turn after its result."""
    caller = chat(CALLER, max_tokens=100, **options).bind_tools(
        [weather], tool_choice="required", parallel_tool_calls=False
    )
    call = caller.invoke(QUESTION)
    chunks = list(caller.stream(QUESTION))
    total = sum(chunks[1:], chunks[0])
    result = weather.invoke(call.tool_calls[0])
    turns = [HumanMessage(QUESTION), call, ToolMessage(result.content, tool_call_id=call.tool_calls[0]["id"])]
    after = chat(CALLER, max_tokens=5, **options).bind_tools([weather]).invoke(turns)
    called = [message.tool_calls[0]["args"]["place"] in {"Oslo", "Rome"} for message in (call, total)]
    return all(called) and isinstance(after, AIMessage)


def responses() -> bool:
    api = chat(use_responses_api=True)
    streamed = "".join(chunk.text for chunk in api.stream(QUESTION))
    return api.invoke(QUESTION).text.startswith(START) and streamed.startswith(START)


def responses_tools() -> bool:
    return tools(use_responses_api=True)


def tools_are_refused() -> bool:
    try:
        chat().bind_tools([weather]).invoke(QUESTION)
    except openai.BadRequestError as exc:
        return "not trained to call functions" in str(exc)
    return False


def unknown_model() -> bool:
    try:
        chat("gpt-4o").invoke(QUESTION)
    except openai.NotFoundError as exc:
        return "served are demo" in str(exc)
    return False


ACTS = (
    invoke,
    stream,
    batch,
    conversation,
    limits,
    several,
    structured,
    tools,
    responses,
    responses_tools,
    tools_are_refused,
    unknown_model,
)


def main() -> int:
    failed = 0
    for act in ACTS:
        try:
            verdict = "held" if act() else "not held"
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is the verdict
            verdict = repr(exc)
        failed += verdict != "held"
        print(f"{act.__name__}: {verdict}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
