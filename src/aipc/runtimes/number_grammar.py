"""Numbers within bounds as EBNF: digit by digit, no leading zeros, and no exponent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from aipc.runtimes.ebnf import EMPTY, NOTHING, choice, literal, sequence

_DIGIT = "[0-9]"
_ANY = "[0-9]*"
_FRACTION = '("." [0-9]+)?'


@dataclass(frozen=True, slots=True)
class _End:
    """One end of a range of numbers from 0: the digits before and behind the point."""

    whole: int
    fraction: str
    open: bool

    @classmethod
    def of(cls, bound: Decimal, *, is_open: bool) -> _End:
        whole, _, fraction = f"{bound:f}".partition(".")
        return cls(int(whole), fraction.rstrip("0"), is_open)


def bounded(bounds: Mapping[str, float], *, whole: bool) -> str:
    """Numbers within JSON schema's bounds, or NOTHING.

    bounds   `minimum`, `exclusiveMinimum`, `maximum`, `exclusiveMaximum`: those that there are
    whole    only integers
    """
    lows = [(Decimal(str(bounds[w])), w[0] == "e") for w in ("minimum", "exclusiveMinimum") if w in bounds]
    highs = [(Decimal(str(bounds[w])), w[0] == "e") for w in ("maximum", "exclusiveMaximum") if w in bounds]
    low = max(lows, default=None)
    # Of two equal bounds the exclusive one is narrower.
    high = min(highs, key=lambda end: (end[0], not end[1]), default=None)
    if low and high and (low[0] > high[0] or (low[0] == high[0] and (low[1] or high[1]))):
        return NOTHING
    between = _whole if whole else _decimal
    zero = (Decimal(0), False)
    ways = []
    if low is None or low[0] < 0:
        nearest = zero if high is None or high[0] >= 0 else (-high[0], high[1])
        # A minus sign stands before what is less than 0.
        nearest = (Decimal(0), True) if nearest == zero else nearest
        ways.append(sequence(['"-"', between(nearest, None if low is None else (-low[0], low[1]))]))
    if high is None or high[0] >= 0:
        ways.append(between(zero if low is None or low[0] < 0 else low, high))
    return choice(ways)


def _whole(low: tuple[Decimal, bool], high: tuple[Decimal, bool] | None) -> str:
    start = int(low[0]) + (low[1] or low[0] != int(low[0]))
    if high is None:
        return _naturals(start, None)
    return _naturals(start, int(high[0]) - (high[1] and high[0] == int(high[0])))


def _decimal(low: tuple[Decimal, bool], high: tuple[Decimal, bool] | None) -> str:
    first = _End.of(low[0], is_open=low[1])
    if high is None:
        above = sequence([_naturals(first.whole + 1, None), _FRACTION])
        return choice([sequence([literal(str(first.whole)), _fraction(first, None)]), above])
    last = _End.of(high[0], is_open=high[1])
    if first.whole == last.whole:
        return sequence([literal(str(first.whole)), _fraction(first, last)])
    return choice(
        [
            sequence([literal(str(first.whole)), _fraction(first, None)]),
            sequence([_naturals(first.whole + 1, last.whole - 1), _FRACTION]),
            sequence([literal(str(last.whole)), _fraction(None, last)]),
        ]
    )


def _naturals(low: int, high: int | None) -> str:
    """Whole numbers from 0 without a sign."""
    if high is not None and low > high:
        return NOTHING
    first = str(low)
    if high is None:
        longer = sequence(["[1-9]", _some_digits(len(first), None)])
        return choice([_same_length(first, "9" * len(first)), longer])
    last = str(high)
    if len(first) == len(last):
        return _same_length(first, last)
    between = range(len(first) + 1, len(last))
    return choice(
        [
            _same_length(first, "9" * len(first)),
            sequence(["[1-9]", _some_digits(between[0] - 1, between[-1] - 1)]) if between else NOTHING,
            _same_length("1" + "0" * (len(last) - 1), last),
        ]
    )


def _same_length(first: str, last: str) -> str:
    """Strings of digits between two of the same length."""
    if not first:
        return EMPTY
    rest = len(first) - 1
    if set(first) == {"0"} and set(last) == {"9"}:
        return _some_digits(rest + 1, rest + 1)
    start, end = int(first[0]), int(last[0])
    if start == end:
        return sequence([literal(first[0]), _same_length(first[1:], last[1:])])
    return choice(
        [
            sequence([literal(first[0]), _same_length(first[1:], "9" * rest)]),
            sequence([_digits(start + 1, end - 1), _some_digits(rest, rest)]),
            sequence([literal(last[0]), _same_length("0" * rest, last[1:])]),
        ]
    )


def _some_digits(fewest: int, most: int | None) -> str:
    if most is None:
        return sequence([*[_DIGIT] * fewest, _ANY])
    rest = EMPTY
    for _ in range(most - fewest):
        rest = choice([sequence([_DIGIT, rest]), EMPTY])
    return sequence([*[_DIGIT] * fewest, rest])


def _digits(start: int, end: int) -> str:
    if start > end:
        return NOTHING
    return literal(str(start)) if start == end else f"[{start}-{end}]"


def _fraction(low: _End | None, high: _End | None) -> str:
    """What may stand behind a whole number that is that of an end: point and digits, or nothing."""
    length = max(len(end.fraction) for end in (low, high) if end is not None)
    first = None if low is None else low.fraction.ljust(length, "0")
    last = None if high is None else high.fraction.ljust(length, "0")
    above = low is not None and low.open
    below = high is not None and high.open
    none = EMPTY if _may_end(first, last, above=above, below=below) else NOTHING
    return choice([sequence(['"."', _tail(first, last, above=above, below=below)]), none])


def _may_end(low: str | None, high: str | None, *, above: bool, below: bool) -> bool:
    """Whether zeros alone may follow."""
    enough = low is None or (not above and not low.strip("0"))
    return enough and (high is None or not below or high.strip("0") != "")


def _tail(low: str | None, high: str | None, *, above: bool, below: bool) -> str:
    """Digits, at least one, not less than `low` and not more than `high`; None is no bound.

    above, below   whether equality is excluded
    """
    if low is None and high is None:
        return "[0-9]+"
    if not (low or high):
        if high is not None:
            return NOTHING if below or (low is not None and above) else '"0"+'
        return sequence([_ANY, "[1-9]", _ANY]) if above else "[0-9]+"
    start, end = int(low[0]) if low else 0, int(high[0]) if high else 9

    def after(digit: int) -> str:
        rests = (
            low[1:] if low and digit == start else None,
            high[1:] if high and digit == end else None,
        )
        none = EMPTY if _may_end(*rests, above=above, below=below) else NOTHING
        return sequence([literal(str(digit)), choice([_tail(*rests, above=above, below=below), none])])

    tight = [digit for digit in dict.fromkeys((start, end)) if start <= digit <= end]
    return choice([*map(after, tight), sequence([_digits(start + 1, end - 1), _ANY])])
