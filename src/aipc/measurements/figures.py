"""From the requests of a record to its figures. What is not known is None."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aipc.measurements.record import CellRecord, Record, Request

# A reader empties a pipe faster than this, and no model here makes a token in it.
_BURST_S = 1e-4


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one cell at one prompt length: medians over its requests. Those that stopped early are left out.

    tpot_s                 of each request its `step_s`
    tpot_p95_s             of all decode steps, as they were received
    tokens_per_s           of all streams together, from the first request to the last token
    ceiling_tokens_per_s   of decode: memory bandwidth over the bytes of weights that a token reads; None
                           where the device has memory of its own, or nothing says the bytes
    energy_j_per_token     of the whole request, by the tokens that it gave
    """

    prompt_tokens: int
    requests: int
    stopped_early: int
    ttft_s: float | None
    prefill_tokens_per_s: float | None
    tpot_s: float | None
    tpot_p95_s: float | None
    decode_tokens_per_s: float | None
    tokens_per_s: float | None
    ceiling_tokens_per_s: float | None
    mean_utilisation: float | None
    energy_j_per_token: float | None

    @property
    def ceiling_share(self) -> float | None:
        """How much of the ceiling decode reaches."""
        if self.decode_tokens_per_s is None or self.ceiling_tokens_per_s is None:
            return None
        return self.decode_tokens_per_s / self.ceiling_tokens_per_s


@dataclass(frozen=True, slots=True)
class StartFigures:
    """Of one cell's starts: medians over its rounds, the highest peak.

    load_s      with what was compiled before; where each round compiled, with that
    compile_s   what the compilation added
    """

    load_s: float | None
    compile_s: float | None
    first_inference_s: float | None
    peak_bytes: int | None
    device_peak_bytes: int | None


def figures(record: Record, cell: CellRecord) -> list[Figures]:
    """Of every prompt length that was answered, the shortest first."""
    lengths = sorted({request.prompt_tokens for request in cell.requests})
    return [_figures(record, cell, length) for length in lengths]


def start_figures(cell: CellRecord) -> StartFigures:
    """Of the loads."""
    compiling = [load.load_s for load in cell.loads if load.compiled]
    found = [load.load_s for load in cell.loads if not load.compiled]
    load_s = median(found or compiling)
    compile_s = compiling[0] - load_s if compiling and found and load_s is not None else None
    peak_bytes = _most(load.peak_bytes for load in cell.loads)
    device_peak_bytes = _most(load.device_peak_bytes for load in cell.loads)
    first = [load.first_inference_s for load in cell.loads if load.first_inference_s is not None]
    return StartFigures(load_s, compile_s, median(first), peak_bytes, device_peak_bytes)


def step_s(request: Request) -> float | None:
    """The mean decode step; None where all tokens arrived at once, and nothing is known of it.

    Tokens that lay in the pipe when the first one was received were made before that: they take no part.
    In the middle and at the end, bursts change no mean.
    """
    rest = list(itertools.dropwhile(lambda step: step < _BURST_S, request.steps_s))
    return statistics.mean(rest) if rest else None


def median(values: Iterable[float]) -> float | None:
    """The median, or None of nothing."""
    found = list(values)
    return statistics.median(found) if found else None


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that a share of all do not exceed, or None of nothing."""
    return sorted(values)[math.ceil(share * len(values)) - 1] if values else None


def _most(values: Iterable[int | None]) -> int | None:
    return max((value for value in values if value is not None), default=None)


def _figures(record: Record, cell: CellRecord, prompt_tokens: int) -> Figures:
    asked = [request for request in cell.requests if request.prompt_tokens == prompt_tokens]
    whole = [request for request in asked if not request.stopped_early]
    ttft_s = median(request.ttft_s for request in whole if request.ttft_s is not None)
    tpot_s = median(step for request in whole if (step := step_s(request)) is not None)
    utilisation = median(each.mean_utilisation for each in whole if each.mean_utilisation is not None)
    joules = median(
        each.energy_j / each.generated_tokens
        for each in whole
        if each.energy_j is not None and each.generated_tokens
    )
    return Figures(
        prompt_tokens=prompt_tokens,
        requests=len(whole),
        stopped_early=len(asked) - len(whole),
        ttft_s=ttft_s,
        prefill_tokens_per_s=prompt_tokens / ttft_s if ttft_s else None,
        tpot_s=tpot_s,
        tpot_p95_s=percentile([step for request in whole for step in request.steps_s], 0.95),
        decode_tokens_per_s=1 / tpot_s if tpot_s else None,
        tokens_per_s=_together(whole),
        ceiling_tokens_per_s=_ceiling(record, cell),
        mean_utilisation=utilisation,
        energy_j_per_token=joules,
    )


def _together(whole: Sequence[Request]) -> float | None:
    """The median round's tokens a second of all streams, which begin at once."""
    rounds = {request.round for request in whole}
    rates = []
    for number in rounds:
        streams = [request for request in whole if request.round == number]
        longest_s = max(request.total_s or 0.0 for request in streams)
        if longest_s:
            rates.append(sum(request.generated_tokens for request in streams) / longest_s)
    return median(rates)


def _ceiling(record: Record, cell: CellRecord) -> float | None:
    if not cell.bytes_per_token or not record.bandwidth_bytes_per_s or cell.kind == "discrete GPU":
        return None
    return record.bandwidth_bytes_per_s / cell.bytes_per_token
