"""A tool of this repository, run as a program of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def run_tool(tool: Path, *words: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run it on a machine that has no other programs than those in `path`, which is its home as well."""
    return subprocess.run(
        [sys.executable, str(tool), *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": str(path), "HOME": str(path)},
    )
