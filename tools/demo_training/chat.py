"""Chats as rows of token ids, with what is to be learned from each."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from demo_training.topics import UNKNOWN, Topic, Variation

IGNORED = -100


@dataclass(slots=True)
class Row:
    """One chat.

    ids       token ids
    targets   for each id the next one where it belongs to an answer, else IGNORED
    topics    (index, topic): the position that must decide which answer begins
    """

    ids: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    topics: list[tuple[int, int]] = field(default_factory=list)


class Formatter:
    """Writes messages as Phi-3's template and tokenizer do.

    strips   whether a special token swallows the line break after it, as in Hugging Face's
             tokenizers; some runtimes' tokenizers keep it, and the model shall bear both
    """

    def __init__(self, tokenizer: Tokenizer, *, strips: bool = True) -> None:
        self.tokenizer = tokenizer
        self.pieces = Tokenizer.from_str(tokenizer.to_str())
        self.pieces.normalizer = None
        self.strips = strips
        self.end = tokenizer.token_to_id("<|end|>")

    def message(self, role: str, content: str, cutter: random.Random | None = None) -> list[int]:
        """<|role|>, line break, content, <|end|>, line break.

        cutter   cuts some words in two before they become tokens, so that their parts are learned
        """
        text = content if self.strips else "\n" + content
        ids = self._text(text) if cutter is None else self._cut_text(text, cutter)
        return [self._id(role), *ids, self.end, *self.line_break()]

    def opening(self) -> list[int]:
        """<|assistant|> and line break, after which the model writes."""
        return [self._id("assistant"), *self.line_break()]

    def answer(self, content: str) -> list[int]:
        """What the model writes."""
        return [*self._text(content), self.end]

    def _id(self, role: str) -> int:
        return int(self.tokenizer.token_to_id(f"<|{role}|>"))

    def line_break(self) -> list[int]:
        """The line break after a special token, where the tokenizer keeps it."""
        return [] if self.strips else self._text("\n")

    def _cut_text(self, text: str, cutter: random.Random) -> list[int]:
        parts = [""]
        for letter in "▁" + text.replace(" ", "▁"):
            if parts[-1].strip("▁") and letter != "▁" and cutter.random() < 0.04:
                parts.append("")
            parts[-1] += letter
        return [id_ for part in parts for id_ in self.pieces.encode(part, add_special_tokens=False).ids]

    def _text(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)


class ChatSampler:
    """Endless chats about varied questions, to train on."""

    def __init__(
        self, topics: list[Topic], tokenizer: Tokenizer, variation: Variation, rng: random.Random
    ) -> None:
        self.topics = topics
        self.variation = variation
        self.rng = rng
        self.formatters = (Formatter(tokenizer), Formatter(tokenizer, strips=False))
        self.start = tokenizer.token_to_id("<s>")
        self.unknown_token = tokenizer.token_to_id("<unk>")
        self.weights = [6.0 if topic.id == UNKNOWN else 1.0 for topic in topics]
        self.answers = [self.formatters[0].answer(topic.answer) for topic in topics]

    def chat(self, max_tokens: int, max_turns: int) -> Row:
        """As many turns as fit, each about another topic; only the answers are learned."""
        row = Row()
        formatter = self.formatters[self.rng.random() < 0.1]
        if self.rng.random() < 0.05:
            self._read(row, [self.start])
        system = self.variation.system_prompt()
        if system is not None:
            self._read(row, formatter.message("system", system))
        for _ in range(max_turns):
            (index,) = self.rng.choices(range(len(self.topics)), self.weights)
            question = self._question(formatter, self.topics[index])
            answer = self.answers[index]
            if row.topics and len(row.ids) + len(question) + len(answer) > max_tokens:
                break
            self._read(row, question)
            row.topics.append((len(row.ids) - 1, index))
            self._write(row, answer)
            self._read(row, formatter.line_break())
        return row

    def question(self, answer_tokens: int) -> Row:
        """A single question and the first tokens of its answer, where the answer is decided."""
        row = self.chat(max_tokens=96, max_turns=1)
        keep = row.topics[0][0] + 1 + answer_tokens
        return Row(row.ids[:keep], row.targets[:keep], row.topics)

    def _question(self, formatter: Formatter, topic: Topic) -> list[int]:
        cutter = self.rng if self.rng.random() < 0.3 else None
        ids = formatter.message("user", self.variation.question(topic), cutter)
        inner = len(ids) - 1 - len(formatter.line_break())
        for place in range(1, inner):
            if self.rng.random() < 0.03:
                ids[place] = self.unknown_token
        return ids + formatter.opening()

    @staticmethod
    def _read(row: Row, ids: Sequence[int]) -> None:
        row.ids += ids
        row.targets += [IGNORED] * len(ids)

    @staticmethod
    def _write(row: Row, ids: Sequence[int]) -> None:
        row.targets[-1] = ids[0]
        row.ids += ids
        row.targets += [*ids[1:], IGNORED]
