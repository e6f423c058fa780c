"""The next token: the likeliest, or one drawn. The same for every runtime that leaves the choice to us."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from aipc.decoder import softmax
from aipc.types import Sampling, ScoredToken


def choose(logits: np.ndarray, tokens: Sequence[int], sampling: Sampling, random: np.random.Generator) -> int:
    """The next token: the likeliest, or one drawn by `probabilities`.

    logits    [vocab_size] float32
    tokens    prompt and answer so far; the repetition penalty falls on each of them once
    """
    if sampling.greedy:
        return int(np.argmax(penalised(logits, tokens, sampling.repetition_penalty)))
    reached = np.cumsum(probabilities(logits, tokens, sampling))
    # The first that reaches beyond the number drawn has a share above 0.
    return int(np.searchsorted(reached, random.random() * reached[-1], side="right"))


def scored(token: int, logits: np.ndarray, count: int) -> ScoredToken:
    """A token with its log-probability, and the `count` likeliest with theirs.

    logits    [vocab_size], as the model gives them
    """
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    count = min(count, len(scores))
    best = np.argpartition(-scores, count - 1)[:count] if count else np.empty(0, np.intp)
    best = best[np.lexsort((best, -scores[best]))]
    return ScoredToken(token, float(scores[token]), [(int(other), float(scores[other])) for other in best])


def penalised(logits: np.ndarray, tokens: Sequence[int], penalty: float) -> np.ndarray:
    """Scores in which every token that occurred is less likely, if the penalty is above 1; float64."""
    scores = logits.astype(np.float64)
    if penalty != 1.0:
        seen = np.unique(np.asarray(tokens, np.intp))
        scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
    return scores


def probabilities(logits: np.ndarray, tokens: Sequence[int], sampling: Sampling) -> np.ndarray:
    """How likely each token is drawn: penalty, then temperature, top_k and top_p; [vocab_size] float64."""
    scores = penalised(logits, tokens, sampling.repetition_penalty) / sampling.temperature
    if 0 < sampling.top_k < len(scores):
        scores[scores < np.partition(scores, -sampling.top_k)[-sampling.top_k]] = -np.inf
    shares = softmax(scores)
    if sampling.top_p < 1.0:
        shares = nucleus(shares, sampling.top_p)
    return shares


def nucleus(shares: np.ndarray, top_p: float) -> np.ndarray:
    """Only the fewest likely tokens that reach `top_p` together: those before which it is not reached.

    shares    [vocab_size] float64, sums to 1; so does what is returned
    """
    # All that are less likely than this add up to less than 1 - top_p: what is sorted is a handful.
    likely = np.flatnonzero(shares >= (1.0 - top_p) / len(shares))
    order = likely[np.argsort(-shares[likely], kind="stable")]
    before = np.cumsum(shares[order]) - shares[order]
    kept = order[before < top_p]
    only: np.ndarray = np.zeros_like(shares)
    only[kept] = shares[kept] / shares[kept].sum()
    return only
