"""Answers held to a schema or a pattern: which tokens may follow, by llguidance."""

from __future__ import annotations

from pathlib import Path

import llguidance
import numpy as np

from aipc.errors import UsageError
from aipc.types import Guidance


class Matcher:
    """One answer on its way through a grammar."""

    def __init__(self, matcher: llguidance.LLMatcher) -> None:
        self._matcher = matcher

    @property
    def ended(self) -> bool:
        """Whether nothing may follow any more."""
        return bool(self._matcher.is_stopped())

    def masked(self, logits: np.ndarray) -> np.ndarray:
        """The scores, [vocab_size] float32, with minus infinity for what may not follow."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, bitorder="little", count=len(logits))
        return np.where(allowed, logits, np.float32(-np.inf))

    def accept(self, token: int) -> None:
        """Called with each new token of the answer."""
        self._matcher.consume_token(token)


class Grammars:
    """Makes matchers for the tokenizer of `folder`, which is read when the first one is asked for."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self._folder = folder
        self._vocab_size = vocab_size
        self._tokenizers: dict[frozenset[int], llguidance.LLTokenizer] = {}

    def matcher(self, guidance: Guidance, stop_ids: frozenset[int]) -> Matcher:
        """For an answer from its beginning, which ends with one of the `stop_ids`.

        raises   UsageError for what llguidance cannot follow
        """
        if guidance.kind == "regex":
            grammar = llguidance.LLMatcher.grammar_from_regex(guidance.text)
        else:
            # Else a model may write blanks for ever.
            grammar = llguidance.LLMatcher.grammar_from_json_schema(
                guidance.text, overrides={"whitespace_flexible": False}
            )
        matcher = llguidance.LLMatcher(self._tokenizer(stop_ids), grammar, log_level=0)
        if matcher.is_error():
            raise UsageError(
                f"the runtime cannot follow this response_format: {_gist(matcher.get_error())}",
                hint="use a simpler schema or pattern",
            )
        return Matcher(matcher)

    def _tokenizer(self, stop_ids: frozenset[int]) -> llguidance.LLTokenizer:
        if stop_ids not in self._tokenizers:
            path = str(self._folder / "tokenizer.json")
            ends = sorted(stop_ids) or None
            self._tokenizers = {stop_ids: llguidance.LLTokenizer(path, self._vocab_size, ends)}
        return self._tokenizers[stop_ids]


def _gist(words: str) -> str:
    """An error of llguidance for people: without the inside of its parser."""
    return " ".join(words.partition("<state>")[0].split())[:300]
