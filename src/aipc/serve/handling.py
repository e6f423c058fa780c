"""From a checked request to a response: whole or streamed, and nothing for a client that has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel

from aipc.serve.answers import Desk, Question, Whole
from aipc.serve.places import Wish
from aipc.serve.streaming import HEARTBEAT_S, AnswerResponse, Events
from aipc.serve.watch import Watch

_T = TypeVar("_T")

# What nginx writes for a client that did not wait; nobody receives it.
_GONE = 499


class _ClientGoneError(Exception):
    """Nobody waits for the answer."""


def desk_of(request: Request) -> Desk:
    """The desk of the server that got a request."""
    desk: Desk = request.app.state.desk
    return desk


def watch_of(request: Request) -> Watch:
    """What that server knows of its devices."""
    watch: Watch = request.app.state.watch
    return watch


async def answered(
    request: Request,
    wish: Wish,
    questions: Sequence[Question],
    *,
    events: Events | None,
    whole: Callable[[list[Whole]], BaseModel],
    user: str | None = None,
    keep_alive_s: float | None = None,
    nulls: bool = True,
) -> Response:
    """The response to questions.

    events   how the answer is written while it comes; None if it is wanted whole
    whole    how it is written then
    user     a client's own name for who asks, for a fair queue
    nulls    whether a whole answer names what it has not, as OpenAI's do and Ollama's do not
    raises   what makes an answer impossible, before the first byte is sent
    """
    answers = await desk_of(request).ask(
        wish, questions, _client(request, user), live=events is not None, keep_alive_s=keep_alive_s
    )
    try:
        if events is None:
            result = whole(await _unless_gone(request, answers.whole()))
            return JSONResponse(result.model_dump(mode="json", exclude_none=not nulls))
        # After this wait the status is sent, and an error can only be told within the stream.
        await _unless_gone(request, answers.begin(HEARTBEAT_S))
    except _ClientGoneError:
        answers.cancel()
        return Response(status_code=_GONE)
    except BaseException:
        answers.cancel()
        raise
    return AnswerResponse(answers, events)


async def loaded(request: Request, wish: Wish, keep_alive_s: float | None) -> bool:
    """Load a model that is asked nothing, or unload it where it shall stay no time; whether it was unloaded.

    raises   what Pool.find raises, and what loading raises
    """
    pool = desk_of(request).pool
    if keep_alive_s == 0:
        everywhere = pool.everywhere(pool.served(wish.model))
        for entry in everywhere if wish.anywhere else await pool.find(wish):
            pool.unload(entry)
        return True
    async with pool.lease(wish, await pool.find(wish), keep_alive_s):
        return False


async def _unless_gone(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of a work, which ends when the client closes its connection."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_closed(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _ClientGoneError
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


async def _closed(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _client(request: Request, user: str | None) -> str:
    """Who waits in the queue beside others: the key tells the programs of one machine apart."""
    host = request.client.host if request.client else ""
    return f"{host} {request.headers.get('authorization', '')} {user or ''}"
