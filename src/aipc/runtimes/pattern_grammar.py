"""A regular expression as EBNF: for a whole answer, or inside the quotes of a JSON string.

The pattern is read by Python's own parser. What has no place in a grammar, such as looking ahead, is refused,
and so is a pattern whose repetitions come to more than a grammar can be compiled for in reasonable time.
"""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from aipc.errors import UsageError
from aipc.runtimes.ebnf import EMPTY, NOTHING, Rules, TooLarge, choice, literal, ranges, sequence

# Repetitions in one another multiply: this many characters is as far as they may reach.
MAX_PATTERN_SIZE = 4_096
_LAST = 0x10FFFF
_SURROGATES = (0xD800, 0xDFFF)

_DAY = "(0[1-9]|1[0-9]|2[0-8])"
_DATE = f"[0-9]{{3}}[1-9]-((0[1-9]|1[0-2])-{_DAY}|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
_TIME = r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_LABEL = "[A-Za-z0-9]+(-[A-Za-z0-9]+)*"
FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}T{_TIME}",
    "email": rf"[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*@{_LABEL}(\.{_LABEL})+",
    "ipv4": rf"({_BYTE}\.){{3}}{_BYTE}",
    "uri": r"[A-Za-z][A-Za-z0-9+.-]*://[A-Za-z0-9._~/?#@!$&'()*+,;=:%-]+",
    "uuid": "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
}

_CATEGORIES = {
    "DIGIT": [(0x30, 0x39)],
    "SPACE": [(0x09, 0x0D), (0x20, 0x20)],
    "WORD": [(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)],
}
_JSON_ESCAPES = {0x08: "\\b", 0x09: "\\t", 0x0A: "\\n", 0x0C: "\\f", 0x0D: "\\r", 0x22: '\\"', 0x5C: "\\\\"}

Ranges = list[tuple[int, int]]


def pattern_grammar(pattern: str) -> str:
    """A grammar of the texts that match as a whole.

    raises   UsageError
    """
    rules = Rules()
    try:
        root = _translated(rules, pattern, "the pattern", _plain, anchored=True)
    except TooLarge as exc:
        raise _refusal("the pattern", "it is too large") from exc
    if root == NOTHING:
        raise _refusal("the pattern", "nothing satisfies it")
    return f"root ::= {root}\n{rules.text}"


def json_string_pattern(rules: Rules, pattern: object, at: str, *, anchored: bool) -> str:
    """An expression for JSON strings in which a pattern is found; anchored, they match it as a whole.

    raises   UsageError, TooLarge
    """
    if not isinstance(pattern, str):
        raise UsageError(f"this response_format cannot be followed: {at}: a pattern is text")
    return sequence(['"\\""', _translated(rules, pattern, at, _escaped, anchored=anchored), '"\\""'])


def _translated(
    rules: Rules, pattern: str, at: str, write: Callable[[Ranges], str], *, anchored: bool
) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = importlib.import_module("re._parser").parse(pattern)
        return _Translation(rules, write, at).whole(tree, anchored=anchored)
    except (re.error, OverflowError) as exc:
        raise _refusal(at, str(exc)) from exc
    except RecursionError as exc:
        raise _refusal(at, "it is nested too deeply") from exc


