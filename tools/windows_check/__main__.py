"""Run aipc itself on Windows, as far as Linux can: with CPython for Windows, under Wine.

usage: python tools/windows_check [--short | --tests NAME ...] [--limit SECONDS] [--cache DIR]

It converts the demo model for both runtimes and compares the folders with those that Linux writes, asks both
runtimes a question, and runs tests of aipc, each file by itself. As root of a Debian it installs Wine and a C
compiler first. The exit code is 77 where this machine cannot run it.

A program that does nothing for a minute is ended: a failure, unless Wine had not come to its first line; then
it is started anew, and the check says so. One that failed where Wine names an internal error of its own runs
once more, and the check says that, too.

Wine is not Windows: what passes here has passed on Python's and the packages' own Windows code and on Wine's
idea of the system below them.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import left_out
from windows_python import Ran, WindowsPython

from windows import NotHereError, say, windows_path

ROOT = Path(__file__).parents[2]
CANNOT_RUN = 77
# Of one program. One that is stuck is ended much earlier; another may wait for a processor that others use.
_LIMIT_S = 1800
QUESTION = "Can you introduce yourself?"
# ERROR_INTERNAL_ERROR, seen once, of CreateProcess.
_WINES_OWN_ERROR = "[WinError 1359]"
# The last line of pytest where nothing failed.
_SUMMARY = re.compile(r"(no tests ran|\d+ (passed|skipped|deselected)\b.*) in [\d.]+s.*")

# Workers over pipes, no orphans, files that are replaced while they are open.
SHORT = ("test_on_windows", "test_windows_files", "test_engine_process")


def main() -> int:
    """Run all of it; 0 if nothing failed."""
    parser = argparse.ArgumentParser(prog="python tools/windows_check", description=__doc__.split("\n")[0])
    parser.add_argument("--short", action="store_true", help="of the tests only workers and files")
    parser.add_argument("--tests", nargs="+", metavar="NAME", help="only these files of tests")
    parser.add_argument(
        "--limit", type=float, default=_LIMIT_S, metavar="SECONDS", help="of each file of tests"
    )
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "aipc-windows-python")
    args = parser.parse_args()
    # What was started is ended on the way out, also where somebody ends the check.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    names = args.tests or (SHORT if args.short else _all_files())
    failed, started = 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="aipc-windows-") as scratch:
        try:
            python = WindowsPython(args.cache, source=ROOT / "src", models=Path(scratch) / "models")
        except NotHereError as exc:
            say(f"not checked on Windows: {exc}")
            return CANNOT_RUN
        for name, why in _said(names, everything=not (args.short or args.tests)):
            print(f"        left out  tests/{name}: {why}", flush=True)
        with python.up():
            demo = iter(()) if args.tests else _demo(python, Path(scratch))
            for what, words in chain(demo, _tests(python, names, args.limit)):
                wrong = words.startswith("!")
                took = f"{time.monotonic() - started:.0f} s"
                print(
                    f"{took:>6}  {'FAILED' if wrong else 'passed'}  {what}: {words.removeprefix('!')}",
                    flush=True,
                )
                failed += wrong
    return 1 if failed else 0


def _all_files() -> list[str]:
    """The names of those that are not left out."""
    return sorted({path.stem for path in ROOT.glob("tests/test_*.py")} - left_out.FILES.keys())


def _said(names: Sequence[str], *, everything: bool) -> Iterator[tuple[str, str]]:
    """What is left out of these files, and which files are where all are meant."""
    if everything:
        yield from ((f"{name}.py", why) for name, why in left_out.FILES.items())
    yield from ((test, why) for test, why in left_out.TESTS.items() if test.partition(".py")[0] in names)


def _demo(python: WindowsPython, scratch: Path) -> Iterator[tuple[str, str]]:
    """The demo model from conversion to answer: what was done, and what came of it."""
    theirs, ours = scratch / "windows", scratch / "linux"
    for word in ("openvino", "onnx"):
        convert = ["convert", "demo", "--to", word]
        wrong = _aipc(python, [*convert, windows_path(theirs / word)])
        _aipc_here([*convert, str(ours / word)])
        yield f"aipc convert demo --to {word}", wrong or _difference(theirs / word, ours / word)
        expected = _aipc_here(["run", str(ours / word), QUESTION]).strip()
        wrong = _aipc(python, ["run", windows_path(theirs / word), QUESTION], expected)
        yield f"aipc run, {word}", wrong or "answers as on Linux"
    yield "aipc devices", _aipc(python, ["devices"], "CPU ") or "the CPU"


def _aipc_here(words: Sequence[str]) -> str:
    command = [sys.executable, "-m", "aipc", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout


def _aipc(python: WindowsPython, words: Sequence[str], expected: str = "") -> str:
    """Run aipc there; "!" and what is wrong, or nothing if it did and its answer holds what was expected."""
    done = _run(python, ["-m", "aipc", *words], _LIMIT_S)
    if done.code != 0:
        return f"!{done.why or f'ended with {done.code}'}: {done.stderr[-1500:].strip()}"
    return "" if expected in done.stdout else f"!answered {done.stdout!r}, and not {expected!r}"


def _run(python: WindowsPython, words: Sequence[str], limit_s: float) -> Ran:
    ran = python.run(words, limit_s)
    if ran.anew:
        say(f"Wine did not begin a program and was started anew {ran.anew} times: {' '.join(words)}")
    if ran.code != 0 and _WINES_OWN_ERROR in ran.stdout + ran.stderr:
        say(f"Wine had an internal error of its own, so once more: {' '.join(words)}")
        ran = python.run(words, limit_s)
    return ran


def _difference(theirs: Path, ours: Path) -> str:
    names = {path.name for folder in (theirs, ours) for path in folder.iterdir()}
    other = [name for name in sorted(names) if not _same(theirs / name, ours / name)]
    if other:
        return f"!differ from those of Linux: {', '.join(other)}"
    return f"{len(names)} files, as on Linux"


def _same(one: Path, other: Path) -> bool:
    if not (one.is_file() and other.is_file()):
        return False
    if one.suffix == ".xml":
        # OpenVINO lists the edges of a graph in any order, and ends lines as the system does.
        return sorted(one.read_text("utf-8").splitlines()) == sorted(other.read_text("utf-8").splitlines())
    if one.name == "aipc.json":
        # It has the time, and the hashes of those descriptions.
        varying = re.compile(r'"(created|sha256|bytes)": .*')
        return len({varying.sub("", path.read_text("utf-8")) for path in (one, other)}) == 1
    return one.read_bytes() == other.read_bytes()


def _tests(python: WindowsPython, names: Sequence[str], limit_s: float) -> Iterator[tuple[str, str]]:
    """The tests, a process for each file."""
    options = ["-q", "-p", "no:cacheprovider", f"-c{windows_path(ROOT / 'pyproject.toml')}"]
    for name in names:
        skipped = [f"--deselect=tests/{test}" for test in left_out.TESTS if test.startswith(f"{name}.py")]
        file = windows_path(ROOT / "tests" / f"{name}.py")
        done = _run(python, ["-X", "faulthandler", "-m", "pytest", *options, *skipped, file], limit_s)
        last = done.why or (done.stdout.strip().splitlines() or ["nothing said"])[-1]
        passed = _passed(done.code, last)
        yield f"tests/{name}.py", last if passed else f"!{last}\n{(done.stdout + done.stderr)[-6000:]}"


def _passed(code: int | None, last: str) -> bool:
    """Whether pytest came to its end, and nothing failed."""
    if _SUMMARY.fullmatch(last) is None:
        return False
    # 5: every test of the file is for other systems. A crash ends with 5, too: the last byte of 0xC0000005.
    return code == 0 or (code == 5 and "passed" not in last)


if __name__ == "__main__":
    sys.exit(main())
