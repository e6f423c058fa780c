"""Write docs/cli.md from the command line's own help: python tools/make_cli_docs.py."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from unittest import mock

from aipc.cli import COMMANDS, help_text
from aipc.cli.parser import CommandParser

TARGET = Path(__file__).parents[1] / "docs" / "cli.md"

HEAD = """# The command line

Made from the commands' own help by `tools/make_cli_docs.py`; a test compares the two.

stdout holds the answer and nothing else. Progress, notes, figures and errors go to stderr.
An error is two lines there, `error:` and `hint:`, and an exit code.
"""

TAIL = """
## Exit codes

| code | meaning |
| --- | --- |
"""


def document() -> str:
    """The text of docs/cli.md."""
    parts = [HEAD, _section("aipc", help_text())]
    for name, (module, line) in COMMANDS.items():
        parser = CommandParser(name, line)
        importlib.import_module(module).add_arguments(parser)
        # Neither the width nor the colours of the terminal at hand.
        with mock.patch.dict(os.environ, {"COLUMNS": "80", "NO_COLOR": "1"}):
            parts.append(_section(f"aipc {name}", parser.format_help()))
    return "".join(parts) + TAIL + "".join(_exit_codes())


def _section(title: str, text: str) -> str:
    return f"\n## {title}\n\n```text\n{text.rstrip()}\n```\n"


def _exit_codes() -> list[str]:
    from aipc.cli import INTERRUPTED
    from aipc.errors import AipcError

    meanings = {0: "done", AipcError.exit_code: "a fault of aipc itself", INTERRUPTED: "stopped with Ctrl+C"}
    for kind in AipcError.__subclasses__():
        line = str(kind.__doc__).splitlines()[0].rstrip(".")
        meanings[kind.exit_code] = f"{line[0].lower()}{line[1:]}"
    return [f"| {code} | {meaning} |\n" for code, meaning in sorted(meanings.items())]


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8", newline="\n")
