"""A record for people: a table of figures, and below it what has none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from aipc.measurements.figures import Figures, StartFigures, figures, start_figures
from aipc.measurements.record import CellRecord, Record

UNKNOWN = "-"


def number(value: float | None, digits: int = 2, factor: float = 1.0) -> str:
    """A figure for a table."""
    return UNKNOWN if value is None else f"{value * factor:.{digits}f}"


def milliseconds(seconds: float | None) -> str:
    """With as many digits as people compare."""
    if seconds is None:
        return UNKNOWN
    value = 1000 * seconds
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


# Header, and the cell of one row.
_Column = tuple[str, Callable[[CellRecord, StartFigures, Figures], str]]
_COLUMNS: tuple[_Column, ...] = (
    ("DEVICE", lambda cell, start, own: cell.device),
    ("RUNTIME", lambda cell, start, own: cell.runtime),
    ("WEIGHTS", lambda cell, start, own: cell.weight_format),
    ("PROMPT", lambda cell, start, own: str(own.prompt_tokens)),
    ("LOAD s", lambda cell, start, own: number(start.load_s)),
    ("COMPILE s", lambda cell, start, own: number(start.compile_s)),
    ("FIRST ms", lambda cell, start, own: milliseconds(start.first_inference_s)),
    ("TTFT ms", lambda cell, start, own: milliseconds(own.ttft_s)),
    ("PREFILL t/s", lambda cell, start, own: number(own.prefill_tokens_per_s, 1)),
    ("TPOT ms", lambda cell, start, own: milliseconds(own.tpot_s)),
    ("p95 ms", lambda cell, start, own: milliseconds(own.tpot_p95_s)),
    ("DECODE t/s", lambda cell, start, own: number(own.decode_tokens_per_s, 1)),
    ("OF CEILING", lambda cell, start, own: number(own.ceiling_share, 2)),
    ("PEAK GB", lambda cell, start, own: number(start.peak_bytes, 2, 1e-9)),
    ("DEVICE GB", lambda cell, start, own: number(start.device_peak_bytes, 2, 1e-9)),
    ("BUSY", lambda cell, start, own: number(own.mean_utilisation)),
    ("J/TOKEN", lambda cell, start, own: number(own.energy_j_per_token)),
)
_TOGETHER: _Column = ("ALL t/s", lambda cell, start, own: number(own.tokens_per_s, 1))


def table(record: Record) -> list[tuple[str, ...]]:
    """A header, and a row for each cell and prompt length; a column that nothing is known of is left out."""
    columns = (*_COLUMNS, _TOGETHER) if record.options.concurrency > 1 else _COLUMNS
    rows = [
        tuple(show(cell, start_figures(cell), own) for _, show in columns)
        for cell in record.cells
        for own in figures(record, cell)
        if own.requests
    ]
    known = [index for index in range(len(columns)) if any(row[index] != UNKNOWN for row in rows)]
    return [tuple(line[index] for index in known) for line in (tuple(name for name, _ in columns), *rows)]


def remarks(record: Record) -> list[str]:
    """What has no figures and why, a sentence or two each."""
    found = []
    for cell in record.cells:
        for failure in cell.failures:
            length = f", prompt of {failure.prompt_tokens}" if failure.prompt_tokens is not None else ""
            hint = f" ({failure.hint})" if failure.hint else ""
            found.append(f"{cell.name}{length}: {failure.message}{hint}")
        for own in figures(record, cell):
            if own.stopped_early:
                found.append(
                    f"{cell.name}, prompt of {own.prompt_tokens}: {own.stopped_early} answers stopped early "
                    "and are left out"
                )
    if record.interrupted:
        found.append("stopped before its end: the medians are over fewer rounds than asked for")
    return found


def conditions(record: Record) -> str:
    """One line: the machine, and what the figures stand on."""
    options = record.options
    parts: Sequence[str] = (
        str(record.machine.get("cpu")),
        f"memory read at {record.bandwidth_bytes_per_s / 1e9:.1f} GB/s",
        {True: "on mains", False: "on battery", None: ""}[record.on_mains],
        f"{options.new_tokens} new tokens",
        f"medians of {options.rounds} rounds" if options.rounds > 1 else "1 round",
        f"{options.concurrency} streams at once" if options.concurrency > 1 else "",
    )
    return " · ".join(part for part in parts if part)
