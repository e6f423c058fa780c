"""Greedy tokens and their scores, from a session that shares its cache as onnxruntime-genai does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from directml import DirectML, Provider, Session
from folders import Shape


@dataclass(frozen=True, slots=True)
class Answer:
    """tokens [n], and the scores before each of them [n, vocab_size] float32."""

    tokens: list[int]
    scores: np.ndarray


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one prompt.

    equal     tokens that are the same, from the first one on
    error     largest difference of the scores before the first token that differs, and of that one
    largest   of the right scores
    """

    equal: int
    tokens: int
    error: float
    largest: float


def answer(
    directml: DirectML,
    model: Path,
    provider: Provider,
    shape: Shape,
    prompt: Sequence[int],
    *,
    tokens: int,
    parts: int = 1,
    claim_half: bool = False,
) -> Answer:
    """The answer of a model.

    parts        the prompt is appended in as many, as a chat is that goes on
    claim_half   on a device that computes in float16, which a model in float16 wants
    """
    # The last token is not computed any further.
    capacity = len(prompt) + tokens - 1
    with directml.session(model, provider, claim_half=claim_half, shared=capacity) as session:
        # Memory that was never written may hold what is no number, and hidden positions count zero times
        # theirs. onnxruntime-genai writes zeros; here a long prompt writes numbers that must not matter.
        _scores(session, shape, [token % shape.vocab_size for token in range(capacity)], 0)
        length = -(-len(prompt) // parts)
        done, scores = 0, np.empty(0)
        for start in range(0, len(prompt), length):
            part = prompt[start : start + length]
            scores = _scores(session, shape, part, start)
            done = start + len(part)
        found, rows = [int(scores.argmax())], [scores]
        while len(found) < tokens:
            rows.append(_scores(session, shape, found[-1:], done))
            done += 1
            found.append(int(rows[-1].argmax()))
    return Answer(found, np.stack(rows))


def compare(found: Answer, right: Answer) -> Comparison:
    """How far an answer is the right one."""
    same = [one == other for one, other in zip(found.tokens, right.tokens, strict=True)]
    equal = same.index(False) if False in same else len(same)
    upto = min(equal + 1, len(same))
    error = np.abs(found.scores[:upto] - right.scores[:upto]).max()
    return Comparison(
        equal,
        len(same),
        float(error) if np.isfinite(error) else float("inf"),
        float(np.abs(right.scores[:upto]).max()),
    )


def request(shape: Shape, tokens: Sequence[int], start: int) -> dict[str, np.ndarray]:
    """The inputs for tokens that follow `start` others, without the cache."""
    end = start + len(tokens)
    inputs = {
        "input_ids": np.array([tokens], np.int64),
        "attention_mask": np.ones((1, end), np.int64),
    }
    if shape.takes_positions:
        inputs["position_ids"] = np.arange(start, end, dtype=np.int64)[None]
    return inputs


def empty_cache(shape: Shape) -> dict[str, np.ndarray]:
    """Before the first token, float32."""
    empty = np.zeros((1, shape.kv_heads, 0, shape.head_size), np.float32)
    return {
        f"past_key_values.{layer}.{part}": empty for layer in range(shape.layers) for part in ("key", "value")
    }


def _scores(session: Session, shape: Shape, tokens: Sequence[int], start: int) -> np.ndarray:
    """[vocab_size] after the last of the tokens."""
    logits: np.ndarray = session.run(request(shape, tokens, start))["logits"]
    return logits[0, -1].astype(np.float32)
