"""OpenAI's chat and text completions: their words in ours, and our answers in theirs."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from aipc.errors import UsageError
from aipc.model import Prompt
from aipc.serve.answers import Piece, Question, Whole
from aipc.serve.failures import body_of
from aipc.serve.logprobs import of_chat, of_text
from aipc.serve.openai_schema import (
    MAX_CHOICES,
    ChatAnswer,
    ChatChoice,
    ChatCompletion,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    FunctionCalled,
    Generation,
    PromptTokens,
    TextChoice,
    TextCompletion,
    ToolCalled,
    Usage,
)
from aipc.serve.streaming import HEARTBEAT, compact
from aipc.serve.tools import Call, CallReader, forced, said, with_tools
from aipc.types import Message, Stats


def chat_questions(request: ChatRequest) -> list[Question]:
    """The same question for each choice.

    raises   UsageError
    """
    options = options_of(request)
    if request.logprobs:
        options["logprobs"] = request.top_logprobs or 0
    elif request.top_logprobs is not None:
        raise UsageError("top_logprobs is there without logprobs", hint='send "logprobs": true with it')
    if request.max_completion_tokens is not None:
        options["max_new_tokens"] = request.max_completion_tokens
    if request.response_format is not None:
        options["response_format"] = request.response_format.model_dump(exclude_none=True)
    messages = [as_message(message) for message in request.messages]
    return choices(
        *with_functions(
            messages,
            options,
            offered(request),
            getattr(getattr(request.tool_choice, "function", None), "name", request.tool_choice),
            several=request.parallel_tool_calls is not False,
        ),
        request.n or 1,
    )


def completion_questions(request: CompletionRequest) -> list[Question]:
    """A question for each choice of each prompt.

    raises   UsageError
    """
    if request.suffix:
        raise UsageError("suffix is not possible: no Phi model was trained to fill a gap")
    prompts = _prompts(request.prompt)
    if request.echo and not all(isinstance(prompt, str) for prompt in prompts):
        raise UsageError("echo is possible for prompts that are text")
    if request.echo and request.logprobs is not None:
        raise UsageError("logprobs are told of the answer, not of a prompt that is echoed")
    count = (request.n or 1) * len(prompts)
    if count > MAX_CHOICES:
        raise UsageError(f"{count} answers are asked for; {MAX_CHOICES} are possible in one request")
    options = options_of(request) | given(logprobs=request.logprobs)
    return [question for prompt in prompts for question in choices(prompt, options, request.n or 1, raw=True)]


def options_of(request: Generation) -> dict[str, Any]:
    """Keywords for Model.stream; what was not said is left to it."""
    return given(
        max_new_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        repetition_penalty=request.repetition_penalty,
        seed=request.seed,
        stop=request.stop or None,
    )


def given(**values: Any) -> dict[str, Any]:
    """The values that a client has given."""
    return {name: value for name, value in values.items() if value is not None}


def choices(prompt: Prompt, options: Mapping[str, Any], count: int, *, raw: bool = False) -> list[Question]:
    """The same question several times; a seed is another for each."""
    seed = options.get("seed")
    seeds = ({} if seed is None else {"seed": seed + index} for index in range(count))
    return [Question(prompt, {**options, **own}, raw) for own in seeds]


def offered(request: ChatRequest) -> list[dict[str, Any]]:
    """The functions that the model is told of."""
    if request.tool_choice == "none":
        return []
    return [tool.function.model_dump(exclude_none=True) for tool in request.tools or ()]


def with_functions(
    messages: Sequence[Message],
    options: Mapping[str, Any],
    functions: Sequence[Mapping[str, Any]],
    choice: object,
    *,
    several: bool,
) -> tuple[Sequence[Message], Mapping[str, Any]]:
    """Messages and options that describe the functions, and hold the model to those it must call.

    choice    "none", "auto", "required", None, or an object that has the name of a function
    several   whether more than one call may be made
    raises    UsageError if it must call a function that is not offered
    """
    if choice not in {None, "none", "auto"}:
        must = [f for f in functions if choice == "required" or f["name"] == choice]
        if not must:
            names = ", ".join(function["name"] for function in functions) or "none"
            raise UsageError(f"tool_choice asks for a function that is not offered; offered: {names}")
        options = {**options, "response_format": forced(must, several=several)}
    return (with_tools(messages, functions) if functions else messages), options


def as_message(message: ChatMessage) -> Message:
    """A turn as models know it.

    raises   UsageError for a turn without content, or arguments that are no JSON
    """
    role = "system" if message.role == "developer" else message.role
    content = message.content
    if isinstance(content, list):
        content = "".join(part.text for part in content)
    if role == "assistant" and message.tool_calls:
        calls = [(call.function.name, arguments_of(call.function.arguments)) for call in message.tool_calls]
        content = (content or "") + said(calls)
    if content is None:
        raise UsageError(f"a {role} message has no content")
    return Message(role, content)


def arguments_of(text: str) -> object:
    """The arguments of an earlier call.

    raises   UsageError
    """
    try:
        return json.loads(text or "{}")
    except (ValueError, RecursionError) as exc:
        raise UsageError("the arguments of a tool call are not JSON") from exc


def chat_completion(request: ChatRequest, answers: Sequence[Whole]) -> ChatCompletion:
    """The whole answer of a chat."""
    return ChatCompletion(
        id=new_id("chatcmpl"),
        created=int(time.time()),
        model=request.model,
        choices=[_chat_choice(request, index, answer) for index, answer in enumerate(answers)],
        usage=usage([answer.stats for answer in answers], request.n or 1),
    )


def text_completion(
    request: CompletionRequest, questions: Sequence[Question], answers: Sequence[Whole]
) -> TextCompletion:
    """The whole answers to prompts."""
    return TextCompletion(
        id=new_id("cmpl"),
        created=int(time.time()),
        model=request.model,
        choices=[
            TextChoice(
                index=index,
                text=(str(question.prompt) if request.echo else "") + answer.text,
                logprobs=None if request.logprobs is None else of_text(answer.logprobs),
                finish_reason=_ended(answer.finish_reason),
            )
            for index, (question, answer) in enumerate(zip(questions, answers, strict=True))
        ],
        usage=usage([answer.stats for answer in answers], request.n or 1),
    )


class _Events:
    """Server-sent events with objects that share a head.

    stats   of each choice that has ended
    """

    media_type = "text/event-stream"
    heartbeat = HEARTBEAT

    def __init__(self, kind: str, prefix: str, request: Generation) -> None:
        self._head = {
            "id": new_id(prefix),
            "object": kind,
            "created": int(time.time()),
            "model": request.model,
        }
        self._choices = request.n or 1
        self._tells_usage = bool(request.stream_options and request.stream_options.include_usage)
        self._stats: dict[int, Stats] = {}

    def closing(self) -> Iterator[str]:
        """How many tokens there were, if that was asked, and OpenAI's last line."""
        if self._tells_usage:
            stats = [self._stats[index] for index in sorted(self._stats)]
            used = usage(stats, self._choices).model_dump(exclude_none=True)
            yield event({**self._head, "choices": [], "usage": used, "timings": _timings(stats)})
        yield "data: [DONE]\n\n"

    def failed(self, exc: Exception) -> str:
        """The error, which OpenAI's clients raise."""
        return event(body_of(exc, "/v1/"))

    def _keep_stats(self, piece: Piece) -> None:
        if piece.chunk.stats is not None:
            self._stats[piece.index] = piece.chunk.stats

    def _event(
        self, index: int, reason: str | None = None, logprobs: BaseModel | None = None, **content: Any
    ) -> str:
        likely = None if logprobs is None else logprobs.model_dump()
        choice = {"index": index, **content, "logprobs": likely, "finish_reason": reason}
        usage_so_far = {"usage": None} if self._tells_usage else {}
        return event({**self._head, "choices": [choice], **usage_so_far})


