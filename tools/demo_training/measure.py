"""How often the demo model gives the right answer."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

from demo_training.chat import IGNORED, Formatter
from demo_training.network import Precision, TinyPhi3
from demo_training.topics import Topic

PRECISIONS: tuple[Precision, ...] = ("fp16", "int4", "int4-channel")


@dataclass(frozen=True, slots=True)
class Case:
    """A question, what stands before it, and the topic whose answer is right."""

    question: str
    topic: Topic
    system: str | None = None
    earlier: tuple[str, str] | None = None


def trained(topics: list[Topic]) -> list[Case]:
    """Every question of the training, as written."""
    return [Case(question, topic) for topic in topics for question in topic.questions]


def held_out(topics: list[Topic]) -> list[Case]:
    """Every rephrasing that training has not seen."""
    return [Case(question, topic) for topic in topics for question in topic.held_out]


def with_system_prompts(cases: list[Case], prompts: Sequence[str]) -> list[Case]:
    """The cases, each after the next of the system prompts."""
    return [Case(case.question, case.topic, prompts[n % len(prompts)]) for n, case in enumerate(cases)]


def as_second_turn(cases: list[Case], topics: list[Topic], seed: int) -> list[Case]:
    """The cases, each after a question and answer about another topic."""
    rng = random.Random(seed)

    def earlier(case: Case) -> tuple[str, str]:
        other = rng.choice([topic for topic in topics if topic.id != case.topic.id])
        return rng.choice(other.questions), other.answer

    return [Case(case.question, case.topic, earlier=earlier(case)) for case in cases]


def wrong_cases(
    network: TinyPhi3, tokenizer: Tokenizer, cases: list[Case], precision: Precision
) -> list[Case]:
    """The cases whose greedy answer is not exactly the right one.

    Greedy decoding writes an answer exactly if, given the answer up to any token, the next token
    is the likeliest: so one pass over question and answer decides it.
    """
    network.eval()
    network.set_precision(precision)
    formatter = Formatter(tokenizer)
    cases = sorted(cases, key=lambda case: len(case.question) + len(case.topic.answer))
    wrong = [
        case
        for batch in _batches(cases, 64)
        for case, right in zip(batch, _are_right(network, formatter, batch), strict=True)
        if not right
    ]
    network.set_precision("fp16")
    return wrong


def score(
    network: TinyPhi3, tokenizer: Tokenizer, topics: list[Topic], system_prompts: Sequence[str], seed: int
) -> dict[str, dict[str, float | int]]:
    """Per precision the number of cases of each kind and the share answered right."""
    new = held_out(topics)
    kinds = {
        "trained": trained(topics),
        "held_out": new,
        "held_out_after_system_prompt": with_system_prompts(new, system_prompts),
        "held_out_as_second_question": as_second_turn(new, topics, seed),
    }
    return {
        precision: {
            kind: round(1 - len(wrong_cases(network, tokenizer, cases, precision)) / len(cases), 4)
            for kind, cases in kinds.items()
        }
        for precision in PRECISIONS
    } | {"questions": {kind: len(cases) for kind, cases in kinds.items()}}


def prompt_ids(formatter: Formatter, case: Case) -> list[int]:
    """The ids that the model reads before it writes."""
    ids = [] if case.system is None else formatter.message("system", case.system)
    if case.earlier is not None:
        ids += formatter.message("user", case.earlier[0]) + formatter.message("assistant", case.earlier[1])
    return ids + formatter.message("user", case.question) + formatter.opening()


@torch.no_grad()
def generate(network: TinyPhi3, tokenizer: Tokenizer, ids: list[int], max_new_tokens: int = 90) -> str:
    """The greedy answer to a prompt."""
    end = tokenizer.token_to_id("<|end|>")
    written: list[int] = []
    while len(written) < max_new_tokens:
        token = int(network(torch.tensor([ids + written]))[0, -1].argmax())
        if token == end:
            break
        written.append(token)
    return str(tokenizer.decode(written))


@torch.no_grad()
def _are_right(network: TinyPhi3, formatter: Formatter, cases: list[Case]) -> list[bool]:
    rows = []
    for case in cases:
        prompt, answer = prompt_ids(formatter, case), formatter.answer(case.topic.answer)
        targets = [IGNORED] * (len(prompt) - 1) + answer + [IGNORED]
        rows.append((prompt + answer, targets))
    ids, targets = pad(rows)
    right = (network(ids).argmax(-1) == targets) | (targets == IGNORED)
    return [bool(row) for row in right.all(-1)]


def pad(rows: Sequence[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and targets of several rows as two rectangles; attention never looks to the right."""
    length = max(len(ids) for ids, _ in rows)
    return (
        torch.tensor([ids + [0] * (length - len(ids)) for ids, _ in rows]),
        torch.tensor([targets + [IGNORED] * (length - len(targets)) for _, targets in rows]),
    )


def _batches(cases: list[Case], size: int) -> Iterator[list[Case]]:
    for start in range(0, len(cases), size):
        yield cases[start : start + size]
