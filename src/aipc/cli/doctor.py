"""aipc doctor: what is wrong with this machine, and what mends it."""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from dataclasses import asdict

from aipc.cli import console


def add_arguments(parser: ArgumentParser) -> None:
    """The words of `aipc doctor`."""
    parser.epilog = "The exit code is 1 where a check has failed."
    parser.add_argument("model", metavar="MODEL", nargs="?", help="whether this model fits, too")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="the checks in JSON")
    form.add_argument("--report", action="store_true", help="a text for an issue, without names and paths")


def run(args: Namespace) -> int:
    """Make the checks and show them; 1 if one has failed."""
    from aipc import doctor

    checks = doctor.checkup(args.model)
    lines = [line for check in checks for line in console.check_lines(check)]
    if args.json:
        console.write_answer(json.dumps([asdict(check) for check in checks], indent=2) + "\n")
    elif args.report:
        console.write_answer(doctor.anonymous("\n".join([*doctor.header(), "", *lines])) + "\n")
    else:
        console.write_answer("\n".join(lines) + "\n")
    failed = sum(check.state == "failed" for check in checks)
    if failed and not args.json:
        console.note(f"{failed} of {len(checks)} checks failed")
    return 1 if failed else 0
