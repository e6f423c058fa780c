"""A record as a picture: what a token takes and when the first one comes, a bar for each cell.

One SVG for light and dark; HTML around it, with the figures as a table; PNG by resvg, always light.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from aipc.bench import report
from aipc.bench.verdict import verdict
from aipc.errors import StorageError, UsageError, require
from aipc.measurements.figures import figures
from aipc.measurements.record import CellRecord, Failure, Record

SUFFIXES = (".svg", ".html", ".png")

_WIDTH, _MARGIN = 960, 28
_NAMES_WIDTH, _GAP = 232, 28
_BARS_WIDTH = (_WIDTH - 2 * _MARGIN - _NAMES_WIDTH - _GAP) // 2
# Room to the right of the longest bar, for its number.
_NUMBER_WIDTH = 78
_ROW, _BAR, _HEAD, _BLOCK_HEAD = 26, 16, 104, 36

_STYLE = """
svg { color-scheme: light dark }
text { font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328; font-size: 13px }
.page { fill: #ffffff }
.title { font-size: 20px; font-weight: 600 }
.quiet { fill: #59636e }
.head { font-weight: 600 }
.best { font-weight: 700 }
.line { stroke: #d1d9e0 }
.NPU { fill: #8250df } .dgpu { fill: #1a7f37 } .igpu { fill: #0b7285 } .CPU { fill: #2f6fd0 }
@media (prefers-color-scheme: dark) {
text { fill: #f0f6fc }
.page { fill: #0d1117 }
.quiet { fill: #9198a1 }
.line { stroke: #3d444d }
.NPU { fill: #ab7df8 } .dgpu { fill: #3fb950 } .igpu { fill: #22b8cf } .CPU { fill: #58a6ff }
}
"""
_CLASSES = {"NPU": "NPU", "discrete GPU": "dgpu", "integrated GPU": "igpu", "CPU": "CPU", None: "CPU"}


def check(path: Path) -> None:
    """Refuse a picture that could not be drawn, before anything is measured for it.

    raises   UsageError for another kind of file; MissingExtraError
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"{path.name} is no kind of chart that aipc draws; possible: {', '.join(SUFFIXES)}",
            hint="--chart latency.svg",
        )
    if path.suffix.lower() == ".png":
        require("resvg_py", "chart")


def write(record: Record, path: Path) -> None:
    """Draw a record, as the file's name asks for.

    raises   as `check`; StorageError
    """
    check(path)
    kind = path.suffix.lower()
    if kind == ".png":
        # It knows no dark mode: the light colours come first.
        content = require("resvg_py", "chart").svg_to_bytes(svg_string=svg(record), zoom=2)
    else:
        content = (svg(record) if kind == ".svg" else html(record)).encode("utf-8")
    try:
        path.write_bytes(content)
    except OSError as exc:
        raise StorageError(f"{path} cannot be written: {exc.strerror or exc}") from exc


def svg(record: Record) -> str:
    """The picture: a block for each prompt length, in it a row for each cell."""
    top = _HEAD
    parts: list[str] = []
    for length in record.options.prompt_tokens:
        rows = _rows(record, length)
        if rows:
            parts += _block(length, rows, top)
            top += _BLOCK_HEAD + len(rows) * _ROW + 14
    for cell in record.cells:
        for failure in cell.failures:
            parts.append(_text(_MARGIN, top + 18, _failed(cell, failure), "quiet"))
            top += _ROW
    height = top + 12
    head = [
        _text(_MARGIN, 40, f"{_title(record.model)}: latency by device, runtime and weights", "title"),
        _text(_MARGIN, 62, report.conditions(record), "quiet"),
        _text(_column(0), 92, "Time per output token, ms", "head"),
        _text(_column(1), 92, "Time to first token, ms", "head"),
        _text(_MARGIN, 92, "shorter is better", "quiet"),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}" role="img">'
        f"<title>{escape(_title(record.model))}: latency</title><style>{_STYLE}</style>"
        f'<rect class="page" width="{_WIDTH}" height="{height}"/>{"".join([*head, *parts])}</svg>\n'
    )


def html(record: Record) -> str:
    """A page with the picture, the verdict and every figure."""
    header, *rows = report.table(record)
    body = "".join(_table_row("td", row) for row in rows)
    remarks = "".join(f"<li>{escape(remark)}</li>" for remark in report.remarks(record))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(_title(record.model))}: latency</title><style>"
        ":root { color-scheme: light dark } body { font: 14px/1.5 system-ui, sans-serif; max-width: 1300px; "
        "margin: 24px auto; padding: 0 16px } svg { max-width: 100%; height: auto } table { border-collapse: "
        "collapse } td, th { padding: 3px 10px; text-align: right; white-space: nowrap } td:nth-child(-n+3), "
        "th:nth-child(-n+3) { text-align: left } div { overflow-x: auto }"
        f"</style></head><body>{svg(record)}<p>{escape(verdict(record))}</p>"
        f"<div><table>{_table_row('th', header)}{body}</table></div><ul>{remarks}</ul></body></html>\n"
    )


@dataclass(frozen=True, slots=True)
class _Row:
    """A cell's name, the class of its bars, and for each column its seconds."""

    name: str
    kind: str
    values: tuple[float | None, float | None]


def _rows(record: Record, length: int) -> list[_Row]:
    return [
        _Row(cell.name, _CLASSES[cell.kind], (own.tpot_s, own.ttft_s))
        for cell in record.cells
        for own in figures(record, cell)
        if own.prompt_tokens == length and own.requests
    ]


def _block(length: int, rows: Sequence[_Row], top: int) -> Iterator[str]:
    """The bars of one prompt length; they compare with each other, not with other blocks."""
    yield f'<line class="line" x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}" y1="{top}" y2="{top}"/>'
    yield _text(_MARGIN, top + 24, f"Prompt of {length} tokens", "head")
    for index, row in enumerate(rows):
        y = top + _BLOCK_HEAD + index * _ROW
        yield _text(_MARGIN, y + 13, row.name)
        for column, value in enumerate(row.values):
            known = [found for other in rows if (found := other.values[column]) is not None]
            if value is not None:
                width = max(2.0, value / max(known) * (_BARS_WIDTH - _NUMBER_WIDTH))
                best = "best" if value == min(known) and len(known) > 1 else ""
                yield (
                    f'<rect class="{row.kind}" x="{_column(column)}" y="{y}" width="{width:.1f}" '
                    f'height="{_BAR}" rx="3"/>'
                )
                yield _text(_column(column) + round(width) + 8, y + 13, report.milliseconds(value), best)


def _title(model: str) -> str:
    """A hub id or an alias as it stands, a folder by its name: a picture is shown to others."""
    path = Path(model)
    return path.name if path.is_absolute() or len(path.parts) > 2 else model


def _column(number: int) -> int:
    return _MARGIN + _NAMES_WIDTH + number * (_BARS_WIDTH + _GAP)


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(text)}</text>'


def _table_row(tag: str, cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(cell)}</{tag}>' for cell in cells)}</tr>"


def _failed(cell: CellRecord, failure: Failure) -> str:
    length = "" if failure.prompt_tokens is None else f", prompt of {failure.prompt_tokens}"
    text = f"{cell.name}{length}: {failure.message}"
    return text if len(text) <= 120 else f"{text[:119]}…"
