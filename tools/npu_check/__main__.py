"""Compiles converted folders with Intel's real NPU compiler, on a Linux machine that has no NPU.

    python tools/npu_check FOLDER... [--platform 4000]...
    python tools/npu_check --demo

The compiler comes with OpenVINO's package for Windows and runs under Wine; the first run installs and
downloads all that in a few minutes, and keeps it. The folder is cut up as OpenVINO GenAI's NPU pipeline
does it, for the lengths that aipc compile takes, and nothing may fall back to another device. Of a folder
with LongRoPE's two sets of factors those are compiled that prompt and answer may need.

Exit codes: 0 all compiled, 1 something was refused, by the compiler or by aipc run, 2 wrong words, 77 this
machine cannot run the check.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path

# The part that the checks share lies beside their folders.
sys.path.insert(0, str(Path(__file__).parents[1]))

import demo
from compiler import WHEELS, Compiler, Verdict

from aipc.compiled import ANSWER_TOKENS, PLATFORMS, SMALLEST_BUCKET, Build, builds
from aipc.errors import AipcError
from aipc.longrope import border_in
from aipc.phi3 import read_json_object
from aipc.preflight import MODEL_FILE, check_npu
from aipc.runtimes.openvino_errors import translated
from aipc.runtimes.openvino_factors import has_factors
from windows import NotHereError, say

# argparse itself ends with 2.
REFUSED, NOT_HERE = 1, 77


def main() -> int:
    """Check what the command line names, and return the exit code."""
    args = _arguments()
    try:
        compiler = Compiler(args.cache)
    except NotHereError as exc:
        print(f"not checked with the NPU's compiler: {exc}", file=sys.stderr)
        return NOT_HERE
    _remark_on_versions()
    if args.demo:
        return _check_demo(compiler, args)
    taken = [_taken(compiler, folder, args) for folder in args.folders]
    return 0 if all(taken) else REFUSED


def _arguments() -> argparse.Namespace:
    summary, _, more = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(
        "npu_check", description=summary, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", metavar="FOLDER", type=Path, nargs="*", help="a folder for OpenVINO")
    parser.add_argument(
        "--platform",
        action="append",
        metavar="P",
        help=f"{', '.join(f'{word} {name}' for word, name in PLATFORMS.items())} (default: 4000); repeatable",
    )
    parser.add_argument(
        "--demo", action="store_true", help="the demo model in four precisions, and what must be refused"
    )
    parser.add_argument("--prompt-tokens", type=int, default=SMALLEST_BUCKET, metavar="N")
    parser.add_argument("--answer-tokens", type=int, default=ANSWER_TOKENS, metavar="N")
    parser.add_argument("--limit", type=float, default=1800.0, metavar="S", help="seconds for each compile")
    parser.add_argument("--json", action="store_true", help="show each verdict as a line of JSON")
    parser.add_argument("--cache", type=Path, default=_default_cache(), help="default: %(default)s")
    args = parser.parse_args()
    args.platform = args.platform or ["4000"]
    if args.demo == bool(args.folders):
        parser.error("name folders, or --demo")
    for folder in args.folders:
        if not (folder / MODEL_FILE).is_file():
            parser.error(
                f"{folder} holds no {MODEL_FILE}: name a folder that aipc convert or optimum-cli made"
            )
    return args


def _taken(compiler: Compiler, folder: Path, args: argparse.Namespace) -> bool:
    """Whether the compiler takes a folder for each platform, and aipc run does."""
    verdicts = [
        _check(compiler, folder, build, args)
        for platform in args.platform
        for build in builds(platform, args.prompt_tokens, _border(folder))
    ]
    for hint in {_hint(verdict) for verdict in verdicts} - {""}:
        say(f"  what helps: {hint}")
    return _suits_aipc(folder) and all(verdict.state == "compiled" for verdict in verdicts)


def _hint(verdict: Verdict) -> str:
    """What to do about a refusal, where aipc knows that; else ""."""
    if verdict.state != "refused":
        return ""
    return translated(RuntimeError(verdict.words), verdict.folder, "NPU").hint


def _suits_aipc(folder: Path) -> bool:
    """Whether aipc run would ask the compiler at all; shows what it says."""
    try:
        for note in check_npu(folder):
            say(f"  aipc run --device NPU notes: {note}")
    except AipcError as error:
        say(f"  aipc run --device NPU refuses it: {error.message}")
        if error.hint:
            say(f"  what helps: {error.hint}")
        return False
    return True


def _border(folder: Path) -> int | None:
    """Where the folder's factors change, if it can be told which to take."""
    try:
        return border_in(read_json_object(folder / "config.json")) if has_factors(folder) else None
    except AipcError:
        # The compiler says what is wrong with it.
        return None


def _check(compiler: Compiler, folder: Path, build: Build, args: argparse.Namespace) -> Verdict:
    """Compile, and show what came of it."""
    build = dataclasses.replace(build, answer_tokens=args.answer_tokens)
    verdict = compiler.compile(folder.absolute(), build, limit_s=args.limit)
    print(json.dumps(dataclasses.asdict(verdict)) if args.json else _line(verdict), flush=True)
    return verdict


def _check_demo(compiler: Compiler, args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="npu-check-") as scratch:
        folders = list(demo.folders(Path(scratch)))
        verdicts = [
            _check(compiler, folder, build, args)
            for folder in folders
            for platform in demo.PLATFORMS
            for build in builds(platform, SMALLEST_BUCKET, None)
        ]
        wrong = [
            f"{verdict.folder} for {verdict.platform} is {verdict.state}"
            for verdict in verdicts
            if verdict.state != "compiled"
        ]
        for control in demo.controls(Path(scratch)):
            (build,) = builds(control.platform, SMALLEST_BUCKET, None)
            verdict = compiler.compile(control.folder, build, limit_s=demo.CONTROL_LIMIT_S)
            print(f"control    {_line(verdict)}", flush=True)
            wrong += [text for text in [control.wrong(verdict)] if text]
    for text in wrong:
        say(f"wrong: {text}")
    return REFUSED if wrong else 0


def _line(verdict: Verdict) -> str:
    """A verdict for people."""
    head = f"{verdict.state:11} {verdict.platform}  {verdict.folder}"
    if verdict.compile_s is not None and verdict.peak_bytes is not None and verdict.blob_bytes is not None:
        return (
            f"{head}  {verdict.compile_s:.1f} s, {verdict.peak_bytes / 1e6:.0f} MB of memory, "
            f"blob {verdict.blob_bytes / 1e6:.1f} MB"
        )
    parts = [
        verdict.words,
        f"node {verdict.node}" if verdict.node else "",
        f"pass {verdict.pass_name}" if verdict.pass_name else "",
    ]
    return f"{head}  {'; '.join(part for part in parts if part)}".rstrip()


def _remark_on_versions() -> None:
    """A folder may have been written by another OpenVINO than the one that compiles it here."""
    here = metadata.version("openvino")
    pinned = WHEELS.read_text(encoding="utf-8").partition("openvino==")[2].split()[0]
    if here != pinned:
        say(f"the compiler is that of OpenVINO {pinned}, and {here} is installed: see {WHEELS.name}")


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "aipc-windows"


if __name__ == "__main__":
    sys.exit(main())
