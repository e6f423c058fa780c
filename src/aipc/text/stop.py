"""Where an answer stops: the text before the first stop string."""

from __future__ import annotations

from collections.abc import Sequence

from aipc.errors import UsageError


class StopFilter:
    """Lets text through until one of `stops` is complete; what follows is swallowed.

    The text before it comes out the same however the input is split into pieces, and no character
    is held back that could not still begin a stop string. Of several, the one that is complete
    first wins; of several that end at the same character, the longest.

    stopped   whether a stop string was met
    raises    UsageError for an empty stop string
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or not all(isinstance(stop, str) and stop for stop in stops):
            raise UsageError("a stop string is a text of at least one character")
        self.stopped = False
        self._matchers = [_Matcher(stop) for stop in stops]
        self._held = ""

    def push(self, text: str) -> str:
        """Take the next piece of the answer; the text that is now known to come before any stop."""
        if self.stopped or not self._matchers:
            return "" if self.stopped else text
        start = len(self._held)
        buffer = self._held + text
        for end, character in enumerate(text, start + 1):
            complete = [len(matcher.stop) for matcher in self._matchers if matcher.push(character)]
            if complete:
                self.stopped = True
                self._held = ""
                return buffer[: end - max(complete)]
        keep = len(buffer) - max(matcher.matched for matcher in self._matchers)
        self._held = buffer[keep:]
        return buffer[:keep]

    def finish(self) -> str:
        """What was held back, once nothing more comes; empty after a stop."""
        held, self._held = self._held, ""
        return held


class _Matcher:
    """Knuth, Morris and Pratt's automaton for one string: constant work a character, amortised.

    matched   how many characters of `stop` the text so far ends with
    """

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        self._fallback = [0] * len(stop)
        length = 0
        for index in range(1, len(stop)):
            while length and stop[index] != stop[length]:
                length = self._fallback[length - 1]
            length += stop[index] == stop[length]
            self._fallback[index] = length

    def push(self, character: str) -> bool:
        """Whether the text now ends with the whole string, for the first time."""
        while self.matched and self.stop[self.matched] != character:
            self.matched = self._fallback[self.matched - 1]
        self.matched += self.stop[self.matched] == character
        return self.matched == len(self.stop)
