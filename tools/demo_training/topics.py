"""The questions and answers of the demo model, and how questions are varied in training."""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parent.parent / "demo_data"

# What a person says without asking anything; a greeting before it would change its meaning.
SMALL_TALK = "talk"
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Topic:
    """One answer and the many ways to ask for it.

    questions   seen in training
    held_out    never seen in training: they measure whether the model understood
    theme       the file that the topic stands in
    """

    id: str
    answer: str
    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    theme: str


def read_topics() -> list[Topic]:
    """Every topic, ordered by theme."""
    return [
        Topic(raw["id"], raw["answer"], tuple(raw["questions"]), tuple(raw["held_out"]), path.stem)
        for path in sorted((DATA / "topics").glob("*.json"))
        for raw in json.loads(path.read_text(encoding="utf-8"))
    ]


def read_variation() -> dict[str, Any]:
    """What the variation of questions draws from."""
    raw: dict[str, Any] = json.loads((DATA / "variation.json").read_text(encoding="utf-8"))
    return raw


class Variation:
    """Asks the same thing differently: other openings, synonyms, politeness, case, typing errors."""

    def __init__(self, topics: list[Topic], raw: dict[str, Any], rng: random.Random) -> None:
        self.rng = rng
        self.prefixes: list[str] = raw["prefixes"]
        self.suffixes: list[str] = raw["suffixes"]
        self.openings: dict[str, list[str]] = raw["openings"]
        self.synonyms: dict[str, list[str]] = raw["synonyms"]
        self.unrelated: dict[str, list[str]] = raw["unrelated"]
        self.system_prompts: list[str] = raw["system_prompts"]["train"]
        self.questions = [question for topic in topics for question in topic.questions]
        alternatives = "|".join(sorted(map(re.escape, self.synonyms), key=len, reverse=True))
        self._synonym = re.compile(rf"\b({alternatives})\b")

    def question(self, topic: Topic) -> str:
        """One of the topic's questions, varied."""
        text = self.rng.choice(topic.questions)
        if topic.id == UNKNOWN and self.rng.random() < 0.6:
            text = self._unrelated_question()
        elif topic.theme != SMALL_TALK:
            text = self._other_opening(text)
            text = self._synonym.sub(self._maybe_synonym, text)
        if topic.theme != SMALL_TALK:
            text = self._frame(text)
        return self._as_typed(text)

    def system_prompt(self) -> str | None:
        """None, one of the written ones, or any sentences at all: the model shall not mind."""
        chance = self.rng.random()
        if chance < 0.55:
            return None
        if chance < 0.8:
            return self.rng.choice(self.system_prompts)
        return " ".join(self.rng.sample(self.questions + self.system_prompts, self.rng.randint(1, 3)))

    def _unrelated_question(self) -> str:
        lists = self.unrelated

        def fill(match: re.Match[str]) -> str:
            name = match.group(1)
            if name == "a":
                return "a"
            return self.rng.choice(lists[name.rstrip("2")])

        text = re.sub(r"\{(\w+)\}", fill, self.rng.choice(lists["templates"]))
        text = re.sub(r"\ba (?=[aeiou])", "an ", text)
        return text[0].upper() + text[1:]

    def _other_opening(self, text: str) -> str:
        for opening, others in self.openings.items():
            if text.startswith(opening + " ") and self.rng.random() < 0.35:
                return self.rng.choice(others) + text[len(opening) :]
        return text

    def _maybe_synonym(self, match: re.Match[str]) -> str:
        word = match.group(0)
        return self.rng.choice(self.synonyms[word]) if self.rng.random() < 0.2 else word

    def _frame(self, text: str) -> str:
        if self.rng.random() < 0.12:
            text = f"{self.rng.choice(self.prefixes)} {text[0].lower() + text[1:]}"
        if self.rng.random() < 0.08:
            text = f"{text.rstrip('.?!')} {self.rng.choice(self.suffixes)}"
        return text

    def _as_typed(self, text: str) -> str:
        """The text as somebody in a hurry types it."""
        words = text.split(" ")
        if len(words) > 3:
            words = [word for word in words if not (word.islower() and self.rng.random() < 0.04)] or words
        if self.rng.random() < 0.12:
            words = self._mistype(words)
        text = " ".join(words)
        if self.rng.random() < 0.35:
            text = text.rstrip(".?!") + self.rng.choice(("", "", "", "?", "??", ".", "!", " ?"))
        case = self.rng.random()
        if case < 0.25:
            return text.lower()
        return text.upper() if case < 0.28 else text

    def _mistype(self, words: list[str]) -> list[str]:
        index = self.rng.randrange(len(words))
        word = words[index]
        if len(word) < 4 or not word.isalpha():
            return words
        at = self.rng.randrange(1, len(word) - 1)
        letter = self.rng.choice("abcdefghijklmnoprstuwy")
        typo = self.rng.choice(
            (
                word[:at] + word[at + 1 :],
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
                word[:at] + word[at] + word[at:],
                word[:at] + letter + word[at + 1 :],
            )
        )
        return [*words[:index], typo, *words[index + 1 :]]
