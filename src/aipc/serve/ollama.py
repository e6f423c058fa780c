"""Ollama's API: its words in ours, and our answers in its lines of JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from aipc.errors import UsageError
from aipc.serve.answers import Piece, Question, Whole
from aipc.serve.catalog import Known
from aipc.serve.failures import OLLAMA_PREFIX, body_of
from aipc.serve.ollama_schema import (
    Asking,
    ChatLine,
    ChatReply,
    Details,
    GenerateLine,
    GenerateRequest,
    OllamaCall,
    OllamaChatRequest,
    OllamaFunction,
    OllamaMessage,
    Options,
    RunningModel,
    Shown,
    TagModel,
)
from aipc.serve.openai import given
from aipc.serve.pool import Entry
from aipc.serve.streaming import compact
from aipc.serve.times import parse_seconds
from aipc.serve.tools import Call, CallReader, said, with_tools
from aipc.types import Message, Stats

# The release of Ollama whose API this is; codex takes none before 0.13.4, the first with /v1/responses.
VERSION = "0.13.5"
_NANOSECONDS = 1e9


def chat_questions(request: OllamaChatRequest) -> list[Question]:
    """The one question of a chat, or none if the model is only to be loaded.

    raises   UsageError
    """
    if not request.messages:
        return []
    messages = [_message(message) for message in request.messages]
    functions = _offered(request)
    return [Question(with_tools(messages, functions) if functions else messages, _options(request))]


def generate_questions(request: GenerateRequest) -> list[Question]:
    """The one question of a prompt, or none if the model is only to be loaded.

    raises   UsageError
    """
    if not request.prompt:
        return []
    if request.raw:
        if request.system:
            raise UsageError("raw is plain text, with no place for system", hint="leave one of them out")
        return [Question(request.prompt, _options(request), raw=True)]
    system = [Message("system", request.system)] if request.system else []
    return [Question([*system, Message("user", request.prompt)], _options(request))]


def keep_alive_s(request: Asking) -> float | None:
    """How long the model stays loaded afterwards; None for the server's own time.

    raises   UsageError
    """
    if isinstance(request.keep_alive, str):
        return parse_seconds(request.keep_alive, "keep_alive")
    return request.keep_alive


def whole_chat(request: OllamaChatRequest, answers: Sequence[Whole]) -> ChatLine:
    """The whole answer of a chat."""
    answer = answers[0]
    text, calls = _reader(request).read(answer.text, ended=True)
    reply = ChatReply(content=text, tool_calls=_called(calls))
    return ChatLine(**_head(request), **_ending(answer.finish_reason, answer.stats), message=reply)


def whole_generation(request: GenerateRequest, answers: Sequence[Whole]) -> GenerateLine:
    """The whole answer to a prompt."""
    answer = answers[0]
    ending = _ending(answer.finish_reason, answer.stats)
    return GenerateLine(**_head(request), **ending, response=answer.text)


def no_chat(request: OllamaChatRequest, *, unloaded: bool) -> ChatLine:
    """The answer to a chat that asked nothing."""
    return ChatLine(**_head(request), **_nothing(unloaded=unloaded), message=ChatReply(content=""))


def no_generation(request: GenerateRequest, *, unloaded: bool) -> GenerateLine:
    """The answer to a prompt that asked nothing."""
    return GenerateLine(**_head(request), **_nothing(unloaded=unloaded), response="")


class _Lines:
    """Lines of JSON; Ollama's API has nothing that keeps a client waiting."""

    media_type = "application/x-ndjson"
    heartbeat = ""

    def opening(self) -> Iterator[str]:
        """Nothing."""
        return iter(())

    def closing(self) -> Iterator[str]:
        """Nothing: the last line said so."""
        return iter(())

    def failed(self, exc: Exception) -> str:
        """The error, which Ollama's clients raise."""
        return compact(body_of(exc, OLLAMA_PREFIX)) + "\n"


class ChatLines(_Lines):
    """The answer of a chat as it comes."""

    def __init__(self, request: OllamaChatRequest) -> None:
        self._request = request
        self._reader = _reader(request)

    def of(self, piece: Piece) -> Iterator[str]:
        """Its text; at the end the calls, and the figures."""
        chunk = piece.chunk
        text, calls = self._reader.read(chunk.text, ended=chunk.finish_reason is not None)
        if text or calls:
            yield self._line(ChatReply(content=text, tool_calls=_called(calls)), done=False)
        if chunk.finish_reason is not None and chunk.stats is not None:
            yield self._line(ChatReply(content=""), **_ending(chunk.finish_reason, chunk.stats))

    def _line(self, reply: ChatReply, **ending: Any) -> str:
        line = ChatLine(**_head(self._request), message=reply, **ending)
        return line.model_dump_json(exclude_none=True) + "\n"


