"""Expressions of EBNF as text, in the dialect of xgrammar."""

from __future__ import annotations

from collections.abc import Iterable

# The expression for no text, and the absence of any.
EMPTY = '""'
NOTHING = ""

MAX_CHARS = 400_000
MAX_REPEATS = 4_096
# Of repetitions of single characters: 1,000 took 7 s to compile for a vocabulary of 32,000.
MAX_CHARACTER_STEPS = 300


class TooLarge(ValueError):  # noqa: N818 - it is not for people
    """A grammar that would take too long to compile."""


def literal(text: str) -> str:
    """Exactly this text."""
    return f'"{"".join(map(character, text))}"' if text else EMPTY


def character(letter: str) -> str:
    """A letter as it stands between quotes or brackets."""
    code = ord(letter)
    if letter.isascii() and letter.isalnum():
        return letter
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def ranges(codes: Iterable[tuple[int, int]]) -> str:
    """One character of these ranges of code points; there is at least one."""
    return "[" + "".join(f"{character(chr(start))}-{character(chr(end))}" for start, end in codes) + "]"


def choice(ways: Iterable[str]) -> str:
    """One of them; NOTHING is none."""
    possible = list(dict.fromkeys(way for way in ways if way != NOTHING))
    return possible[0] if len(possible) == 1 else f"({' | '.join(possible)})" if possible else NOTHING


def sequence(parts: Iterable[str]) -> str:
    """One after another."""
    listed = list(parts)
    if NOTHING in listed:
        return NOTHING
    return " ".join(part for part in listed if part != EMPTY) or EMPTY


class Rules:
    """The rules of a grammar.

    raises   TooLarge where they come to more than `MAX_CHARS`
    """

    def __init__(self) -> None:
        self._bodies: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._chains: dict[tuple[str, int], str] = {}
        self._chars = 0
        self._steps = 0

    @property
    def text(self) -> str:
        """All of them, one a line."""
        return "".join(f"{name} ::= {body}\n" for name, body in self._bodies.items())

    def add(self, body: str, name: str = "") -> str:
        """A new rule; its name."""
        name = name or f"r{len(self._bodies)}"
        self._bodies[name] = body
        self._chars += len(body)
        if self._chars > MAX_CHARS:
            raise TooLarge
        return name

    def repeated(self, body: str, fewest: int, most: int | None = None, *, costly: bool = False) -> str:
        """So many of one; without `most`, any number from `fewest`.

        costly   it is a character of a pattern
        """
        if most is not None and most < fewest:
            return NOTHING
        if most == 0 or body == EMPTY:
            return EMPTY
        if body == NOTHING:
            return EMPTY if fewest == 0 else NOTHING
        if fewest > MAX_REPEATS or (most or 0) > MAX_REPEATS:
            raise TooLarge
        item = body if body.isidentifier() else self._named(body)
        rest = f"{item}*" if most is None else self._up_to(item, most - fewest, costly=costly)
        return sequence([*[item] * fewest, rest]) if fewest <= 4 else self._exactly(item, fewest, rest)

    def _named(self, body: str) -> str:
        if body not in self._names:
            self._names[body] = self.add(body)
        return self._names[body]

    def _up_to(self, item: str, most: int, *, costly: bool) -> str:
        """A rule for each number of what may still come: xgrammar's own bounded repetition takes minutes.

        They are shared by all that repeat the same rule.
        """
        for count in range(1, most + 1):
            if (item, count) not in self._chains:
                self._steps += costly
                if self._steps > MAX_CHARACTER_STEPS:
                    raise TooLarge
                less = sequence([item, self._chains.get((item, count - 1), EMPTY)])
                self._chains[item, count] = self.add(choice([less, EMPTY]))
        return self._chains[item, most] if most else EMPTY

    def _exactly(self, item: str, count: int, rest: str) -> str:
        for _ in range(count):
            rest = self.add(sequence([item, rest]))
        return rest
