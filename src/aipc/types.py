"""The values that travel between the rooms: plain, frozen, standard library only."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, Self, TypeVar

from aipc.errors import UsageError, shown

FinishReason = Literal["stop", "length", "cancelled"]
DeviceKind = Literal["NPU", "discrete GPU", "integrated GPU", "CPU"]

ROLES = ("system", "user", "assistant", "tool")

# What a grammar may cost before a runtime has even looked at it.
MAX_GUIDANCE_CHARS = 65_536
MAX_SCHEMA_DEPTH = 64

# The most alternatives that are told of a token, as in OpenAI's API.
MAX_LOGPROBS = 20


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation.

    tools   in a system message: the functions that the model may call, as JSON text, where its chat
            template has a place for them
    """

    role: str
    content: str
    tools: str | None = None

    @classmethod
    def parse(cls, value: Message | Mapping[str, object]) -> Message:
        """A message from a role/content mapping, as OpenAI's clients write it.

        raises   UsageError for an unknown role or a content that is not text
        """
        if isinstance(value, Message):
            return value
        if not isinstance(value, Mapping):
            raise UsageError(
                f"a message is a mapping with 'role' and 'content', not {type(value).__name__}",
                hint='for example {"role": "user", "content": "Hello"}',
            )
        role, content = value.get("role"), value.get("content")
        if role not in ROLES:
            raise UsageError(f"a message has the role {role!r}; possible are {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise UsageError(f"the content of a {role} message is {type(content).__name__}, not text")
        return cls(str(role), content)


@dataclass(frozen=True, slots=True)
class Guidance:
    """What an answer must look like: the runtime lets no other token through.

    kind   of `text`: a JSON schema, or a regular expression for the whole answer
    """

    kind: Literal["json_schema", "regex"]
    text: str

    @classmethod
    def parse(cls, response_format: Mapping[str, object] | None) -> Guidance | None:
        """Guidance from a response_format, as OpenAI's clients write it; None for free text.

        raises   UsageError
        """
        if response_format is None:
            return None
        kind = response_format.get("type") if isinstance(response_format, Mapping) else None
        if kind == "text":
            return None
        if kind == "json_object":
            return cls("json_schema", '{"type":"object"}')
        if kind == "json_schema":
            return cls("json_schema", _schema_text(response_format.get("json_schema")))
        if kind == "regex":
            return cls("regex", _pattern(response_format.get("pattern")))
        raise UsageError(
            f"there is no response_format {shown(response_format)}; possible types: text, json_object, "
            "json_schema, regex",
            hint='for example {"type": "json_schema", "json_schema": {"schema": {"type": "object"}}} '
            'or {"type": "regex", "pattern": "yes|no"}',
        )


def _schema_text(described: object) -> str:
    schema = described.get("schema") if isinstance(described, Mapping) else None
    if not isinstance(schema, Mapping):
        raise UsageError(
            f"response_format has no JSON schema, but {shown(described)}",
            hint='write it as {"type": "json_schema", "json_schema": {"schema": {...}}}',
        )
    refuse_deep(schema, "JSON schema")
    try:
        return _bounded(json.dumps(schema, separators=(",", ":"), ensure_ascii=False), "JSON schema")
    except (TypeError, ValueError) as exc:
        raise UsageError(f"the JSON schema cannot be written as JSON: {exc}") from exc


def refuse_deep(value: object, what: str) -> None:
    """Refuse objects and lists in one another without an end.

    raises   UsageError
    """
    # Level by level: a recursion is what a hostile value would want.
    level: list[object] = [value]
    for _ in range(MAX_SCHEMA_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
    if level:
        raise UsageError(f"the {what} is nested more than {MAX_SCHEMA_DEPTH} levels deep")


def _inside(value: object) -> list[object]:
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, list | tuple) else []


def _pattern(pattern: object) -> str:
    if not isinstance(pattern, str) or not pattern:
        raise UsageError(f"the pattern of a regex response_format is text, not {shown(pattern)}")
    return _bounded(pattern, "pattern")


def _bounded(text: str, what: str) -> str:
    if len(text) > MAX_GUIDANCE_CHARS:
        raise UsageError(f"the {what} has {len(text)} characters; possible are {MAX_GUIDANCE_CHARS}")
    return text


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen, and when to stop.

    temperature          0 is greedy; otherwise logits are divided by it
    top_p, top_k         1.0 and 0 switch them off
    repetition_penalty   1.0 switches it off
    seed                 None draws one
    stop_ids             generation ends with the first of these, which is the last id given out
    guidance             what the answer must look like; None for free text
    logprobs             each token is a `ScoredToken` with so many of the likeliest; None for ids alone
    """

    max_new_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop_ids: frozenset[int] = frozenset()
    guidance: Guidance | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        checks = (
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "at least 1"),
            ("temperature", self.temperature, 0.0 <= self.temperature <= 100.0, "between 0 and 100"),
            ("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (off) or more"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                0.0 < self.repetition_penalty <= 100.0,
                "above 0 and at most 100",
            ),
            (
                "logprobs",
                self.logprobs,
                self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS,
                f"None (off) or 0 to {MAX_LOGPROBS}",
            ),
        )
        for name, value, good, rule in checks:
            if not good:
                raise UsageError(f"{name} is {value}; it must be {rule}")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0


class ScoredToken(int):
    """A token id that tells how likely it was.

    logprob     the logarithm of its share in the softmax of the model's own scores: before temperature,
                top_k, top_p, repetition penalty and guidance
    likeliest   ids that were the likeliest in its place with theirs, the best first
    """

    logprob: float
    likeliest: tuple[tuple[int, float], ...]

    def __new__(cls, token: int, logprob: float, likeliest: Iterable[tuple[int, float]] = ()) -> Self:
        scored = super().__new__(cls, token)
        scored.logprob = logprob
        scored.likeliest = tuple(likeliest)
        return scored


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely a token was, as in `ScoredToken`.

    content     what it adds to a text: UTF-8, or a part of a character; of a special token its name
    offset      how many characters of the answer are complete before it
    likeliest   the likeliest in its place, the best first
    """

    token_id: int
    content: bytes
    logprob: float
    offset: int
    likeliest: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Stats:
    """What one answer took. Unknown is None, never 0.

    load_s      from the call of load() to a session that is warm
    ttft_s      from the call to the first token
    tpot_s      mean time of each later token
    long_factors    whether LongRoPE's factors for long texts were taken; None for a model without
    prefilled_anew  the text was begun with the other factors, and what was computed of it is of no use
    cached_tokens   of the prompt, which earlier requests had left computed; None where the runtime does not
                    say

    The rest is known where a monitor watched:
    mean_utilisation, peak_utilisation   0 to 1, of the device
    energy_j                             of the device's board, or of the processor package that holds it
    device_used                          whether the device's own counter rose while it should have
    """

    prompt_tokens: int
    generated_tokens: int
    load_s: float
    ttft_s: float | None
    tpot_s: float | None
    device: str
    runtime: str
    precision: str
    mean_utilisation: float | None = None
    peak_utilisation: float | None = None
    energy_j: float | None = None
    device_used: bool | None = None
    long_factors: bool | None = None
    prefilled_anew: bool = False
    cached_tokens: int | None = None

    @property
    def tokens_per_s(self) -> float | None:
        """Decode rate: prefill is not in it."""
        return 1.0 / self.tpot_s if self.tpot_s else None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. The last one carries the reason for the end, and the statistics.

    logprobs   where they were asked for: of the tokens whose text begins up to here. A token that only a
               stop string consists of has none
    """

    text: str
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    stats: Stats | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


_T = TypeVar("_T")


class Stream(Iterator[_T], Generic[_T]):
    """Items that come one by one, whose work can be ended before they do.

    `close`, as a generator's, is for the thread that reads. `cancel` is for any other, also while the
    reader waits for the next item: the reader then soon meets the end.

    cancelled   set once nobody wants the rest
    """

    def __init__(self, items: Generator[_T, None, None], cancelled: threading.Event) -> None:
        self._items = items
        self.cancelled = cancelled

    def __next__(self) -> _T:
        return next(self._items)

    def close(self) -> None:
        """Stop the work."""
        self._items.close()

    def cancel(self) -> None:
        """Stop the work, from any thread."""
        self.cancelled.set()


@dataclass(slots=True)
class Prefill:
    """What a runtime tells of a prompt that it has read.

    cached_tokens   which it had not to compute again; None until then, and where it does not say
    """

    cached_tokens: int | None = None


class TokenStream(Stream[int]):
    """The ids of an answer."""

    def __init__(self, ids: Generator[int, None, None], cancelled: threading.Event, prefill: Prefill) -> None:
        super().__init__(ids, cancelled)
        self.prefill = prefill


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer; its parts are those of `Chunk`."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stats: Stats
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Check:
    """What was found where something can be wrong.

    name    what was looked at
    state   a note is neither good nor bad
    found   one sentence
    fix     the command or step that mends it; "" unless it failed
    """

    name: str
    state: Literal["passed", "failed", "note"]
    found: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long piece of work is: a download, a conversion, or a verification.

    tensor   what is being worked on: a tensor of the checkpoint, or a file
    unit     what is counted in the place of bytes, such as "tokens"
    """

    tensor: str
    done_bytes: int
    total_bytes: int
    unit: str = ""