class _Translation:
    """One pattern on its way.

    write   one character of a set, in the text that is made
    """

    def __init__(self, rules: Rules, write: Callable[[Ranges], str], at: str) -> None:
        self._rules = rules
        self._write = write
        self._at = at

    def whole(self, tree: Any, *, anchored: bool) -> str:
        if tree.state.flags & ~re.UNICODE:
            raise _refusal(self._at, "flags are not possible")
        nodes = [(str(kind), value) for kind, value in tree]
        branches = [nodes]
        if len(nodes) == 1 and nodes[0][0] == "BRANCH":
            branches = [[(str(kind), value) for kind, value in branch] for branch in nodes[0][1][1]]
        return choice(self._branch(branch, anchored=anchored) for branch in branches)

    def _branch(self, nodes: list[tuple[str, Any]], *, anchored: bool) -> str:
        starts, ends = anchored, anchored
        while nodes and nodes[0][0] == "AT" and str(nodes[0][1]) in {"AT_BEGINNING", "AT_BEGINNING_STRING"}:
            starts, nodes = True, nodes[1:]
        while nodes and nodes[-1][0] == "AT" and str(nodes[-1][1]) in {"AT_END", "AT_END_STRING"}:
            ends, nodes = True, nodes[:-1]
        body, _ = self._sequence(nodes)
        anything = EMPTY if starts and ends else self._rules.repeated(self._write([(0, _LAST)]), 0)
        return sequence([EMPTY if starts else anything, body, EMPTY if ends else anything])

    def _sequence(self, nodes: Iterable[tuple[Any, Any]]) -> tuple[str, int]:
        written = [self._node(str(kind), value) for kind, value in nodes]
        return sequence(part for part, _ in written), self._bounded(sum(size for _, size in written))

    def _node(self, kind: str, value: Any) -> tuple[str, int]:
        if kind == "BRANCH":
            written = [self._sequence(branch) for branch in value[1]]
            return choice(part for part, _ in written), self._bounded(sum(size for _, size in written))
        if kind == "SUBPATTERN":
            _, added, removed, inner = value
            if added or removed:
                raise _refusal(self._at, "flags are not possible")
            return self._sequence(inner)
        if kind in {"MAX_REPEAT", "MIN_REPEAT"}:
            return self._repeat(*value)
        characters = _characters(kind, value)
        if characters is None:
            raise _refusal(self._at, f"{kind.lower()} is not possible in a grammar")
        return (self._write(characters) if characters else NOTHING), 1

    def _repeat(self, fewest: int, most: Any, inner: Any) -> tuple[str, int]:
        body, size = self._sequence(inner)
        limit = None if str(most) == "MAXREPEAT" else int(most)
        count = int(fewest) + 1 if limit is None else limit
        size = self._bounded(size * max(count, 1))
        return self._rules.repeated(body, int(fewest), limit, costly=True), size

    def _bounded(self, size: int) -> int:
        if size > MAX_PATTERN_SIZE:
            raise _refusal(self._at, f"it comes to {size} characters; possible are {MAX_PATTERN_SIZE}")
        return size


def _characters(kind: str, value: Any) -> Ranges | None:
    """What a node for one character allows; None for another node."""
    if kind == "IN":
        negated = str(value[0][0]) == "NEGATE"
        union = [part for inner, what in value[negated:] for part in _characters(str(inner), what) or []]
        return _complement(union) if negated else union
    if kind == "CATEGORY":
        name = str(value).removeprefix("CATEGORY_")
        codes = _CATEGORIES[name.removeprefix("NOT_")]
        return _complement(codes) if name.startswith("NOT_") else codes
    simple: dict[str, Callable[[], Ranges]] = {
        "LITERAL": lambda: [(value, value)],
        "NOT_LITERAL": lambda: _complement([(value, value)]),
        "ANY": lambda: _complement([(0x0A, 0x0A)]),
        "RANGE": lambda: [value],
    }
    return simple[kind]() if kind in simple else None


def _complement(codes: Ranges) -> Ranges:
    """All other characters."""
    left, start = [], 0
    for first, last in sorted(codes):
        if start < first:
            left.append((start, first - 1))
        start = max(start, last + 1)
    return [*left, (start, _LAST)] if start <= _LAST else left


def _without(codes: Ranges, taken: Ranges) -> Ranges:
    return _complement([*_complement(codes), *taken])


def _plain(codes: Ranges) -> str:
    left = _without(codes, [_SURROGATES])
    return ranges(left) if left else NOTHING


def _escaped(codes: Ranges) -> str:
    """The same as it is written in a JSON string."""
    direct = _without(codes, [_SURROGATES, (0, 0x1F), (0x22, 0x22), (0x5C, 0x5C)])
    ways = [ranges(direct)] if direct else []
    ways += [
        literal(written)
        for code, written in _JSON_ESCAPES.items()
        if any(start <= code <= end for start, end in codes)
    ]
    return choice(ways)


def _refusal(at: str, what: str) -> UsageError:
    return UsageError(
        f"this response_format cannot be followed: {at}: {what}", hint="use a simpler schema or pattern"
    )
