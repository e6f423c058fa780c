"""How likely the tokens of an answer were, given out with the text that they begin."""

from __future__ import annotations

from aipc.text.tokenizer import Text
from aipc.types import ScoredToken, TokenLogprob


class LogprobsOfText:
    """Holds what is told of a token back as long as its text is.

    A character may have several tokens, and text that could begin a stop string waits. What a stop string
    swallows is never told: so the tokens told of are those of the text.
    """

    def __init__(self, text: Text) -> None:
        self._text = text
        self._held: list[TokenLogprob] = []
        self._decoded = 0
        self._passed = 0

    def push(self, token: int, decoded: str, passed: str) -> tuple[TokenLogprob, ...]:
        """Take the next token; what is told with the text that is passed on now.

        token     a `ScoredToken`, as sessions give where they are asked
        decoded   the text that became complete with it
        passed    the text that goes out now
        """
        assert isinstance(token, ScoredToken)  # noqa: S101 - what a session promises
        content, offset = self._text.token_bytes, self._decoded
        likeliest = tuple(
            TokenLogprob(one, content(one), logprob, offset) for one, logprob in token.likeliest
        )
        self._held.append(TokenLogprob(int(token), content(token), token.logprob, offset, likeliest))
        self._decoded += len(decoded)
        return self._release(len(passed))

    def finish(self, passed: str, *, stopped: bool) -> tuple[TokenLogprob, ...]:
        """What is told with the last text; after a stop string, nothing of what begins behind the text."""
        released = self._release(len(passed))
        rest = () if stopped else tuple(self._held)
        self._held = []
        return released + rest

    def _release(self, passed: int) -> tuple[TokenLogprob, ...]:
        self._passed += passed
        count = sum(token.offset < self._passed for token in self._held)
        released, self._held = self._held[:count], self._held[count:]
        return tuple(released)
