"""How likely tokens were, in the words of OpenAI's APIs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from aipc.serve.openai_schema import ChatLogprobs, TextLogprobs, TokenLogprobs, TopLogprob
from aipc.types import TokenLogprob

# What OpenAI writes for a token that is as good as impossible; JSON knows no infinity.
_LEAST = -9999.0


def listed(tokens: Sequence[TokenLogprob]) -> list[TokenLogprobs]:
    """The tokens with the likeliest in the place of each."""
    return [
        TokenLogprobs(**_top(token).model_dump(), top_logprobs=[_top(one) for one in token.likeliest])
        for token in tokens
    ]


def of_chat(tokens: Sequence[TokenLogprob]) -> ChatLogprobs:
    """As chat completions have them."""
    return ChatLogprobs(content=listed(tokens))


def of_text(tokens: Sequence[TokenLogprob]) -> TextLogprobs:
    """As completions have them."""
    return TextLogprobs(
        tokens=[_shown(token) for token in tokens],
        token_logprobs=[_finite(token.logprob) for token in tokens],
        top_logprobs=[_likeliest(token) for token in tokens] if any(t.likeliest for t in tokens) else None,
        text_offset=[token.offset for token in tokens],
    )


def _likeliest(token: TokenLogprob) -> dict[str, float]:
    """By text; of two tokens with the same text, the likelier."""
    found: dict[str, float] = {}
    for one in (*token.likeliest, token):
        found.setdefault(_shown(one), _finite(one.logprob))
    return found


def _top(token: TokenLogprob) -> TopLogprob:
    return TopLogprob(token=_shown(token), logprob=_finite(token.logprob), bytes=list(token.content))


def _shown(token: TokenLogprob) -> str:
    """Its text, or its bytes where they are a part of a character."""
    try:
        return token.content.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.content)


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST) if math.isfinite(logprob) else _LEAST
