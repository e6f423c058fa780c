"""aipc top: what NPU, GPUs and CPU are doing, live."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

from aipc.cli import console
from aipc.errors import RuntimeFailedError, UsageError

if TYPE_CHECKING:
    from aipc.cli.console import Line
    from aipc.cli.device_view import Glyphs
    from aipc.monitor import Monitor, Sample

# A character of the history each: more than any terminal is wide.
_KEPT_SAMPLES = 512
# How soon a new size of the terminal or a new sample is seen.
_LOOK_AGAIN_S = 0.1
_HEAD_LINES = 2


def add_arguments(parser: ArgumentParser) -> None:
    """The words of `aipc top`."""
    parser.epilog = "q or Ctrl+C leaves."
    parser.add_argument(
        "--interval", type=float, default=1.0, metavar="S", help="seconds between two samples (default: 1)"
    )
    parser.add_argument(
        "--record", metavar="FILE", help="write each sample to FILE as well, a line of JSON each"
    )
    parser.add_argument("--once", action="store_true", help="show one sample, which spans S, as a table")
    parser.add_argument("--json", action="store_true", help="with --once: show it as one object")


def run(args: Namespace) -> int:
    """Show the devices until the person leaves, or once."""
    from aipc.monitor import Monitor

    if args.json and not args.once:
        raise UsageError("--json shows one sample", hint="aipc top --once --json; --record writes them all")
    live = not args.once and console.can_redraw(sys.stdout)
    if not (live or args.once or args.record):
        raise UsageError(
            "the live view needs a terminal",
            hint="aipc top --once shows one sample; --record FILE writes all",
        )
    with Monitor(args.interval, history=_KEPT_SAMPLES, record=args.record) as monitor:
        if args.once:
            _show_once(monitor, as_json=args.json)
        else:
            # To leave with Ctrl+C is no failure.
            with suppress(KeyboardInterrupt):
                _show_live(monitor, args) if live else _record(monitor, args.record)
    return 0


def _show_once(monitor: Monitor, *, as_json: bool) -> None:
    from aipc.cli.device_view import glyphs_for, table_lines

    # The first sample spans the tenth of a second after the start.
    sample = next(islice(monitor.follow(), 1, None), None)
    if sample is None:
        raise RuntimeFailedError(monitor.failure)
    if as_json:
        console.write_answer(json.dumps(sample.as_json(), indent=2) + "\n")
    else:
        console.write_answer("\n".join(table_lines(sample, glyphs_for(sys.stdout))) + "\n")


def _record(monitor: Monitor, path: str) -> None:
    """Without a terminal: only write."""
    console.note(f"recording to {path} until Ctrl+C")
    for _ in monitor.follow():
        if monitor.failure:
            break
    raise RuntimeFailedError(monitor.failure)


def _show_live(monitor: Monitor, args: Namespace) -> None:
    from aipc.cli.device_view import glyphs_for
    from aipc.cli.keyboard import single_keys

    keys = "q leaves" if console.is_terminal(sys.stdin) else "Ctrl+C leaves"
    words = [f"every {args.interval:g} s", f"recording to {args.record}" if args.record else "", keys]
    glyphs = glyphs_for(sys.stdout)
    title = glyphs.between.join(word for word in words if word)
    with single_keys() as wait_for_key, console.full_screen() as screen:
        shown = None
        while True:
            samples, size = monitor.samples, screen.size
            # Drawn only when there is something new.
            now = samples[-1].number if samples else 0, size, monitor.failure
            if now != shown:
                screen.show(_page(samples, title, monitor.failure, size, glyphs))
                shown = now
            if wait_for_key(_LOOK_AGAIN_S) in {"q", "Q"}:
                return


def _page(
    samples: list[Sample], title: str, failure: str, size: tuple[int, int], glyphs: Glyphs
) -> list[Line]:
    from aipc.cli.device_view import live_lines

    head: list[Line] = [[("aipc top", "bold"), (f"  {title}", "dim")], [(failure, "bold red")]]
    if not samples:
        return [*head, [("waiting for the first sample", "dim")]]
    width, height = size
    return [*head, *live_lines(samples, width, height - _HEAD_LINES, glyphs)]
