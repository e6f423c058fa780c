"""ONNX Runtime on the CPU in the process that computes: any number of streams, a token of each in every step.

A stream has a row of the cache, and what the row does not hold yet is computed: a single token together with
those of all other streams, more than one in chunks between such steps, so that nobody waits long for anybody.
A row keeps what it holds after the stream's end, for the next turn of the chat.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aipc.errors import AipcError, StorageError, UnsupportedModelError
from aipc.longrope import takes_long_factors
from aipc.runtimes.engine import Engine, Inbox, Outbox, Request, serve
from aipc.runtimes.memory import available_bytes
from aipc.runtimes.onnxruntime_decoder import Decoder, graph_file
from aipc.runtimes.onnxruntime_errors import failed, out_of_memory
from aipc.runtimes.onnxruntime_graph import FAILURES, share_threads
from aipc.runtimes.onnxruntime_options import Options
from aipc.runtimes.onnxruntime_prepacked import exists, make, prepacked_graph
from aipc.runtimes.pages import make_huge
from aipc.runtimes.sampling import choose, scored
from aipc.types import MAX_LOGPROBS

if TYPE_CHECKING:
    from aipc.runtimes.onnxruntime_grammar import Grammars, Matcher

# Eight use the cores' arithmetic nearly as well as a long prompt does: more streams wait.
MAX_ROWS = 8

# A prompt is computed in chunks; between two of them a cancel is heard.
CHUNK_TOKENS = 128
# While others wait for their next token. 16 cost 4 % more, 64 gained nothing.
SHARED_CHUNK_TOKENS = 32

# The cache grows in steps of so many tokens.
CAPACITY_STEP = 256

# When a stream begins, it must have room for so much of its answer: most are far shorter than allowed.
ANSWER_TOKENS = 256


def main() -> None:
    """Serve the caller at the other end of stdin and stdout."""
    serve(lambda options: _load_alone(Options(**options)))


def _load_alone(options: Options) -> Engine:
    """`load`, in a process that does nothing else."""
    share_threads(options.properties)
    return load(options)


def load(options: Options) -> Engine:
    """The engine for a folder; onnxruntime-genai's, one stream at a time, for a graph that is not like ours.

    raises   DeviceError, CheckpointError, UnsupportedModelError, UsageError, RuntimeFailedError
    """
    folder = Path(options.folder)
    try:
        prepacked, notes = _prepacked(options)
        decoder = Decoder(folder, options.properties, options.rope_border, prepacked)
    except UnsupportedModelError:
        from aipc.runtimes import onnxruntime_engine

        return onnxruntime_engine.load(options)
    return BatchEngine(decoder, options, notes)


def _prepacked(options: Options) -> tuple[Path | None, list[str]]:
    """The graph with prepacked weights, if they are kept; made anew where they no longer fit.

    returns   the graph, or None for the folder's own; and what happened, for people
    """
    if options.prepacked_dir is None or options.properties:
        return None, []
    copy, graph = Path(options.prepacked_dir), graph_file(Path(options.folder))
    found = prepacked_graph(copy, graph)
    if found is not None or not (options.prepack or exists(copy)):
        return found, []
    try:
        return make(copy, graph), [f"the weights were packed for this processor, once, into {copy}"]
    except StorageError as error:
        if options.prepack:
            raise
        return None, [error.message]


@dataclass(slots=True)
class Stream:
    """A request that is being answered.

    tokens   prompt and answer so far
    end      how many they are at most
    turn     how many prompt tokens had been computed for all when it came
    cached   how many tokens of the prompt its row held when it came
    """

    request: Request
    tokens: list[int]
    end: int
    turn: int
    random: np.random.Generator
    matcher: Matcher | None
    cached: int

    @property
    def begun(self) -> bool:
        """Whether a token of the answer is there."""
        return len(self.tokens) > len(self.request.prompt)

    @property
    def expected(self) -> int:
        """How many tokens it probably becomes."""
        return max(len(self.tokens), _expected(self.request))

    @property
    def ended(self) -> bool:
        """Whether the answer is complete, or as long as it may be."""
        complete = self.matcher is not None and self.matcher.ended
        return complete or self.tokens[-1] in self.request.sampling.stop_ids or len(self.tokens) >= self.end

    def choose(self, scores: np.ndarray) -> list[int]:
        """The next token, which becomes a part of `tokens`; with it the end, if nothing else may follow.

        scores   [vocab_size] float32
        """
        sampling = self.request.sampling
        allowed = scores if self.matcher is None else self.matcher.masked(scores)
        given = [choose(allowed, self.tokens, sampling, self.random)]
        if sampling.logprobs is not None:
            given = [scored(given[0], scores, sampling.logprobs)]
        if self.matcher is not None:
            self.matcher.accept(given[0])
            if self.matcher.ended and given[0] not in sampling.stop_ids:
                given += sorted(sampling.stop_ids)[:1]
        given = given[: self.end - len(self.tokens)]
        self.tokens += given
        return given


@dataclass(slots=True)
class Row:
    """A row of the cache.

    held    the tokens whose keys and values are in it
    far     whether they were rotated by LongRoPE's factors for long texts
    freed   when its last stream ended, counted in streams
    """

    held: list[int] = field(default_factory=list)
    far: bool = False
    freed: int = 0
    stream: Stream | None = None

    @property
    def pending(self) -> int:
        """How many tokens of its stream are still to be computed."""
        return 0 if self.stream is None else len(self.stream.tokens) - len(self.held)


class BatchEngine:
    """Continuous batching: each turn computes a chunk of one new prompt, and one token of every other stream.

    budget   how many tokens may be in the cache before streams wait for the end of others
    """

    def __init__(self, decoder: Decoder, options: Options, notes: Sequence[str] = ()) -> None:
        self._decoder = decoder
        self._cache = decoder.cache
        self._context = options.context_length
        self._border = options.rope_border
        self._folder = Path(options.folder)
        self._grammars: Grammars | None = None
        self._rows: list[Row] = []
        self._waiting: list[Request] = []
        self._prefilled = 0
        self._ends = itertools.count(1)
        self.budget = self._context * MAX_ROWS
        spare = available_bytes()
        if spare is not None:
            self.budget = max(self._context, spare // 2 // self._cache.shape.token_nbytes)
        self.about: Mapping[str, object] = {
            "device": options.device,
            "notes": list(notes),
            "logprobs": MAX_LOGPROBS,
        }

    def run(self, inbox: Inbox, outbox: Outbox) -> None:
        """Answer requests until the inbox is closed."""
        pages = make_huge()
        while not inbox.closed:
            idle = not self._waiting and not any(row.stream for row in self._rows)
            # Whoever comes meanwhile waits for this one page.
            more_pages = idle and next(pages, 0) > 0
            self._waiting += inbox.take(wait=idle and not more_pages)
            self._forget_withdrawn(inbox)
            self._admit(inbox, outbox)
            self._prefill(inbox, outbox)
            self._decode(inbox, outbox)

    def _forget_withdrawn(self, inbox: Inbox) -> None:
        for request in [one for one in self._waiting if inbox.withdrawn(one.number)]:
            self._waiting.remove(request)
            inbox.forget(request.number)
        for row in self._rows:
            if row.stream is not None and inbox.withdrawn(row.stream.request.number):
                self._end(row, inbox)

    # Rows for new streams

    def _admit(self, inbox: Inbox, outbox: Outbox) -> None:
        """Give rows to those who wait, in the order in which they came."""
        while self._waiting and (len(self._rows) < MAX_ROWS or any(row.stream is None for row in self._rows)):
            request = self._waiting[0]
            active = [row.stream for row in self._rows if row.stream is not None]
            if active and sum(one.expected for one in active) + _expected(request) > self.budget:
                return
            del self._waiting[0]
            try:
                matcher = self._matcher(request)
                row = self._row_for(request)
            except AipcError as error:
                outbox.error(request.number, error)
                inbox.forget(request.number)
            except FAILURES as exc:
                outbox.error(request.number, out_of_memory(exc, "CPU"))
                inbox.forget(request.number)
            else:
                sampling, length = request.sampling, len(request.prompt)
                row.stream = Stream(
                    request,
                    list(request.prompt),
                    min(length + sampling.max_new_tokens, self._context),
                    self._prefilled,
                    np.random.default_rng(sampling.seed),
                    matcher,
                    len(row.held),
                )

    def _matcher(self, request: Request) -> Matcher | None:
        guidance = request.sampling.guidance
        if guidance is None:
            return None
        if self._grammars is None:
            # Few requests need it, and it would lengthen every start.
            from aipc.runtimes.onnxruntime_grammar import Grammars

            self._grammars = Grammars(self._folder, self._decoder.vocab_size)
        return self._grammars.matcher(guidance, request.sampling.stop_ids)

    def _row_for(self, request: Request) -> Row:
        """A free row that holds as much of the prompt's beginning as any row does."""
        far = takes_long_factors(self._border, len(request.prompt), request.sampling.max_new_tokens)
        capacity = max(_expected(request), self._decoder.least_capacity(far=far))
        if all(row.stream is not None for row in self._rows):
            self._reserve(min(2 * len(self._rows) or 1, MAX_ROWS), capacity)
        rows = self._rows
        # The last token is always computed: its scores are asked for.
        wanted = request.prompt[:-1]
        shared = [_common(row.held, wanted) if row.far is far else 0 for row in rows]
        free = [place for place, row in enumerate(rows) if row.stream is None]
        best = max(range(len(rows)), key=shared.__getitem__)
        if best in free and 2 * shared[best] >= len(rows[best].held):
            target = best
        else:
            # The beginning of another chat, which may go on.
            target = min(free, key=lambda place: rows[place].freed)
        # What is no beginning of this prompt gives its memory back with the rest.
        rows[target].held = rows[target].held[: shared[target]]
        self._make_room(rows[target], _expected(request))
        self._reserve(len(rows), capacity)
        if shared[best] > shared[target] and rows[best].held:
            self._cache.copy(best, target, shared[best])
            shared[target] = shared[best]
        rows[target].held, rows[target].far = wanted[: shared[target]], far
        return rows[target]

    def _make_room(self, kept: Row, expected: int) -> None:
        """Forget what free rows hold, those unused for longest first, until so many tokens more fit."""
        more = expected - len(kept.held)
        if self._cache.touched_tokens + more <= self.budget:
            return
        free = [row for row in self._rows if row.stream is None and row is not kept]
        for row in sorted(free, key=lambda row: row.freed):
            if sum(len(one.held) for one in self._rows) + more > self.budget:
                row.held = []
        self._cache.resize(self._cache.rows, self._cache.capacity, [len(row.held) for row in self._rows])

    def _reserve(self, rows: int, tokens: int) -> None:
        """Have so many rows of so many tokens at least."""
        cache = self._cache
        capacity = cache.capacity
        if tokens > capacity:
            # By half at least, so that a long answer is not copied often.
            wanted = max(tokens, capacity * 3 // 2)
            capacity = max(tokens, min(-(-wanted // CAPACITY_STEP) * CAPACITY_STEP, self._context))
        if rows > cache.rows or capacity > cache.capacity:
            rows = max(rows, cache.rows)
            cache.resize(rows, capacity, [len(row.held) for row in self._rows])
            self._rows += [Row() for _ in range(rows - len(self._rows))]

    # Steps

    def _prefill(self, inbox: Inbox, outbox: Outbox) -> None:
        """A chunk of a new prompt: of the one that has fewest tokens left, but none waits for ever."""
        rows = [row for row in self._rows if row.stream is not None]
        new = [row for row in rows if row.pending > 1]
        if not new:
            return
        row = min(new, key=lambda row: row.pending + (row.stream.turn if row.stream else 0))
        assert row.stream is not None  # noqa: S101 - mypy does not see it through the lists
        size = CHUNK_TOKENS if len(new) == len(rows) else SHARED_CHUNK_TOKENS
        start, place = len(row.held), self._rows.index(row)
        ids = row.stream.tokens[start : start + size]
        try:
            self._reserve(0, start + len(ids))
            if len(ids) < row.pending:
                self._decoder.extend(place, np.array([ids], np.int64), start, far=row.far)
                scores = None
            else:
                held = np.array([start])
                scores = self._decoder.step(place, np.array([ids], np.int64), held, np.array([row.far]))
        except FAILURES as exc:
            self._fail([row], exc, inbox, outbox)
            return
        row.held += ids
        self._prefilled += len(ids)
        if scores is not None:
            self._give(row, scores[0], inbox, outbox)

    def _decode(self, inbox: Inbox, outbox: Outbox) -> None:
        """A token of every stream that has one token to compute."""
        place = 0
        for rows in self._steps():
            first, place = place, place + len(rows)
            ids = [row.stream.tokens[-1:] for row in rows if row.stream is not None]
            held = np.array([len(row.held) for row in rows])
            try:
                self._reserve(0, int(held.max()) + 1)
                far = np.array([row.far for row in rows])
                scores = self._decoder.step(first, np.array(ids, np.int64), held, far)
            except FAILURES as exc:
                self._fail(rows, exc, inbox, outbox)
                continue
            for row, new, of_row in zip(rows, ids, scores, strict=True):
                row.held += new
                self._give(row, of_row, inbox, outbox)

    def _steps(self) -> list[list[Row]]:
        """The rows with one token to compute, as they may be computed together."""
        rows = self._gather()
        if self._decoder.one_kind_a_step:
            return [list(group) for _, group in itertools.groupby(rows, key=lambda row: row.far)]
        return [rows] if rows else []

    def _gather(self) -> list[Row]:
        """The rows with one token to compute, moved to the front: a step sees rows in one piece."""
        rows = self._rows
        count = sum(row.pending == 1 for row in rows)
        for place in range(count):
            if rows[place].pending != 1:
                last = max(other for other, row in enumerate(rows) if row.pending == 1)
                self._cache.swap(place, len(rows[place].held), last, len(rows[last].held))
                rows[place], rows[last] = rows[last], rows[place]
        return rows[:count]

    def _give(self, row: Row, scores: np.ndarray, inbox: Inbox, outbox: Outbox) -> None:
        """Choose the stream's next token and hand it over."""
        stream = row.stream
        assert stream is not None  # noqa: S101 - only such rows are computed
        cached = None if stream.begun else stream.cached
        outbox.ids(stream.request.number, stream.choose(scores), end=stream.ended, cached=cached)
        if stream.ended:
            self._end(row, inbox)

    def _end(self, row: Row, inbox: Inbox) -> None:
        if row.stream is not None:
            inbox.forget(row.stream.request.number)
        row.stream, row.freed = None, next(self._ends)

    def _fail(self, rows: Sequence[Row], exc: Exception, inbox: Inbox, outbox: Outbox) -> None:
        """The end of streams whose step failed; nobody knows what their rows hold."""
        for row in rows:
            if row.stream is not None:
                error = failed(exc, "CPU", guided=False)
                error.__cause__ = exc
                outbox.error(row.stream.request.number, error)
            row.held = []
            self._end(row, inbox)


def _expected(request: Request) -> int:
    """How many tokens a request probably becomes."""
    return len(request.prompt) + min(request.sampling.max_new_tokens, ANSWER_TOKENS)


def _common(first: list[int], second: list[int]) -> int:
    """How many tokens two sequences begin with in common."""
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    return next(place for place in range(shorter) if first[place] != second[place])
