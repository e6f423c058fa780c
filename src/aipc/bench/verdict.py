"""Which cell to take, for three goals, with the numbers that say so and the command that does it."""

from __future__ import annotations

from aipc.measurements.prediction import WORKLOADS, Goal, Prediction, ranked
from aipc.measurements.record import CellRecord, Record

_TITLES: dict[Goal, str] = {
    "fast": "Fastest answer",
    "long": "Fastest long chat",
    "efficient": "Least energy",
}


def verdict(record: Record) -> str:
    """One paragraph."""
    return " ".join(_sentences(record, goal) for goal in _TITLES)


def _sentences(record: Record, goal: Goal) -> str:
    found = ranked(record, record.cells, goal, WORKLOADS[goal])
    if not found:
        why = (
            "no energy counter could be read"
            if goal == "efficient"
            else f"no prompt of {WORKLOADS[goal].prompt_tokens} tokens was answered, nor one half as long"
        )
        return f"{_TITLES[goal]}: not known, {why}."
    (best, prediction), *others = found
    text = f"{_TITLES[goal]}: {best.name}, {_amount(goal, prediction)} for {WORKLOADS[goal]}"
    if others:
        text += f", then {others[0][0].name}, {_amount(goal, others[0][1])}"
    return f"{text}: {_command(record, best)}."


def _amount(goal: Goal, prediction: Prediction) -> str:
    if goal == "efficient":
        return f"{prediction.energy_j:.3g} J"
    parts = {
        "load": prediction.load_s,
        "first inference": prediction.first_inference_s,
        "prefill": prediction.prefill_s,
        "decode": prediction.decode_s,
    }
    named = ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items() if seconds)
    return f"{prediction.total_s:.2f} s ({named})"


def _command(record: Record, cell: CellRecord) -> str:
    # A device that is not here has none.
    several = len({other.weight_format for other in record.cells} - {""}) > 1
    weights = f" --weight-format {cell.weight_format}" if several else ""
    return f"aipc run {record.model} --device {cell.device} --runtime {cell.runtime}{weights}"
