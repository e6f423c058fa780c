"""An answer while it comes: what every streamed response has in common, whatever API it speaks."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Protocol

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from aipc.errors import AipcError
from aipc.serve.answers import Answers, Piece

# Clients give up after a minute or two of silence.
HEARTBEAT_S = 10.0
HEARTBEAT = ": the answer is on its way\n\n"

_LOG = logging.getLogger("aipc.serve")


def compact(content: Mapping[str, Any]) -> str:
    """JSON on one line."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


class Events(Protocol):
    """How an API writes an answer that comes in pieces. One object serves one response.

    media_type   of the response
    heartbeat    what keeps a client waiting, or "" where the API has no such thing
    """

    media_type: str
    heartbeat: str

    def opening(self) -> Iterable[str]:
        """Before the first piece."""

    def of(self, piece: Piece) -> Iterable[str]:
        """For a piece."""

    def closing(self) -> Iterable[str]:
        """After the last one."""

    def failed(self, exc: Exception) -> str:
        """In place of the rest, when the answer broke off."""


class AnswerResponse(StreamingResponse):
    """Streams an answer; its work ends with the response, however that ends."""

    def __init__(self, answers: Answers, events: Events) -> None:
        super().__init__(_written(answers, events), media_type=events.media_type)
        self.headers["Cache-Control"] = "no-store"
        self._answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, until it ends or the client has gone."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answers.cancel()


async def _written(answers: Answers, events: Events) -> AsyncIterator[str]:
    try:
        opening = "".join(events.opening())
        if opening:
            yield opening
        while not answers.ended:
            pieces = await answers.take(HEARTBEAT_S)
            text = "".join(line for piece in pieces for line in events.of(piece))
            if text or not pieces:
                yield text or events.heartbeat
        yield "".join(events.closing())
    except Exception as exc:  # noqa: BLE001 - the status is sent: what is left to say goes into the stream
        if not isinstance(exc, AipcError):
            _LOG.error("an answer failed with %s", type(exc).__name__, exc_info=exc)
        yield events.failed(exc)
