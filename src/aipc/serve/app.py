"""The routes of the server, and nothing else: what they do is in the files they name."""

from __future__ import annotations

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
from aipc.serve import openai
from aipc.serve.answers import Desk
from aipc.serve.failures import FailureBody, body_of, headers_of, status_of, wrong_field
from aipc.serve.guard import Guard, Policy
from aipc.serve.handling import answered, desk_of
from aipc.serve.metrics import Counted, Metrics
from aipc.serve.openai_schema import (
    ChatCompletion,
    ChatRequest,
    CompletionRequest,
    ModelCard,
    ModelList,
    TextCompletion,
)
from aipc.serve.pool import Pool

_LOG = logging.getLogger("aipc.serve")

_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": FailureBody, "description": words}
    for status, words in {
        400: "The request is not possible",
        401: "The API key is missing or wrong",
        403: "Asked under a wrong name, or from a page elsewhere",
        404: "There is no such model",
        408: "The body came too slowly",
        413: "The body is too large",
        429: "The queue is full",
        500: "The model or the server failed",
        503: "No memory for another model, or shutting down",
    }.items()
}
_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}},
    **_FAILURES,
}


class Health(BaseModel):
    """That the server is there."""

    status: Literal["ok"] = "ok"
    version: str


general = APIRouter(tags=["server"])
openai_api = APIRouter(prefix="/v1", tags=["OpenAI"])


@general.get("/health")
async def health() -> Health:
    """Whether the server is there."""
    return Health(version=aipc.__version__)


@general.get(
    "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **_FAILURES}
)
async def metrics(request: Request) -> Response:
    """Counters in Prometheus' text format."""
    return Response(desk_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@openai_api.get("/models", responses=_FAILURES)
async def models(request: Request) -> ModelList:
    """What is served."""
    return ModelList(data=[ModelCard(id=name, created=0) for name in desk_of(request).pool.entries])


@openai_api.get("/models/{model:path}", responses=_FAILURES)
async def model(model: str, request: Request) -> ModelCard:
    """One of the models."""
    return ModelCard(id=desk_of(request).pool.find(model).name, created=0)


@openai_api.post("/chat/completions", response_model=ChatCompletion, responses=_STREAMED)
async def chat_completions(body: ChatRequest, request: Request) -> Response:
    """The next turn of a conversation."""
    return await answered(
        request,
        body.model,
        openai.chat_questions(body),
        events=openai.ChatEvents(body) if body.stream else None,
        whole=lambda answers: openai.chat_completion(body, answers),
        user=body.user,
    )


@openai_api.post("/completions", response_model=TextCompletion, responses=_STREAMED)
async def completions(body: CompletionRequest, request: Request) -> Response:
    """What follows a text."""
    questions = openai.completion_questions(body)
    return await answered(
        request,
        body.model,
        questions,
        events=openai.CompletionEvents(body, questions) if body.stream else None,
        whole=lambda answers: openai.text_completion(body, questions, answers),
        user=body.user,
    )


def create_app(pool: Pool, policy: Policy) -> FastAPI:
    """The application; its shutdown unloads the models."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await pool.close()

    # The pages of /docs and /redoc would load scripts from elsewhere.
    app = FastAPI(title="aipc", version=aipc.__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    counters = Metrics(pool)
    app.state.desk = Desk(pool, counters)
    app.include_router(general)
    app.include_router(openai_api)
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
    failure = {"message": exc.detail, "type": "invalid_request_error", "param": None, "code": None}
    ollama = request.url.path.startswith("/api/")
    return JSONResponse({"error": exc.detail if ollama else failure}, exc.status_code, exc.headers)


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
