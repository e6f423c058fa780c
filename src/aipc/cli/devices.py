"""aipc devices: every processor here, the words that reach it, and what the others lack."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict

import aipc
from aipc import ListedDevice
from aipc.cli import console

HEADER = ("DEVICE", "KIND", "NAME", "MEMORY", "DRIVER", "RUNTIMES")


def add_arguments(parser: ArgumentParser) -> None:
    """The words of `aipc devices`."""
    parser.add_argument("--json", action="store_true", help="list in JSON, sizes in bytes")


def run(args: Namespace) -> int:
    """List the devices."""
    found = aipc.devices()
    if args.json:
        console.write_answer(json.dumps([asdict(device) for device in found], indent=2) + "\n")
    else:
        console.write_answer("\n".join(text_lines(found)) + "\n")
    return 0


def text_lines(found: Sequence[ListedDevice]) -> list[str]:
    """A table, and below it what the devices lack that no runtime reaches."""
    lines = console.aligned([HEADER, *map(_row, found)])
    for device in found:
        if not device.reached_by:
            lines += ["", f"{device.name} ({device.kind}) is not reached:"]
            lines += [f"  {line}" for check in device.lacks for line in console.check_lines(check)]
    return lines


def _row(device: ListedDevice) -> tuple[str, ...]:
    return (
        ", ".join(device.selectors) or "-",
        device.kind,
        device.name,
        _memory(device),
        " ".join(filter(None, (device.kernel_driver, device.driver_version))) or "-",
        ", ".join(dict.fromkeys(reach.runtime for reach in device.reached_by)) or "-",
    )


def _memory(device: ListedDevice) -> str:
    if device.memory_bytes:
        return console.size(device.memory_bytes)
    return "shared" if device.shares_memory else "unknown"
