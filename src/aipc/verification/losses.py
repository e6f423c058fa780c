"""How far a folder's scores are from the original's, in the field's measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Loss:
    """What was lost, over some positions; everything in nats.

    tokens                length of the passages, the answer included
    positions             how many tokens were scored
    kl_mean, p99, max     KL divergence of the folder's distribution from the original's
    top1_agreement        share of positions at which both hold the same token likeliest
    perplexity            of the folder on the text; inf where it is beyond numbers
    original_perplexity   of the original
    finite                whether the folder's scores are all numbers
    """

    tokens: int
    positions: int
    kl_mean: float
    kl_p99: float
    kl_max: float
    top1_agreement: float
    perplexity: float
    original_perplexity: float
    finite: bool

    @property
    def perplexity_ratio(self) -> float:
        """Above 1, the folder finds the text less likely than the original does."""
        return self.perplexity / self.original_perplexity


@dataclass(frozen=True, slots=True)
class Scored:
    """One passage's following tokens as both have scored them.

    following   [n] ids
    original    [n, vocab_size] float32
    folder      [n, vocab_size] float32
    """

    tokens: int
    following: Sequence[int]
    original: np.ndarray
    folder: np.ndarray


def loss_over(passages: Sequence[Scored]) -> Loss:
    """The loss over all positions of passages; `tokens` is that of the longest."""
    parts = [_at_positions(passage) for passage in passages]
    divergence, agreement, likelihood, original_likelihood = (
        np.concatenate(column) for column in zip(*parts, strict=True)
    )
    finite = bool(np.isfinite(divergence).all() and np.isfinite(likelihood).all())
    with np.errstate(over="ignore"):
        perplexity, original_perplexity = np.exp(-likelihood.mean()), np.exp(-original_likelihood.mean())
    return Loss(
        tokens=max(passage.tokens for passage in passages),
        positions=len(divergence),
        kl_mean=float(divergence.mean()) if finite else float("inf"),
        kl_p99=float(np.percentile(divergence, 99)) if finite else float("inf"),
        kl_max=float(divergence.max()) if finite else float("inf"),
        top1_agreement=float(agreement.mean()),
        perplexity=float(perplexity) if finite else float("inf"),
        original_perplexity=float(original_perplexity),
        finite=finite,
    )


def _at_positions(passage: Scored) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """KL divergence, agreement, and both log-likelihoods of the text, each [n]."""
    with np.errstate(invalid="ignore", over="ignore"):
        original, folder = log_softmax(passage.original), log_softmax(passage.folder)
        # Rounding may leave a tiny negative number where both are the same.
        divergence = np.maximum((np.exp(original) * (original - folder)).sum(axis=-1), 0.0)
    places = np.arange(len(passage.following)), np.asarray(passage.following)
    agreement = original.argmax(axis=-1) == folder.argmax(axis=-1)
    return divergence, agreement, folder[places], original[places]


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities along the last axis, float64."""
    wide = scores.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide
