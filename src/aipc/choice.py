"""What a model is run with: as a person pinned it, as it was measured here, or in the mission's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aipc import plan, prepare, selectors
from aipc.errors import AipcError, DeviceError, MissingExtraError, UsageError
from aipc.inventory import Candidate
from aipc.measurements import kept
from aipc.measurements.prediction import WORKLOADS, Goal, Prediction, Workload, predict, ranked
from aipc.measurements.record import CellRecord, Record
from aipc.plan import Needs, Plan

# What a checkpoint becomes where no format is asked for.
_USUAL_FORMAT = "int4"


@dataclass(frozen=True, slots=True)
class Choice:
    """What to try, best first, and why in this order.

    predictions   of each of the plan's candidates; None where it was not measured, or cannot answer
    why           a sentence
    """

    plan: Plan
    predictions: tuple[Prediction | None, ...]
    why: str


def choose(
    source: str | Path,
    device: str = selectors.AUTO,
    runtime: str | None = None,
    *,
    needs: Needs = Needs(),  # noqa: B008 - it is frozen
    weight_format: str | None = None,
    goal: Goal = "fast",
    workload: Workload | None = None,
    pinned: bool = True,
) -> Choice:
    """What to run a model with; nothing is loaded yet.

    device, runtime, needs   as plan.make_plan has them
    weight_format            None for what the folder holds, int4 for a checkpoint
    workload                 None for what is usual for the goal
    pinned                   whether a person's pin leaves no other place
    raises                   as plan.make_plan, and ModelNotFoundError
    """
    formats = prepare.formats_of(source)
    # What was measured says nothing of other arithmetic.
    record = None if needs.exact else kept.record_of(source)
    order = _Order(source, record, weight_format, goal, workload or WORKLOADS[goal])
    asked = needs.exact or runtime is not None or device.lower() != selectors.AUTO
    pin = kept.pin_of(source) if pinned and not asked else None
    try:
        made = plan.make_plan(
            pin.device if pin else device,
            pin.runtime if pin else runtime,
            needs=needs,
            formats=formats,
            order=order.of,
        )
    except (DeviceError, MissingExtraError, UsageError) as exc:
        if pin is None:
            raise
        raise DeviceError(
            f"{source} is pinned to {pin}, and {exc.message}", hint=f"aipc plan {source} --unpin"
        ) from exc
    why = f"it is pinned to {pin}; aipc plan {source} --unpin undoes that" if pin else order.why
    return Choice(made, tuple(map(order.prediction, made.candidates)), why)


def context_length(source: str | Path) -> int | None:
    """See `model_size.context_length`."""
    from aipc import model_size

    return model_size.context_length(str(source))


class _Order:
    """Orders candidates by a record, or where it does not know them all by kind and memory."""

    def __init__(
        self,
        source: str | Path,
        record: Record | None,
        weight_format: str | None,
        goal: Goal,
        workload: Workload,
    ) -> None:
        self._source = source
        self._record = record
        self._cells = {} if record is None else _cells(record, weight_format)
        self._goal: Goal = goal
        self._workload = workload
        self.why = ""

    def prediction(self, item: Candidate) -> Prediction | None:
        """What it would take, if it was measured and can answer."""
        cell = self._cells.get(_key(item))
        return None if self._record is None or cell is None else predict(self._record, cell, self._workload)

    def of(self, items: Sequence[Candidate]) -> tuple[list[Candidate], str]:
        """Best first, and a note where there was a choice."""
        usual, note = self._usual(items)
        unknown = [item for item in usual if _key(item) not in self._cells]
        measure = f"aipc bench {self._source} measures"
        if self._record is None:
            self.why = f"nothing was measured here yet: {_USUAL}; {measure}"
        elif unknown:
            names = ", ".join(map(str, unknown))
            self.why = f"the record of {self._record.created[:10]} lacks {names}: {_USUAL}; {measure} again"
        else:
            return self._measured(self._record, usual) or (usual, note)
        return usual, note

    def _measured(self, record: Record, usual: list[Candidate]) -> tuple[list[Candidate], str] | None:
        """By the record; None where it says nothing of the goal."""
        cells = [self._cells[_key(item)] for item in usual]
        names = [(cell.device, cell.runtime) for cell, _ in ranked(record, cells, self._goal, self._workload)]
        if not names:
            what = "energy" if self._goal == "efficient" else "time"
            self.why = f"the record of {record.created[:10]} holds no {what} for this: {_USUAL}"
            return None
        best = [item for name in names for item in usual if _key(item) == name]
        ordered = [*best, *(item for item in usual if item not in best)]
        least = "least energy" if self._goal == "efficient" else "least time"
        self.why = f"measured here on {record.created[:10]}, {least} for {self._workload}"
        note = f"{ordered[0]} is taken: {self.why}" if len(ordered) > 1 else ""
        return ordered, note

    def _usual(self, items: Sequence[Candidate]) -> tuple[list[Candidate], str]:
        """The mission's order; a GPU whose own memory is too small comes last."""
        ordered, note = plan.mission_order(items)
        limits = [item.device.memory_bytes for item in items if item.device.kind == "discrete GPU"]
        if len(items) < 2 or not any(limits):
            return ordered, note
        # It needs numpy, whose import would be a tenth of a second of every start.
        from aipc.model_size import RUNTIME_BYTES, model_size

        try:
            size = model_size(str(self._source))
        except AipcError:
            size = None
        if size is None:
            return ordered, note
        needed = size.weights_bytes + RUNTIME_BYTES
        small = [item for item in ordered if not _holds(item, needed)]
        if small and len(small) < len(ordered):
            note = f"{small[0]} comes last: the model takes {needed / 1e9:.1f} GB, more than its memory"
            ordered = [*(item for item in ordered if item not in small), *small]
        return ordered, note


_USUAL = "the order is NPU, discrete GPU, integrated GPU, CPU"


def _holds(item: Candidate, needed_bytes: int) -> bool:
    own = item.device.memory_bytes
    return item.device.kind != "discrete GPU" or own is None or own >= needed_bytes


def _key(item: Candidate) -> tuple[str, str]:
    return item.device.word, item.runtime.name


def _cells(record: Record, weight_format: str | None) -> dict[tuple[str, str], CellRecord]:
    """Those with the weights that will be loaded."""
    formats = {cell.weight_format for cell in record.cells}
    usual = _USUAL_FORMAT if _USUAL_FORMAT in formats or len(formats) != 1 else next(iter(formats))
    wanted = weight_format or usual
    return {(cell.device, cell.runtime): cell for cell in record.cells if cell.weight_format == wanted}
