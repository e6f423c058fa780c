"""What the devices do, as lines for a terminal of any size."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO, get_args

from aipc.cli import console
from aipc.cli.console import Line
from aipc.monitor import DeviceSample, Sample
from aipc.types import DeviceKind

HEADER = ("DEVICE", "NAME", "BUSY", "MEMORY", "FREQUENCY", "POWER")

# What is shown of a device, and its name for people.
_SHOWN = {
    "utilisation": "utilisation",
    "memory_used_bytes": "memory",
    "frequency_mhz": "frequency",
    "power_w": "power",
}
_INDENT = "  "
_PERCENT_WIDTH = len("100 %")


@dataclass(frozen=True, slots=True)
class Glyphs:
    """The characters that figures are drawn with.

    levels   of a history, from 0 to 1
    """

    levels: str
    full: str
    empty: str
    missing: str
    between: str


BLOCKS = Glyphs("▁▂▃▄▅▆▇█", "█", "░", "–", " · ")
ASCII = Glyphs("_.:-=+*#", "#", ".", "-", ", ")


def glyphs_for(stream: TextIO) -> Glyphs:
    """Those that the terminal or file takes, as far as is known."""
    return BLOCKS if (stream.encoding or "").lower().startswith("utf") else ASCII


def live_lines(samples: Sequence[Sample], width: int, height: int, glyphs: Glyphs) -> list[Line]:
    """The devices of the latest sample with their history, and below them why a figure is missing.

    Each has three lines, or one where they would not fit.
    """
    devices = in_order(samples[-1].devices)
    blocks = [_block(device, _history(samples, device), width, glyphs) for device in devices]
    lines = [line for block in blocks for line in [*block, []]]
    if len(lines) > height:
        kind_width = max(len(device.kind) for device in devices)
        lines = [
            [(f"{device.kind:{kind_width}} ", "bold"), *_gauge(device, _history(samples, device), 16, glyphs)]
            for device in devices
        ]
        if len(lines) > height:
            left_out = len(lines) - height + 1
            return [*lines[: height - 1], [(f"{left_out} more: aipc top --once shows all", "dim")]]
        lines.append([])
    notes = [piece for note in missing_notes(devices) for piece in textwrap.wrap(note, width)]
    if len(notes) > height - len(lines):
        notes = [*notes[: max(height - len(lines) - 1, 0)], "aipc top --once shows why figures are missing"]
    return [*lines, *([(note, "dim")] for note in notes)][:height]


def table_lines(sample: Sample, glyphs: Glyphs) -> list[str]:
    """A table of the devices, and below it why a figure is missing."""
    devices = in_order(sample.devices)
    rows = [
        (
            device.kind,
            device.name,
            percent(device.utilisation, glyphs),
            memory(device) or glyphs.missing,
            _frequency(device) or glyphs.missing,
            _power(device) or glyphs.missing,
        )
        for device in devices
    ]
    notes = missing_notes(devices)
    return [*console.aligned([HEADER, *rows]), *([""] if notes else []), *notes]


def in_order(devices: Iterable[DeviceSample]) -> list[DeviceSample]:
    """NPUs and GPUs first, the CPU last."""
    kinds = get_args(DeviceKind)
    return sorted(devices, key=lambda device: kinds.index(device.kind))


def missing_notes(devices: Iterable[DeviceSample]) -> list[str]:
    """For each reason why a figure of a device is missing: a sentence with what to do about it."""
    notes = []
    for device in devices:
        names: dict[str, list[str]] = {}
        for counter, name in _SHOWN.items():
            why = device.not_readable.get(counter)
            if why is not None:
                remedy = f" ({why.remedy})" if why.remedy else ""
                names.setdefault(f"{why.reason}{remedy}", []).append(name)
        notes += [f"{device.kind}, {' and '.join(those)}: {why}" for why, those in names.items()]
        if device.note:
            notes.append(f"{device.kind}: {device.note}")
    return list(dict.fromkeys(notes))


def history_of(values: Sequence[float | None], width: int, glyphs: Glyphs) -> str:
    """The latest utilisations, a character each, the newest at the right; a gap where one is unknown."""
    last = len(glyphs.levels) - 1
    drawn = "".join(
        " " if value is None else glyphs.levels[min(int(value * len(glyphs.levels)), last)]
        for value in values[max(len(values) - width, 0) :]
    )
    return drawn.rjust(width)


def percent(share: float | None, glyphs: Glyphs) -> str:
    """A share for people: "73 %"."""
    return glyphs.missing if share is None else f"{100 * share:.0f} %"


def memory(device: DeviceSample) -> str:
    """For people: "2.1 of 16.0 GB"; "" where it is not known."""
    used, total = device.memory_used_bytes, device.memory_total_bytes
    if used is None:
        return ""
    return console.size(used) if total is None else f"{used / 1e9:.1f} of {total / 1e9:.1f} GB"


def _block(device: DeviceSample, history: Sequence[float | None], width: int, glyphs: Glyphs) -> list[Line]:
    parts = [
        f"memory {memory(device) or glyphs.missing}",
        _frequency(device) or f"frequency {glyphs.missing}",
        _power(device) or f"power {glyphs.missing}",
    ]
    text = glyphs.between.join(parts)
    while len(_INDENT + text) > width and len(parts) > 1:
        parts.pop()
        text = glyphs.between.join(parts)
    return [
        [(device.kind, "bold"), (f"  {device.name}", "")],
        [(_INDENT, ""), *_bar(device, history, width - len(_INDENT), glyphs)],
        [(_INDENT + text, "")],
    ]


def _bar(device: DeviceSample, history: Sequence[float | None], width: int, glyphs: Glyphs) -> Line:
    """Utilisation as figure, bar and history; the bar takes a third of the room."""
    room = max(width - _PERCENT_WIDTH - 2, 2)
    bar_width = room // 3
    full = round((device.utilisation or 0.0) * bar_width)
    return [
        (f"{percent(device.utilisation, glyphs):>{_PERCENT_WIDTH}} ", "bold"),
        (glyphs.full * full, "green"),
        (glyphs.empty * (bar_width - full) if device.utilisation is not None else " " * bar_width, "dim"),
        (" " + history_of(history, room - bar_width, glyphs), "cyan"),
    ]


def _gauge(device: DeviceSample, history: Sequence[float | None], history_width: int, glyphs: Glyphs) -> Line:
    """All of a device on one line."""
    figures = [memory(device), _frequency(device), _power(device)]
    return [
        (f"{percent(device.utilisation, glyphs):>{_PERCENT_WIDTH}} ", "bold"),
        (history_of(history, history_width, glyphs), "cyan"),
        (f" {glyphs.between.join([*(figure or glyphs.missing for figure in figures), device.name])}", ""),
    ]


def _history(samples: Sequence[Sample], device: DeviceSample) -> list[float | None]:
    return [
        next((each.utilisation for each in sample.devices if each.id == device.id), None)
        for sample in samples
    ]


def _frequency(device: DeviceSample) -> str:
    return "" if device.frequency_mhz is None else f"{device.frequency_mhz:.0f} MHz"


def _power(device: DeviceSample) -> str:
    return "" if device.power_w is None else f"{device.power_w:.1f} W"