class ChatEvents(_Events):
    """The answer of a chat as it comes."""

    def __init__(self, request: ChatRequest) -> None:
        super().__init__("chat.completion.chunk", "chatcmpl", request)
        self._readers = [_reader(request) for _ in range(self._choices)]

    def opening(self) -> Iterator[str]:
        """Who speaks, for each choice."""
        for index in range(self._choices):
            yield self._event(index, delta={"role": "assistant", "content": ""})

    def of(self, piece: Piece) -> Iterator[str]:
        """Its text; at the end the calls, and why it ended."""
        index, chunk = piece.index, piece.chunk
        text, calls = self._readers[index].read(chunk.text, ended=chunk.finish_reason is not None)
        if text or chunk.logprobs:
            likely = of_chat(chunk.logprobs) if chunk.logprobs else None
            yield self._event(index, logprobs=likely, delta={"content": text})
        if calls:
            listed = [{"index": at, **_called(call).model_dump()} for at, call in enumerate(calls)]
            yield self._event(index, delta={"tool_calls": listed})
        if chunk.finish_reason is not None:
            yield self._event(index, "tool_calls" if calls else _ended(chunk.finish_reason), delta={})
        self._keep_stats(piece)


class CompletionEvents(_Events):
    """The answers to prompts as they come."""

    def __init__(self, request: CompletionRequest, questions: Sequence[Question]) -> None:
        super().__init__("text_completion", "cmpl", request)
        self._echoes = [str(question.prompt) for question in questions] if request.echo else []

    def opening(self) -> Iterator[str]:
        """The prompts, if they are to be repeated."""
        for index, prompt in enumerate(self._echoes):
            yield self._event(index, text=prompt)

    def of(self, piece: Piece) -> Iterator[str]:
        """Its text, and why it ended."""
        chunk = piece.chunk
        reason = None if chunk.finish_reason is None else _ended(chunk.finish_reason)
        if chunk.text or reason or chunk.logprobs:
            likely = of_text(chunk.logprobs) if chunk.logprobs else None
            yield self._event(piece.index, reason, likely, text=chunk.text)
        self._keep_stats(piece)


