"""A short run of benchmarks/fuzz_inputs.py: spoiled files are refused in good order, or read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).resolve().parents[1] / "benchmarks" / "fuzz_inputs.py"


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FUZZ), *arguments],
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=300,
    )


def test_spoiled_files_end_in_errors_of_ours() -> None:
    done = fuzz("--cases", "300", "--seed", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300 cases" in done.stdout
    assert " 0 failed" in done.stdout


def test_a_case_that_takes_too_long_is_reported() -> None:
    done = fuzz("--cases", "2", "--workers", "1", "--limit-s", "0.001")
    assert done.returncode == 1
    assert "no answer in" in done.stdout
