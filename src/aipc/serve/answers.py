"""The way of a request: into the queue, to a loaded model, piece by piece back to who asked."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from aipc.errors import EngineLostError
from aipc.model import Model, Prompt
from aipc.serve.failures import RefusedError
from aipc.serve.metrics import Metrics
from aipc.serve.places import Wish
from aipc.serve.pool import Entry, Pool
from aipc.serve.reading import read
from aipc.serve.slots import Ticket
from aipc.types import Chunk, FinishReason, Stats, Stream, TokenLogprob

# What an answer may have where the client names no limit. More would have LongRoPE's long factors chosen for
# short prompts, in case the answer gets as long as it may.
_USUAL_MOST_TOKENS = 2048
# No answer takes longer, queue and load included.
_LONGEST_S = 3600.0
_ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class Question:
    """One answer's worth of work.

    options   keywords for Model.stream
    """

    prompt: Prompt
    options: Mapping[str, Any]
    raw: bool = False

    def ask(self, model: Model) -> Stream[Chunk]:
        """The answer's stream.

        raises   UsageError, PromptTooLongError
        """
        most = min(model.context_length, _USUAL_MOST_TOKENS)
        return model.stream(self.prompt, raw=self.raw, **{"max_new_tokens": most, **self.options})


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk of the answer to one of the questions."""

    index: int
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer that is complete."""

    text: str
    finish_reason: FinishReason
    stats: Stats
    logprobs: tuple[TokenLogprob, ...] = ()


# Opens the model that the answers come from, and tells where it runs.
Lease = Callable[[], contextlib.AbstractAsyncContextManager[tuple[Entry, Model]]]


class Desk:
    """Where requests are handed in."""

    def __init__(self, pool: Pool, metrics: Metrics) -> None:
        self.pool = pool
        self.metrics = metrics

    async def ask(
        self,
        wish: Wish,
        questions: Sequence[Question],
        client: str,
        *,
        live: bool,
        keep_alive_s: float | None = None,
    ) -> Answers:
        """The answers to all questions. Whoever asks calls `cancel` in the end, whatever happened.

        client         who waits in the queue beside others
        live           pieces are handed out as they come; otherwise all of an answer at its end
        keep_alive_s   how long the model stays loaded afterwards, in place of the usual
        raises         what Pool.find raises, RefusedError (429)
        """
        entries = await self.pool.find(wish)
        # Whoever is sent on from there to another place waited here.
        tickets = entries[0].slots.enter(client, len(questions))
        work = list(zip(questions, tickets, strict=True))
        return Answers(self.metrics, partial(self.pool.lease, wish, entries, keep_alive_s), work, live)


class Answers:
    """The answers to the questions of one request, under way at the same time."""

    def __init__(
        self, metrics: Metrics, lease: Lease, work: Sequence[tuple[Question, Ticket]], live: bool
    ) -> None:
        self._metrics = metrics
        self._lease = lease
        self._live = live
        self._arrived: float | None = time.perf_counter()
        self._left = len(work)
        self._begun: list[Piece] = []
        self._pieces: asyncio.Queue[list[Piece] | Exception] = asyncio.Queue(maxsize=64)
        self._tickets = [ticket for _, ticket in work]
        self._tasks = [
            asyncio.create_task(self._answer(index, question, ticket))
            for index, (question, ticket) in enumerate(work)
        ]

    @property
    def ended(self) -> bool:
        """Whether every answer was handed out to its end."""
        return self._left == 0 and not self._begun

    async def begin(self, wait_s: float) -> None:
        """Wait for the first pieces, which `take` then gives; at most so long.

        raises   what makes an answer impossible
        """
        self._begun = await self.take(wait_s)

    async def take(self, wait_s: float | None = None) -> list[Piece]:
        """What has come, once something has; nothing after `wait_s`.

        raises   what any of the answers raises
        """
        if self._begun:
            begun, self._begun = self._begun, []
            return begun
        try:
            async with asyncio.timeout(wait_s):
                pieces = await self._pieces.get()
        except TimeoutError:
            return []
        if isinstance(pieces, Exception):
            raise pieces
        self._left -= sum(piece.chunk.finish_reason is not None for piece in pieces)
        return pieces

    async def whole(self) -> list[Whole]:
        """All answers.

        raises   what any of them raises
        """
        chunks: list[list[Chunk]] = [[] for _ in self._tasks]
        while not self.ended:
            for piece in await self.take():
                chunks[piece.index].append(piece.chunk)
        return [_joined(parts) for parts in chunks]

    def cancel(self) -> None:
        """Stop the work that is left."""
        for task in self._tasks:
            task.cancel()
        # A task that had not begun when it was cancelled never will, and gives nothing back.
        for ticket in self._tickets:
            ticket.leave()

    async def _answer(self, index: int, question: Question, ticket: Ticket) -> None:
        """Put the pieces of one answer, or why it has none, into the queue."""
        try:
            async with asyncio.timeout(_LONGEST_S):
                await ticket.granted
                async with self._lease() as (entry, model):
                    await self._attempt(index, question, entry, model)
        except TimeoutError:
            late = RefusedError(503, "too_slow", f"the answer took longer than {_LONGEST_S:.0f} s")
            await self._pieces.put(late)
        except Exception as exc:  # noqa: BLE001 - raised again where the pieces are taken
            await self._pieces.put(exc)
        finally:
            ticket.leave()

    async def _attempt(self, index: int, question: Question, entry: Entry, model: Model) -> None:
        """Ask; and once more if the process was lost before anything was handed out."""
        for attempt in range(1, _ATTEMPTS + 1):
            handed_out = False
            kept: list[Piece] = []
            try:
                async with contextlib.aclosing(read(lambda: question.ask(model))) as batches:
                    async for batch in batches:
                        self._observe(entry, batch)
                        kept += [Piece(index, chunk) for chunk in batch]
                        if kept and (self._live or kept[-1].chunk.finish_reason):
                            handed_out = True
                            await self._pieces.put(kept)
                            kept = []
            except EngineLostError:
                if handed_out or attempt == _ATTEMPTS:
                    raise
                self._metrics.replays.labels(*entry.labels).inc()
            else:
                return

    def _observe(self, entry: Entry, batch: Sequence[Chunk]) -> None:
        if batch and self._arrived is not None:
            self._metrics.first_token(entry.labels, time.perf_counter() - self._arrived)
            self._arrived = None
        for chunk in batch:
            if chunk.stats is not None:
                self._metrics.answered(entry.labels, chunk.stats)


def _joined(chunks: Sequence[Chunk]) -> Whole:
    last = chunks[-1]
    assert last.finish_reason is not None  # noqa: S101 - what Model.stream promises of its last chunk
    assert last.stats is not None  # noqa: S101
    logprobs = tuple(token for chunk in chunks for token in chunk.logprobs)
    return Whole("".join(chunk.text for chunk in chunks), last.finish_reason, last.stats, logprobs)
