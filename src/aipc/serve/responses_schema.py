"""The words of OpenAI's Responses API."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from aipc.serve.openai_schema import (
    OF_TEXT,
    AnyObject,
    Asked,
    Count,
    FunctionName,
    Temperature,
    TokenLogprobs,
    TopP,
    Words,
)


class InputText(Words):
    """A part of a message."""

    type: Annotated[Literal["input_text", "output_text", "text"], OF_TEXT]
    text: str


class InputMessage(Words):
    """A turn of the conversation."""

    type: Literal["message"] | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[InputText]


class CallItem(Words):
    """A call that the model made earlier."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class CallOutput(Words):
    """What came of it."""

    type: Literal["function_call_output"]
    call_id: str
    output: str | list[InputText]


class Reasoning(Words):
    """What another model thought; none here takes it up."""

    type: Literal["reasoning"]


class FunctionTool(Words):
    """A function that the model may call."""

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: AnyObject | None = None


class HostedTool(Words):
    """What OpenAI's own servers do for a model, such as `web_search`. The model is not told of it."""

    type: Annotated[str, Field(max_length=64, json_schema_extra={"not": {"const": "function"}})]


def _kind_of_tool(tool: object) -> str:
    kind = tool.get("type") if isinstance(tool, dict) else getattr(tool, "type", None)
    return "hosted" if isinstance(kind, str) and kind != "function" else "function"


AnyTool = Annotated[
    Annotated[FunctionTool, Tag("function")] | Annotated[HostedTool, Tag("hosted")],
    Discriminator(_kind_of_tool),
]


class FunctionChoice(Words):
    """The function that must be called."""

    type: Literal["function"]
    name: str


class TextFormat(Words):
    """What the answer must look like. `regex` is aipc's own."""

    type: Literal["text", "json_object", "json_schema", "regex"]
    name: str | None = None
    schema_: AnyObject | None = Field(default=None, alias="schema")
    pattern: str | None = None


class TextOptions(Words):
    """How text is written."""

    format: TextFormat | None = None


class ResponsesRequest(Asked):
    """The body of /v1/responses. Nothing is kept: each request carries its whole conversation."""

    input: str | Annotated[list[InputMessage | CallItem | CallOutput | Reasoning], Field(min_length=1)]
    instructions: str | None = None
    max_output_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: Annotated[list[str], Field(max_length=16)] | None = None
    stream: bool | None = None
    text: TextOptions | None = None
    tools: Annotated[list[AnyTool], Field(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    previous_response_id: None = None
    background: Literal[False] | None = None
    user: str | None = None


class OutputText(BaseModel):
    """The text of an answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[TokenLogprobs] = []


class OutputMessage(BaseModel):
    """The answer, as text."""

    id: str
    type: Literal["message"] = "message"
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class OutputCall(BaseModel):
    """A function that the model wants called."""

    id: str
    type: Literal["function_call"] = "function_call"
    status: Literal["completed"] = "completed"
    call_id: str
    name: str
    arguments: str


class Incomplete(BaseModel):
    """Why an answer is not whole."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class InputTokens(BaseModel):
    """Of the prompt's tokens: those that earlier requests had left computed; 0, too, where nobody says."""

    cached_tokens: int = 0


class OutputTokens(BaseModel):
    """Of the answer's tokens: there is no reasoning apart from it."""

    reasoning_tokens: Literal[0] = 0


class ResponsesUsage(BaseModel):
    """How many tokens there were."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: OutputTokens = OutputTokens()
    total_tokens: int


class Response(BaseModel):
    """The answer of /v1/responses."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    error: None = None
    incomplete_details: Incomplete | None = None
    instructions: str | None
    max_output_tokens: int | None
    model: str
    output: list[OutputMessage | OutputCall]
    parallel_tool_calls: bool
    previous_response_id: None = None
    store: Literal[False] = False
    temperature: float | None
    top_p: float | None
    top_logprobs: int | None = None
    tool_choice: Any
    tools: list[Any]
    truncation: Literal["disabled"] = "disabled"
    usage: ResponsesUsage | None = None
    metadata: dict[str, str] = {}