class GenerateLines(_Lines):
    """The answer to a prompt as it comes."""

    def __init__(self, request: GenerateRequest) -> None:
        self._request = request

    def of(self, piece: Piece) -> Iterator[str]:
        """Its text; at the end the figures."""
        chunk = piece.chunk
        if chunk.text:
            yield self._line(chunk.text, done=False)
        if chunk.finish_reason is not None and chunk.stats is not None:
            yield self._line("", **_ending(chunk.finish_reason, chunk.stats))

    def _line(self, text: str, **ending: Any) -> str:
        line = GenerateLine(**_head(self._request), response=text, **ending)
        return line.model_dump_json(exclude_none=True) + "\n"


def tag(known: Known) -> TagModel:
    """A served model in the list of /api/tags."""
    return TagModel(
        name=known.name,
        model=known.name,
        modified_at=_stamp(known.modified),
        size=known.bytes,
        digest=known.digest,
        details=_details(known),
    )


def shown(known: Known, *, takes_tools: bool) -> Shown:
    """What /api/show tells of a model."""
    info: dict[str, Any] = {"general.architecture": "phi3", "general.basename": known.name}
    if known.context_length is not None:
        info["phi3.context_length"] = known.context_length
    capabilities = ["completion", "tools"] if takes_tools else ["completion"]
    return Shown(
        details=_details(known),
        model_info=info,
        capabilities=capabilities,
        modified_at=_stamp(known.modified),
    )


def running(entry: Entry, known: Known) -> RunningModel:
    """A loaded model in the list of /api/ps; one that stays for ever expires in a far year."""
    assert entry.model is not None  # noqa: S101 - the caller lists loaded ones
    on_gpu = not entry.model.device.startswith(("CPU", "NPU"))
    expires = entry.expires
    return RunningModel(
        name=entry.name,
        model=entry.name,
        size=entry.memory_bytes,
        size_vram=entry.memory_bytes if on_gpu else 0,
        digest=known.digest,
        details=_details(known),
        expires_at=_stamp(time.time() + 10**9 if expires is None else expires),
        context_length=entry.model.context_length,
    )


def _message(message: OllamaMessage) -> Message:
    content = message.content or ""
    if message.tool_calls:
        content += said([(call.function.name, call.function.arguments) for call in message.tool_calls])
    return Message(message.role, content)


def _options(request: Asking) -> dict[str, Any]:
    """Keywords for Model.stream; what was not said is left to it."""
    asked = request.options or Options()
    response_format: dict[str, Any] | None = None
    if request.format:
        schema = {"type": "object"} if request.format == "json" else request.format
        response_format = {"type": "json_schema", "json_schema": {"schema": schema}}
    return given(
        # Below 0 means as much as there is room for.
        max_new_tokens=asked.num_predict if (asked.num_predict or 0) > 0 else None,
        temperature=asked.temperature,
        top_p=asked.top_p,
        top_k=asked.top_k,
        repetition_penalty=asked.repeat_penalty,
        seed=asked.seed,
        stop=asked.stop or None,
        response_format=response_format,
    )


def _offered(request: OllamaChatRequest) -> list[dict[str, Any]]:
    return [tool.function.model_dump(exclude_none=True) for tool in request.tools or ()]


def _reader(request: OllamaChatRequest) -> CallReader:
    return CallReader([function["name"] for function in _offered(request)])


def _called(calls: Sequence[Call]) -> list[OllamaCall] | None:
    listed = [
        OllamaCall(function=OllamaFunction(name=call.name, arguments=dict(call.arguments))) for call in calls
    ]
    return listed or None


def _head(request: Asking) -> dict[str, Any]:
    return {"model": request.model, "created_at": _stamp(time.time())}


def _nothing(*, unloaded: bool) -> dict[str, Any]:
    return {"done": True, "done_reason": "unload" if unloaded else "load"}


def _ending(reason: str, stats: Stats) -> dict[str, Any]:
    """What the last line tells. What was not measured is left out."""
    later = stats.generated_tokens - 1
    decode_s = stats.tpot_s * later if stats.tpot_s is not None else 0.0
    return {
        "done": True,
        "done_reason": "length" if reason == "length" else "stop",
        "total_duration": int(((stats.ttft_s or 0.0) + decode_s) * _NANOSECONDS),
        "load_duration": 0,
        "prompt_eval_count": stats.prompt_tokens,
        "prompt_eval_duration": int((stats.ttft_s or 0.0) * _NANOSECONDS),
        "eval_count": stats.generated_tokens,
        "eval_duration": int(decode_s * _NANOSECONDS),
    }


def _details(known: Known) -> Details:
    return Details(format=known.format, quantization_level=known.precision)


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
