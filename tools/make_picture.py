"""Draw what a terminal shows while real commands run, as docs/images/run.svg.

    python tools/make_picture.py

The commands run in a pseudo-terminal, so this needs Linux or macOS; what they print is drawn as it came.
"""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 96
OUT = Path(__file__).parents[1] / "docs" / "images" / "run.svg"
COMMANDS = (
    ["run", "demo", "Can you introduce yourself?"],
    ["run", "demo", "Why is my NPU better than the CPU for this?"],
    ["run", "demo", "hi", "--device", "NUP"],
    ["models"],
)


def main() -> None:
    """Run the commands one after another and draw them on one screen."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for words in COMMANDS:
        shown = " ".join(f'"{word}"' if " " in word else word for word in words)
        console.print(Text.assemble(("$ ", "bold green"), (f"aipc {shown}", "bold")))
        console.print(Text.from_ansi(screen_of(words)))
        console.print()
    OUT.parent.mkdir(parents=True, exist_ok=True)
    # rich would have the reader fetch its font; every machine has a monospaced one.
    picture = re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="aipc"), flags=re.DOTALL)
    OUT.write_text(picture.replace("Fira Code", "ui-monospace"), encoding="utf-8")


def screen_of(words: list[str]) -> str:
    """What is left on a terminal after `aipc` with these words."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": str(COLUMNS), "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-m", "aipc", *words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    output = b""
    while True:
        try:
            piece = os.read(ours, 65_536)
        except OSError:  # Linux's word for the end of a pseudo-terminal
            break
        if not piece:
            break
        output += piece
    process.wait()
    os.close(ours)
    text = output.decode("utf-8").replace("\r\n", "\n")
    # A progress display goes up a line and erases it when it is done.
    text = re.sub(r"\x1b\[\?25[hl]", "", text)
    text = re.sub(r"[^\n]*\n\r?\x1b\[1A\x1b\[2K", "", text)
    return "\n".join(line for line in text.split("\n") if line.strip())


if __name__ == "__main__":
    main()
