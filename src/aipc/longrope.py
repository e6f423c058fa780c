"""LongRoPE: a model with two sets of factors for its rotation, and which of them a request is computed with.

Keys are cached after their rotation. So a sequence is computed with one set from its first token to its
last, and a cache that was computed with the other set is of no use to it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# The types by which configs name it; "su" and "yarn" are those of the first Phi-3-128k.
ROPE_TYPES = ("longrope", "su", "yarn")

# Where the factors change in all of Microsoft's models that have them.
USUAL_BORDER = 4096

# Texts that were begun with the short factors, and may go on.
_REMEMBERED_TEXTS = 16


@dataclass(frozen=True, slots=True)
class FactorSet:
    """What stretches the rotation.

    divisors   of the inverse frequencies, one for each rotated pair of channels
    scale      of cosines and sines
    """

    divisors: tuple[float, ...]
    scale: float


@dataclass(frozen=True, slots=True)
class LongRope:
    """The two sets. `border` is the number of tokens up to which the short one is right."""

    border: int
    short: FactorSet
    long: FactorSet


def takes_long_factors(border: int | None, prompt_tokens: int, max_new_tokens: int) -> bool:
    """Whether a request is computed with the long factors: all that it may come to decides, beforehand.

    border           of the model, or None where nothing changes
    max_new_tokens   of them the last is not computed, only given out
    """
    return border is not None and prompt_tokens + max_new_tokens - 1 > border


def border_in(config: Mapping[str, Any]) -> int | None:
    """After how many tokens the factors of a folder's model change; None if they never do.

    config   the content of its config.json, whoever made it
    """
    rope = config.get("rope_scaling") or config.get("rope_parameters")
    if not isinstance(rope, Mapping) or rope.get("rope_type", rope.get("type")) not in ROPE_TYPES:
        return None
    named = (config.get("original_max_position_embeddings"), rope.get("original_max_position_embeddings"))
    border = next((value for value in named if isinstance(value, int) and value > 0), USUAL_BORDER)
    context = config.get("max_position_embeddings")
    return border if not isinstance(context, int) or border < context else None


class Crossings:
    """Tells which requests continue a text that was computed with the other factors.

    Such a text is prefilled anew. That happens once: after it, its cache has the long factors.
    """

    def __init__(self, border: int | None) -> None:
        self._border = border
        self._short_texts: deque[tuple[int, ...]] = deque(maxlen=_REMEMBERED_TEXTS)
        self._lock = threading.Lock()

    def add(self, prompt: Sequence[int], max_new_tokens: int) -> tuple[bool | None, bool]:
        """Whether a new request takes the long factors (None for a model without), and is prefilled anew."""
        if self._border is None:
            return None, False
        text = tuple(prompt)
        long = takes_long_factors(self._border, len(prompt), max_new_tokens)
        with self._lock:
            earlier = [begun for begun in self._short_texts if text[: len(begun)] == begun]
            for begun in earlier:
                self._short_texts.remove(begun)
            if not long:
                self._short_texts.append(text)
        return long, long and bool(earlier)
