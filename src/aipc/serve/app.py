"""The routes of the server, and nothing else: what they do is in the files they name."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from starlette.exceptions import HTTPException

import aipc
from aipc.errors import AipcError
from aipc.serve import ollama, openai, page, responses
from aipc.serve.answers import Desk
from aipc.serve.cards import details
from aipc.serve.catalog import describe
from aipc.serve.failures import (
    OLLAMA_PREFIX,
    FailureBody,
    OllamaFailureBody,
    body_of,
    headers_of,
    not_here,
    status_of,
    wrong_field,
)
from aipc.serve.guard import Guard, Policy
from aipc.serve.handling import answered, desk_of, loaded, watch_of
from aipc.serve.metrics import Counted, Metrics
from aipc.serve.ollama_schema import (
    ChatLine,
    GenerateLine,
    GenerateRequest,
    OllamaChatRequest,
    Running,
    Shown,
    ShowRequest,
    Tags,
    Version,
)
from aipc.serve.openai_schema import (
    ChatCompletion,
    ChatRequest,
    CompletionRequest,
    ModelCard,
    ModelDetails,
    ModelList,
    TextCompletion,
)
from aipc.serve.pool import Pool
from aipc.serve.responses_schema import Response as ResponsesAnswer
from aipc.serve.responses_schema import ResponsesRequest
from aipc.serve.watch import Activity, Watch, activity

_LOG = logging.getLogger("aipc.serve")

Documented = dict[int | str, dict[str, Any]]
_STATUSES = {
    400: "The request is not possible",
    401: "The API key is missing or wrong",
    403: "Asked under a wrong name, or from a page elsewhere",
    404: "There is no such model",
    408: "The body came too slowly",
    413: "The body is too large",
    429: "The queue is full",
    500: "The model or the server failed",
    503: "No memory for another model, or shutting down",
}
_FAILURES: Documented = {s: {"model": FailureBody, "description": words} for s, words in _STATUSES.items()}
_OLLAMA_FAILURES: Documented = {
    s: {"model": OllamaFailureBody, "description": words} for s, words in _STATUSES.items()
}
_TEXT = {"schema": {"type": "string"}}
_EVENT = {
    "schema": {"type": "object", "properties": {"event": {"type": "string"}, "data": {"type": "string"}}}
}
_EVENTS: Documented = {200: {"content": {"text/event-stream": _EVENT}}, **_FAILURES}
_LINES: Documented = {200: {"content": {"application/x-ndjson": _TEXT}}, **_OLLAMA_FAILURES}


class Health(BaseModel):
    """That the server is there."""

    status: Literal["ok"] = "ok"
    version: str


general = APIRouter(tags=["server"])
openai_api = APIRouter(prefix="/v1", tags=["OpenAI"])
ollama_api = APIRouter(prefix="/api", tags=["Ollama"])


@general.get("/health", responses=_FAILURES)
async def health() -> Health:
    """Whether the server is there."""
    return Health(version=aipc.__version__)


@general.get(
    "/metrics", response_class=Response, responses={200: {"content": {"text/plain": _TEXT}}, **_FAILURES}
)
async def metrics(request: Request) -> Response:
    """Counters in Prometheus' text format."""
    await watch_of(request).refresh()
    return Response(desk_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@general.get("/monitor", responses=_FAILURES)
async def monitor(request: Request) -> Activity:
    """What the devices are doing, and which models are loaded on which."""
    watch = watch_of(request)
    await watch.refresh()
    return activity(watch, desk_of(request).pool)


@openai_api.get("/models", responses=_FAILURES)
async def models(request: Request) -> ModelList:
    """What is served."""
    return ModelList(data=[ModelCard(id=name, created=0) for name in desk_of(request).pool.names])


@openai_api.get("/models/{model:path}", responses=_FAILURES)
async def model(model: str, request: Request) -> ModelDetails:
    """One of the models, and where it may run."""
    pool = desk_of(request).pool
    return await details(pool, pool.served(model))


@openai_api.post("/chat/completions", response_model=ChatCompletion, responses=_EVENTS)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """The next turn of a conversation."""
    return await answered(
        request,
        body.wish,
        openai.chat_questions(body),
        events=openai.ChatEvents(body) if body.stream else None,
        whole=lambda answers: openai.chat_completion(body, answers),
        user=body.user,
    )


@openai_api.post("/completions", response_model=TextCompletion, responses=_EVENTS)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """What follows a text."""
    questions = openai.completion_questions(body)
    return await answered(
        request,
        body.wish,
        questions,
        events=openai.CompletionEvents(body, questions) if body.stream else None,
        whole=lambda answers: openai.text_completion(body, questions, answers),
        user=body.user,
    )


@openai_api.post("/responses", response_model=ResponsesAnswer, responses=_EVENTS)
async def create_response(body: ResponsesRequest, request: Request) -> Response:
    """The next turn of a conversation, in the newer API; nothing is kept."""
    return await answered(
        request,
        body.wish,
        responses.questions(body),
        events=responses.ResponseEvents(body) if body.stream else None,
        whole=lambda answers: responses.whole_response(body, answers),
        user=body.user,
    )


@ollama_api.head("/version", include_in_schema=False)
@ollama_api.get("/version", responses=_OLLAMA_FAILURES)
async def version() -> Version:
    """The release of Ollama whose API this is."""
    return Version(version=ollama.VERSION)


@ollama_api.head("/tags", include_in_schema=False)
@ollama_api.get("/tags", responses=_OLLAMA_FAILURES)
async def tags(request: Request) -> Tags:
    """What is served."""
    names = desk_of(request).pool.names
    known = await asyncio.to_thread(lambda: [describe(name) for name in names])
    return Tags(models=[ollama.tag(one) for one in known])


@ollama_api.get("/ps", responses=_OLLAMA_FAILURES)
async def loaded_models(request: Request) -> Running:
    """What is loaded."""
    entries = [entry for entry in desk_of(request).pool.entries.values() if entry.model is not None]
    known = await asyncio.to_thread(lambda: [describe(entry.name) for entry in entries])
    pairs = zip(entries, known, strict=True)
    return Running(models=[ollama.running(entry, one) for entry, one in pairs if entry.model is not None])


@ollama_api.post("/show", responses=_OLLAMA_FAILURES)
async def show(body: ShowRequest, request: Request) -> Shown:
    """What is known of a model."""
    name = desk_of(request).pool.served(body.model or body.name or "")
    known = await asyncio.to_thread(describe, name)
    return ollama.shown(known, takes_tools=await asyncio.to_thread(known.takes_tools))


@ollama_api.post("/chat", response_model=ChatLine, responses=_LINES)
async def ollama_chat(body: OllamaChatRequest, request: Request) -> Response:
    """The next turn of a conversation."""
    questions, keep_alive_s = ollama.chat_questions(body), ollama.keep_alive_s(body)
    if not questions:
        unloaded = await loaded(request, body.wish, keep_alive_s)
        return JSONResponse(ollama.no_chat(body, unloaded=unloaded).model_dump(exclude_none=True))
    return await answered(
        request,
        body.wish,
        questions,
        events=ollama.ChatLines(body) if body.stream is not False else None,
        whole=lambda answers: ollama.whole_chat(body, answers),
        keep_alive_s=keep_alive_s,
        nulls=False,
    )


@ollama_api.post("/generate", response_model=GenerateLine, responses=_LINES)
async def generate(body: GenerateRequest, request: Request) -> Response:
    """An answer to a prompt."""
    questions, keep_alive_s = ollama.generate_questions(body), ollama.keep_alive_s(body)
    if not questions:
        unloaded = await loaded(request, body.wish, keep_alive_s)
        return JSONResponse(ollama.no_generation(body, unloaded=unloaded).model_dump(exclude_none=True))
    return await answered(
        request,
        body.wish,
        questions,
        events=ollama.GenerateLines(body) if body.stream is not False else None,
        whole=lambda answers: ollama.whole_generation(body, answers),
        keep_alive_s=keep_alive_s,
        nulls=False,
    )


def create_app(pool: Pool, policy: Policy) -> FastAPI:
    """The application; its shutdown unloads the models."""
    watch = Watch()

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        watch.close()
        await pool.close()

    # The pages of /docs and /redoc would load scripts from elsewhere.
    app = FastAPI(title="aipc", version=aipc.__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    counters = Metrics(pool, watch)
    app.state.desk = Desk(pool, counters)
    app.state.watch = watch
    app.include_router(page.routes)
    app.include_router(general)
    app.include_router(openai_api)
    app.include_router(ollama_api)
    app.add_exception_handler(AipcError, _failed)
    app.add_exception_handler(RequestValidationError, _misdescribed)
    app.add_exception_handler(HTTPException, _not_routed)
    app.add_exception_handler(Exception, _broken)
    app.add_middleware(Guard, policy=policy)
    app.add_middleware(Counted, metrics=counters)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    return app


async def _failed(request: Request, exc: Exception) -> Response:
    return JSONResponse(body_of(exc, request.url.path), status_of(exc), headers_of(exc))


async def _misdescribed(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)  # noqa: S101 - it is registered for this kind
    return JSONResponse(wrong_field(exc.errors(), request.url.path), 400)


async def _not_routed(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)  # noqa: S101 - it is registered for this kind
    absent = exc.status_code == 404
    words = not_here(request.method, request.url.path) if absent else exc.detail
    code = "unknown_url" if absent else None
    failure = {"message": words, "type": "invalid_request_error", "param": None, "code": code}
    of_ollama = request.url.path.startswith(OLLAMA_PREFIX)
    return JSONResponse({"error": words if of_ollama else failure}, exc.status_code, exc.headers)


async def _broken(request: Request, exc: Exception) -> Response:
    _LOG.error("a request failed with %s", type(exc).__name__)
    return JSONResponse(body_of(exc, request.url.path), 500)


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, without the answer to wrong requests that FastAPI adds and we don't give."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        app.openapi_schema = document
    return app.openapi_schema
