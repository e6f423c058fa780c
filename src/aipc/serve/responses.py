"""OpenAI's Responses API, without a memory: its words in ours, and our answers in its objects and events."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from aipc.serve.answers import Piece, Question, Whole
from aipc.serve.failures import body_of
from aipc.serve.logprobs import listed
from aipc.serve.openai import arguments_of, given, new_id, with_functions
from aipc.serve.responses_schema import (
    CallItem,
    CallOutput,
    FunctionTool,
    Incomplete,
    InputMessage,
    InputText,
    InputTokens,
    OutputCall,
    OutputMessage,
    OutputText,
    Reasoning,
    Response,
    ResponsesRequest,
    ResponsesUsage,
)
from aipc.serve.streaming import HEARTBEAT, compact
from aipc.serve.tools import Call, CallReader, said
from aipc.types import Message, TokenLogprob

# What a client writes into `include`; naming alternatives says it as well.
_TELL_LOGPROBS = "message.output_text.logprobs"


def questions(request: ResponsesRequest) -> list[Question]:
    """The one question of a request.

    raises   UsageError
    """
    options = given(
        max_new_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        response_format=_response_format(request),
        logprobs=_logprobs(request),
    )
    messages, held = with_functions(
        _messages(request),
        options,
        _offered(request),
        getattr(request.tool_choice, "name", request.tool_choice),
        several=request.parallel_tool_calls is not False,
    )
    return [Question(messages, held)]


def whole_response(request: ResponsesRequest, answers: Sequence[Whole]) -> Response:
    """The whole answer."""
    answer = answers[0]
    text, calls = _reader(request).read(answer.text, ended=True)
    return _Writer(request).ended(text, calls, answer)


class ResponseEvents:
    """The answer as it comes, in the events of the Responses API."""

    media_type = "text/event-stream"
    heartbeat = HEARTBEAT

    def __init__(self, request: ResponsesRequest) -> None:
        self._writer = _Writer(request)
        self._reader = _reader(request)
        self._text = ""
        self._logprobs: list[TokenLogprob] = []
        self._told = 0
        self._number = -1

    def opening(self) -> Iterator[str]:
        """The response before it has an answer."""
        begun = self._writer.response("in_progress", []).model_dump()
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)

    def of(self, piece: Piece) -> Iterator[str]:
        """Its text; at the end the calls, and the whole response."""
        chunk = piece.chunk
        text, calls = self._reader.read(chunk.text, ended=chunk.finish_reason is not None)
        self._logprobs += chunk.logprobs
        if text:
            yield from self._more_text(text)
        if chunk.finish_reason is None or chunk.stats is None:
            return
        answer = Whole(self._text, chunk.finish_reason, chunk.stats, tuple(self._logprobs))
        whole = self._writer.ended(self._text, calls, answer)
        if not self._text and not calls:
            yield from self._message_begins()
        for index, item in enumerate(whole.output):
            yield from self._item_ends(index, item)
        kind = "response.incomplete" if whole.incomplete_details else "response.completed"
        yield self._event(kind, response=whole.model_dump())

    def closing(self) -> Iterator[str]:
        """Nothing: the last event said so."""
        return iter(())

    def failed(self, exc: Exception) -> str:
        """The error, in the event's own fields and where OpenAI's clients look for it."""
        error = body_of(exc, "/v1/")["error"]
        return self._event(
            "error", code=error["code"], message=error["message"], param=error["param"], error=error
        )

    def _more_text(self, text: str) -> Iterator[str]:
        if not self._text:
            yield from self._message_begins()
        self._text += text
        likely = [token.model_dump() for token in listed(self._logprobs[self._told :])]
        self._told = len(self._logprobs)
        yield self._event("response.output_text.delta", **self._place(), delta=text, logprobs=likely)

    def _message_begins(self) -> Iterator[str]:
        item = self._writer.message("in_progress", None).model_dump()
        part = OutputText(text="").model_dump()
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **self._place(), part=part)

    def _item_ends(self, index: int, item: OutputMessage | OutputCall) -> Iterator[str]:
        whole = item.model_dump()
        if isinstance(item, OutputMessage):
            part = whole["content"][0]
            told = {"text": part["text"], "logprobs": part["logprobs"]}
            yield self._event("response.output_text.done", **self._place(), **told)
            yield self._event("response.content_part.done", **self._place(), part=part)
        else:
            place = {"item_id": item.id, "output_index": index}
            begun = whole | {"status": "in_progress", "arguments": ""}
            yield self._event("response.output_item.added", output_index=index, item=begun)
            yield self._event("response.function_call_arguments.delta", **place, delta=item.arguments)
            yield self._event(
                "response.function_call_arguments.done", **place, name=item.name, arguments=item.arguments
            )
        yield self._event("response.output_item.done", output_index=index, item=whole)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._writer.message_id, "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **content: Any) -> str:
        self._number += 1
        data = {"type": kind, "sequence_number": self._number, **content}
        return f"event: {kind}\ndata: {compact(data)}\n\n"


class _Writer:
    """The objects of one response, which share their ids."""

    def __init__(self, request: ResponsesRequest) -> None:
        self._request = request
        self._id = new_id("resp")
        self._created_at = int(time.time())
        self.message_id = new_id("msg")

    def response(self, status: Any, output: list[OutputMessage | OutputCall]) -> Response:
        """The response with this output."""
        request = self._request
        choice = request.tool_choice or "auto"
        return Response(
            id=self._id,
            created_at=self._created_at,
            status=status,
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            model=request.model,
            output=output,
            parallel_tool_calls=request.parallel_tool_calls is not False,
            temperature=request.temperature,
            top_p=request.top_p,
            top_logprobs=request.top_logprobs,
            tool_choice=choice if isinstance(choice, str) else choice.model_dump(),
            tools=[tool.model_dump() for tool in request.tools or ()],
        )

    def message(self, status: Any, text: str | None, logprobs: Sequence[TokenLogprob] = ()) -> OutputMessage:
        """The answer's text as an item."""
        content = [] if text is None else [OutputText(text=text, logprobs=listed(logprobs))]
        return OutputMessage(id=self.message_id, status=status, content=content)

    def ended(self, text: str, calls: Sequence[Call], answer: Whole) -> Response:
        """The response when all is there.

        text, calls   what the text of the answer is
        """
        cut_off, stats = answer.finish_reason == "length", answer.stats
        status = "incomplete" if cut_off else "completed"
        output: list[OutputMessage | OutputCall] = []
        if text or not calls:
            output.append(self.message(status, text, answer.logprobs))
        output += [
            OutputCall(id=new_id("fc"), call_id=call.id, name=call.name, arguments=call.arguments_text)
            for call in calls
        ]
        response = self.response(status, output)
        response.incomplete_details = Incomplete() if cut_off else None
        response.usage = ResponsesUsage(
            input_tokens=stats.prompt_tokens,
            input_tokens_details=InputTokens(cached_tokens=stats.cached_tokens or 0),
            output_tokens=stats.generated_tokens,
            total_tokens=stats.prompt_tokens + stats.generated_tokens,
        )
        return response


