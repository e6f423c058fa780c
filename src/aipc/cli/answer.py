"""One answer: shown piece by piece, kept, and summed up in a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from aipc.types import Chunk, FinishReason, Stats

_DOUBT = (
    "The counter of {} did not rise during this answer: something else may have computed it. "
    "aipc doctor looks closer."
)


@dataclass(slots=True)
class Answer:
    """What came of a prompt so far."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stats: Stats | None = None

    @property
    def cancelled(self) -> bool:
        """Whether it was stopped before its end."""
        return self.finish_reason == "cancelled"

    def as_json(self) -> dict[str, Any]:
        """The object that --json shows; `stats` is null for an answer that was stopped."""
        stats = self.stats and {**asdict(self.stats), "tokens_per_s": self.stats.tokens_per_s}
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "stats": stats,
        }


def collect(chunks: Iterator[Chunk], show: Callable[[str], None]) -> Answer:
    """Take an answer to its end or to Ctrl+C, which stops the work and keeps what came before.

    show   is given each piece of text as it comes, and a line break where the last piece has none
    """
    answer = Answer()
    try:
        for chunk in chunks:
            answer.text += chunk.text
            answer.token_ids += chunk.token_ids
            answer.finish_reason = chunk.finish_reason or answer.finish_reason
            answer.stats = chunk.stats or answer.stats
            show(chunk.text)
    except KeyboardInterrupt:
        answer.finish_reason = "cancelled"
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
        if answer.text and not answer.text.endswith("\n"):
            show("\n")
    return answer


def summary(answer: Answer) -> str:
    """The line under an answer: where it came from, and how fast; and one more where that is in doubt."""
    stats = answer.stats
    if stats is None:
        return f"[stopped · {len(answer.token_ids)} tokens]"
    ends = {"cancelled": "stopped", "length": "cut off at the limit of tokens"}
    parts = [
        stats.device,
        stats.runtime,
        stats.precision,
        f"first token {stats.ttft_s:.2f} s" if stats.ttft_s is not None else "",
        f"{stats.tokens_per_s:.1f} tokens/s" if stats.tokens_per_s is not None else "",
        f"{stats.generated_tokens} tokens" if stats.generated_tokens != 1 else "1 token",
        f"{100 * stats.mean_utilisation:.0f} % busy" if stats.mean_utilisation is not None else "",
        f"{stats.energy_j:.1f} J" if stats.energy_j is not None else "",
        "computed anew with the factors for long texts" if stats.prefilled_anew else "",
        ends.get(answer.finish_reason or "", ""),
    ]
    line = f"[{' · '.join(part for part in parts if part)}]"
    return f"{line}\n{_DOUBT.format(stats.device)}" if stats.device_used is False else line
