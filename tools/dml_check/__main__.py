"""Runs folders for DirectML with Microsoft's own provider, on a Linux machine without a GPU.

    python tools/dml_check FOLDER... [--operators]
    python tools/dml_check --demo
    python tools/dml_check --two-layers

ONNX Runtime's package for Windows runs under Wine, and Direct3D 12 on Mesa's software driver; the first run
installs, downloads and builds all that in a few minutes, and keeps it. It shows which nodes DirectML takes on
a device with float16, whether the graph can be captured, and whether it gives the CPU provider's tokens, in
float32 and in float16: the software driver keeps numbers in 16 bits and computes with 32.

Exit codes: 0 all is as it should be, 1 something is not, 2 wrong words, 77 this machine cannot run the check.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# The part that the checks share lies beside their folders.
sys.path.insert(0, str(Path(__file__).parents[1]))

import folders
import models
import numpy as np
from check import Verdict, Wish, check, lines
from controls import controls
from directml import DirectML, display

from windows import NotHereError, say

# argparse itself ends with 2.
WRONG, NOT_HERE = 1, 77
_PROMPT = "<|user|>\nCan you introduce yourself?<|end|>\n<|assistant|>\n"
_PROMPT_TOKENS = 16
_TOKENS = 64
# The software driver takes many seconds for a token of Phi-3's width, in the prompt and in the answer.
_TWO_LAYERS_PROMPT_TOKENS, _TWO_LAYERS_TOKENS = 4, 3


def main() -> int:
    """Check what the command line names, and return the exit code."""
    args = _arguments()
    # What was started is ended on the way out, also where a limit ends the check.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        with display() as name, tempfile.TemporaryDirectory(prefix="dml-check-") as scratch:
            directml = DirectML(args.cache, name)
            with directml.up():
                return _check(directml, args, Path(scratch))
    except NotHereError as exc:
        print(f"not checked with DirectML: {exc}", file=sys.stderr)
        return NOT_HERE


def _arguments() -> argparse.Namespace:
    summary, _, more = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(
        "dml_check", description=summary, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", metavar="FOLDER", type=Path, nargs="*", help="made with --target dml")
    parser.add_argument("--demo", action="store_true", help="the demo model, and what must be found wrong")
    parser.add_argument("--two-layers", action="store_true", help="two random layers of Phi-3-mini's shape")
    parser.add_argument("--operators", action="store_true", help="also each operator by itself")
    parser.add_argument(
        "--tokens",
        type=int,
        metavar="N",
        help=f"that are compared ({_TOKENS}; of two layers {_TWO_LAYERS_TOKENS})",
    )
    parser.add_argument("--json", action="store_true", help="show each verdict as a line of JSON")
    parser.add_argument("--cache", type=Path, default=_default_cache(), help="default: %(default)s")
    args = parser.parse_args()
    if not (args.demo or args.two_layers or args.folders):
        parser.error("name folders, --demo or --two-layers")
    if args.tokens is not None and args.tokens < 1:
        parser.error("--tokens must be at least 1")
    for folder in args.folders:
        for file in (folders.MODEL_FILE, folders.CONFIG_FILE):
            if not (folder / file).is_file():
                parser.error(
                    f"{folder} holds no {file}: name a folder of aipc convert --to onnx --target dml"
                )
    args.cache = args.cache.absolute()
    return args


def _check(directml: DirectML, args: argparse.Namespace, scratch: Path) -> int:
    wrong = []
    for folder, prompt_tokens, tokens in _folders(args, scratch):
        wish = Wish(args.tokens or tokens, args.operators)
        verdict = check(directml, folder, _prompt(folder)[:prompt_tokens], wish, scratch)
        _show(verdict, args.json)
        wrong += [f"{verdict.folder}: {text}" for text in verdict.wrong]
    if args.demo:
        for control in controls(directml, scratch):
            print(f"control  {control.name}: {control.found or 'nothing found'}", flush=True)
            wrong += [] if control.found else [f"{control.name} was not found wrong"]
    for text in wrong:
        say(f"wrong: {text}")
    return WRONG if wrong else 0


def _folders(args: argparse.Namespace, scratch: Path) -> Iterator[tuple[Path, int | None, int]]:
    """Every folder that is to be checked, and how many tokens of prompt and answer."""
    yield from ((folder.absolute(), None, _TOKENS) for folder in args.folders)
    if args.demo:
        yield from ((models.demo(name, scratch), None, _TOKENS) for name in models.PRECISIONS)
    if args.two_layers:
        yield models.two_layers(scratch), _TWO_LAYERS_PROMPT_TOKENS, _TWO_LAYERS_TOKENS


def _prompt(folder: Path) -> list[int]:
    """Token ids: a question, or where there is no tokenizer any ids."""
    if (folder / "tokenizer.json").is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return list(tokenizer.encode(_PROMPT, add_special_tokens=False).ids)
    vocab_size = folders.shape_of(folder).vocab_size
    return np.random.default_rng(0).integers(0, vocab_size, _PROMPT_TOKENS).tolist()


def _show(verdict: Verdict, as_json: bool) -> None:
    text = json.dumps(dataclasses.asdict(verdict)) if as_json else "\n".join(lines(verdict))
    print(text, flush=True)


def _default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "aipc-windows"


if __name__ == "__main__":
    sys.exit(main())
