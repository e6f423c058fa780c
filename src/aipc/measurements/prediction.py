"""How long an answer will take, from a record: load + first inference + prefill + decode."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from aipc.measurements.figures import figures, start_figures
from aipc.measurements.record import CellRecord, Record

Goal = Literal["fast", "long", "efficient"]


@dataclass(frozen=True, slots=True)
class Workload:
    """What is to be answered.

    warm   whether the model is loaded already and has answered before
    """

    prompt_tokens: int
    new_tokens: int
    warm: bool

    def __str__(self) -> str:
        begin = "by a model that is loaded" if self.warm else "with the start of the model"
        return f"a prompt of {self.prompt_tokens} tokens and {self.new_tokens} new ones, {begin}"


# A question by `aipc run`, a turn late in a long chat, and a question that costs the least energy.
WORKLOADS: dict[Goal, Workload] = {
    "fast": Workload(64, 128, warm=False),
    "long": Workload(1024, 256, warm=True),
    "efficient": Workload(64, 128, warm=True),
}


# How many times as long as the longest prompt that was measured.
_FARTHEST = 2


@dataclass(frozen=True, slots=True)
class Prediction:
    """What an answer takes, by its parts.

    load_s              0 where the process is warm
    first_inference_s   what the first answer takes longer than later ones; 0 where the process is warm
    prefill_s           to the first token
    decode_s            from there to the last
    energy_j            None where it was not readable
    """

    load_s: float
    first_inference_s: float
    prefill_s: float
    decode_s: float
    energy_j: float | None

    @property
    def total_s(self) -> float:
        """From the request to the last token."""
        return self.load_s + self.first_inference_s + self.prefill_s + self.decode_s


def predict(record: Record, cell: CellRecord, workload: Workload) -> Prediction | None:
    """What a cell of a record would take.

    None where it lacks the figures, refused a prompt that is not longer, or was asked none half as long
    """
    refused = [-1 if each.prompt_tokens is None else each.prompt_tokens for each in cell.failures]
    if any(length <= workload.prompt_tokens for length in refused):
        return None
    known = [own for own in figures(record, cell) if own.ttft_s is not None and own.tpot_s is not None]
    start = start_figures(cell)
    if not known or (start.load_s is None and not workload.warm):
        return None
    if workload.prompt_tokens > _FARTHEST * known[-1].prompt_tokens:
        return None
    prefill = [(float(own.prompt_tokens), own.ttft_s or 0.0) for own in known]
    # A step reads the keys and values of all tokens before it: its time is that of the answer's middle.
    decode = [(own.prompt_tokens + record.options.new_tokens / 2, own.tpot_s or 0.0) for own in known]
    joules = [own.energy_j_per_token for own in known if own.energy_j_per_token is not None]
    first_s = max((start.first_inference_s or 0.0) - prefill[0][1], 0.0)
    return Prediction(
        load_s=0.0 if workload.warm else start.load_s or 0.0,
        first_inference_s=0.0 if workload.warm else first_s,
        prefill_s=_prefill_s(prefill, workload.prompt_tokens),
        decode_s=_step_s(decode, workload.prompt_tokens + workload.new_tokens / 2)
        * (workload.new_tokens - 1),
        energy_j=joules[0] * workload.new_tokens if joules else None,
    )


def ranked(
    record: Record, cells: Sequence[CellRecord], goal: Goal, workload: Workload
) -> list[tuple[CellRecord, Prediction]]:
    """The cells that can answer, best first. For the least energy, only those whose energy is known."""
    found = [(cell, predict(record, cell, workload)) for cell in cells]
    able = [(cell, prediction) for cell, prediction in found if prediction is not None]
    if goal == "efficient":
        able = [(cell, prediction) for cell, prediction in able if prediction.energy_j is not None]
        return sorted(able, key=lambda pair: pair[1].energy_j or 0.0)
    return sorted(able, key=lambda pair: pair[1].total_s)


def on_line(points: Sequence[tuple[float, float]], at: float) -> float:
    """The value between two neighbours, or on the line through the two that are nearest.

    points   ascending
    """
    if len(points) == 1:
        return points[0][1]
    pairs = list(itertools.pairwise(points))
    (x0, y0), (x1, y1) = next((pair for pair in pairs if at <= pair[1][0]), pairs[-1])
    return y0 + (y1 - y0) * (at - x0) / (x1 - x0)


def _prefill_s(points: Sequence[tuple[float, float]], tokens: float) -> float:
    """No prompt is read faster than a shorter one that was measured, nor a short one in no time."""
    if len(points) == 1:
        # Of one length no more is known than its time a token.
        return points[0][1] * tokens / points[0][0]
    shorter_s = max((seconds for length, seconds in points if length <= tokens), default=0.0)
    share_s = points[0][1] * min(tokens / points[0][0], 1.0)
    return max(on_line(points, tokens), shorter_s, share_s)


def _step_s(points: Sequence[tuple[float, float]], middle: float) -> float:
    """A step after fewer tokens than were measured is not faster than any that was."""
    return max(on_line(points, middle), min(seconds for _, seconds in points))