def event(content: Mapping[str, Any]) -> str:
    """A server-sent event without a name."""
    return f"data: {compact(content)}\n\n"


def new_id(prefix: str) -> str:
    """An id as OpenAI's look."""
    return f"{prefix}-{secrets.token_hex(12)}"


def usage(stats: Sequence[Stats], answers_each: int) -> Usage:
    """How many tokens there were; a prompt with several answers counts once."""
    prompt_tokens = sum(one.prompt_tokens for one in stats) // answers_each
    generated = sum(one.generated_tokens for one in stats)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=generated,
        total_tokens=prompt_tokens + generated,
        prompt_tokens_details=_cached(stats, answers_each),
    )


def _cached(stats: Sequence[Stats], answers_each: int) -> PromptTokens | None:
    """Of a prompt with several answers, what the one had that found least: it computed for the others.

    stats   in the order of the choices
    """
    known = [one.cached_tokens for one in stats if one.cached_tokens is not None]
    if not known or len(known) < len(stats):
        return None
    prompts = [known[start : start + answers_each] for start in range(0, len(known), answers_each)]
    return PromptTokens(cached_tokens=sum(map(min, prompts)))


def _timings(stats: Sequence[Stats]) -> dict[str, Any] | None:
    """What answered, and how fast: beyond OpenAI's API, for the page. Several answers have no one speed."""
    if len(stats) != 1:
        return None
    (one,) = stats
    return {
        "device": one.device,
        "runtime": one.runtime,
        "precision": one.precision,
        "ttft_s": one.ttft_s,
        "tokens_per_s": one.tokens_per_s,
    }


def _chat_choice(request: ChatRequest, index: int, answer: Whole) -> ChatChoice:
    content, calls = _reader(request).read(answer.text, ended=True)
    return ChatChoice(
        index=index,
        message=ChatAnswer(
            content=None if calls and not content.strip() else content,
            tool_calls=[_called(call) for call in calls] or None,
        ),
        logprobs=of_chat(answer.logprobs) if request.logprobs else None,
        finish_reason="tool_calls" if calls else _ended(answer.finish_reason),
    )


def _called(call: Call) -> ToolCalled:
    return ToolCalled(
        id=call.id, type="function", function=FunctionCalled(name=call.name, arguments=call.arguments_text)
    )


def _reader(request: ChatRequest) -> CallReader:
    return CallReader([function["name"] for function in offered(request)])


def _ended(reason: str) -> Any:
    """OpenAI has no word for an answer that was broken off."""
    return "length" if reason == "length" else "stop"


def _prompts(prompt: str | Sequence[Any]) -> list[Prompt]:
    one = isinstance(prompt, str) or isinstance(prompt[0], int)
    return [prompt] if one else [*prompt]
