"""Two records side by side: before and after."""

from __future__ import annotations

from aipc.bench.report import UNKNOWN, milliseconds, number
from aipc.measurements.figures import Figures, StartFigures, figures, start_figures
from aipc.measurements.record import Record

HEADER = ("CELL", "PROMPT", "LOAD s", "", "TTFT ms", "", "TPOT ms", "", "PEAK GB", "")

_Key = tuple[str, int]


def table(before: Record, after: Record) -> list[tuple[str, ...]]:
    """A header, and a row for each cell and prompt length that both have: both figures, and the change."""
    old, new = _figures(before), _figures(after)
    rows: list[tuple[str, ...]] = [HEADER]
    for name, length in old:
        if (name, length) in new:
            rows.append((name, str(length), *_row(old[name, length], new[name, length])))
    return rows


def remarks(before: Record, after: Record) -> list[str]:
    """What else differs: the machine, the versions, what was asked, and what only one has."""
    found = []
    if before.model != after.model:
        found.append(f"model: {before.model} → {after.model}")
    for what, old, new in (
        ("machine", before.machine, after.machine),
        ("version", before.versions, after.versions),
    ):
        found += [
            f"{what}: {key} {old.get(key, UNKNOWN)} → {new.get(key, UNKNOWN)}"
            for key in sorted({*old, *new})
            if old.get(key) != new.get(key)
        ]
    if before.on_mains != after.on_mains:
        words = {True: "mains", False: "battery", None: "unknown"}
        found.append(f"power: {words[before.on_mains]} → {words[after.on_mains]}")
    if before.options != after.options:
        found.append(f"asked: {before.options} → {after.options}")
    drivers = {cell.name: cell.driver for cell in before.cells}
    found += [
        f"driver of {cell.name}: {drivers[cell.name]} → {cell.driver}"
        for cell in after.cells
        if cell.name in drivers and drivers[cell.name] != cell.driver
    ]
    old_keys, new_keys = _figures(before), _figures(after)
    found += [
        f"only before: {name}, prompt of {length}"
        for name, length in old_keys
        if (name, length) not in new_keys
    ]
    found += [
        f"only after: {name}, prompt of {length}"
        for name, length in new_keys
        if (name, length) not in old_keys
    ]
    return found


def _figures(record: Record) -> dict[_Key, tuple[StartFigures, Figures]]:
    return {
        (cell.name, own.prompt_tokens): (start_figures(cell), own)
        for cell in record.cells
        for own in figures(record, cell)
        if own.requests
    }


def _row(old: tuple[StartFigures, Figures], new: tuple[StartFigures, Figures]) -> tuple[str, ...]:
    (old_start, old_own), (new_start, new_own) = old, new
    return (
        f"{number(old_start.load_s)} → {number(new_start.load_s)}",
        _change(old_start.load_s, new_start.load_s),
        f"{milliseconds(old_own.ttft_s)} → {milliseconds(new_own.ttft_s)}",
        _change(old_own.ttft_s, new_own.ttft_s),
        f"{milliseconds(old_own.tpot_s)} → {milliseconds(new_own.tpot_s)}",
        _change(old_own.tpot_s, new_own.tpot_s),
        f"{number(old_start.peak_bytes, 2, 1e-9)} → {number(new_start.peak_bytes, 2, 1e-9)}",
        _change(old_start.peak_bytes, new_start.peak_bytes),
    )


def _change(old: float | None, new: float | None) -> str:
    return f"{100 * (new / old - 1):+.0f} %" if old and new is not None else UNKNOWN