def _messages(request: ResponsesRequest) -> list[Message]:
    """The conversation; calls that follow one another are one turn."""
    messages = [] if request.instructions is None else [Message("system", request.instructions)]
    if isinstance(request.input, str):
        return [*messages, Message("user", request.input)]
    calls: list[tuple[str, object]] = []
    for item in request.input:
        if isinstance(item, CallItem):
            calls.append((item.name, arguments_of(item.arguments)))
            continue
        if isinstance(item, Reasoning):
            continue
        if calls:
            messages.append(Message("assistant", said(calls)))
            calls = []
        messages.append(_message(item))
    if calls:
        messages.append(Message("assistant", said(calls)))
    return messages


def _message(item: InputMessage | CallOutput) -> Message:
    if isinstance(item, CallOutput):
        return Message("tool", _joined(item.output))
    role = "system" if item.role == "developer" else item.role
    return Message(role, _joined(item.content))


def _joined(content: str | Sequence[InputText]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _offered(request: ResponsesRequest) -> list[dict[str, Any]]:
    if request.tool_choice == "none":
        return []
    functions = (tool for tool in request.tools or () if isinstance(tool, FunctionTool))
    return [function.model_dump(exclude={"type"}, exclude_none=True) for function in functions]


def _reader(request: ResponsesRequest) -> CallReader:
    return CallReader([function["name"] for function in _offered(request)])


def _logprobs(request: ResponsesRequest) -> int | None:
    """How many alternatives to each token are asked for."""
    asked = request.top_logprobs or _TELL_LOGPROBS in (request.include or ())
    return (request.top_logprobs or 0) if asked else None


def _response_format(request: ResponsesRequest) -> dict[str, Any] | None:
    """The format as chat completions have it."""
    wanted = request.text.format if request.text else None
    if wanted is None:
        return None
    return {"type": wanted.type, "json_schema": {"schema": wanted.schema_}, "pattern": wanted.pattern}
