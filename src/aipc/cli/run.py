"""aipc run: one answer to a prompt, or a chat."""

from __future__ import annotations

import json
import os
import stat
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import aipc
from aipc.cli import INTERRUPTED, console
from aipc.cli.answer import collect, summary
from aipc.cli.watch import watched
from aipc.errors import UsageError
from aipc.types import Chunk, Message, Sampling

if TYPE_CHECKING:
    from aipc.model import Model

# Far more than any context holds: what is larger was not meant as a prompt.
MAX_PIPED_CHARACTERS = 16 * 2**20

_SAMPLING = ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed")


def add_arguments(parser: ArgumentParser) -> None:
    """The words of `aipc run`."""
    parser.usage = "aipc run MODEL [PROMPT] [options]"
    parser.epilog = (
        "Without PROMPT, the prompt is what is piped in; at a terminal, a chat begins. With both, PROMPT "
        "comes first. The answer goes to stdout, everything else to stderr."
    )
    parser.add_argument("model", metavar="MODEL", help="alias (demo, phi-3-mini, ...), hub id or folder")
    parser.add_argument("prompt", metavar="PROMPT", nargs="*", default=[], help="what to answer")
    parser.add_argument(
        "--device", default="auto", help="auto, NPU, GPU.1, CPU, igpu ...: see aipc devices (default: auto)"
    )
    parser.add_argument(
        "--runtime", help="what runs the model, such as openvino (default: by device and folder)"
    )
    parser.add_argument(
        "--weight-format", choices=["fp16", "int8", "int4"], help="of a checkpoint (default: int4)"
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument(
        "--fast-load",
        action="store_true",
        help="pack the weights for this CPU, once, so that they load faster (ONNX Runtime)",
    )
    parser.add_argument("--exact", action="store_true", help="compute in float32: slower, reproducible")
    parser.add_argument(
        "--context-length",
        type=int,
        metavar="N",
        help="most tokens of prompt and answer (default: what the model takes and memory holds)",
    )
    parser.add_argument(
        "--kv-cache", metavar="TYPE", help="numbers in the KV cache: u8, f16, f32 (default: by runtime)"
    )
    parser.add_argument("--system", metavar="TEXT", help="instructions that come before the conversation")
    parser.add_argument(
        "--raw", action="store_true", help="continue PROMPT as plain text, without a chat template"
    )
    parser.add_argument(
        "--json", action="store_true", help="show the answer, its tokens and figures as one object"
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="show how busy the device is and how fast the answer comes, live",
    )
    group = parser.add_argument_group("how the answer is made")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="most tokens of an answer")
    group.add_argument(
        "--temperature", type=float, metavar="T", help="0 takes the likeliest token (default: 0)"
    )
    group.add_argument("--top-p", type=float, metavar="P", help="choose among the likeliest that make up P")
    group.add_argument("--top-k", type=int, metavar="K", help="choose among the K likeliest")
    group.add_argument("--repetition-penalty", type=float, metavar="R", help="above 1, avoid what was said")
    group.add_argument("--seed", type=int, metavar="N", help="make a temperature above 0 repeatable")
    group.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; repeatable"
    )


def run(args: Namespace) -> int:
    """Answer, or chat, and return the exit code."""
    options = stream_options(args)
    prompt = read_prompt(args.prompt, sys.stdin)
    _refuse_contradictions(args, chatting=prompt is None)
    system = [Message("system", _as_text(args.system))] if args.system else []
    with open_model(args) as model, watched(model, live=args.watch) as stream:
        if prompt is None:
            from aipc.cli.chat import Chat

            return Chat(model, stream, system, options, verbose=args.verbose).run()
        asked = prompt if args.raw else [*system, Message("user", prompt)]
        return _answer(stream(asked, raw=args.raw, **options), as_json=args.json)


def stream_options(args: Namespace) -> dict[str, Any]:
    """The keywords for Model.stream that were given, checked before a model is loaded.

    raises   UsageError
    """
    sampling = {name: value for name in _SAMPLING if (value := getattr(args, name)) is not None}
    Sampling(**sampling)
    return {**sampling, "stop": tuple(map(_as_text, args.stop))}


@contextmanager
def open_model(args: Namespace) -> Iterator[Model]:
    """The model, loaded with progress on stderr; freed at the end."""
    with console.progress(f"loading {args.model}") as progress:
        model = aipc.load(
            args.model,
            device=args.device,
            runtime=args.runtime,
            exact=args.exact,
            weight_format=args.weight_format,
            revision=args.revision,
            context_length=args.context_length,
            kv_cache=args.kv_cache,
            fast_load=args.fast_load,
            progress=progress,
        )
    with model:
        for sentence in model.notes:
            console.note(sentence)
        yield model


def read_prompt(words: Sequence[str], stdin: Any) -> str | None:
    """The prompt from the command's words and what is piped in, or None where a chat shall begin.

    raises   UsageError if there is neither a word nor a person to ask
    """
    if not words and console.is_terminal(stdin):
        return None
    typed = _as_text(" ".join(words))
    piped = _read_piped(stdin) if not words or _is_fed(stdin) else ""
    prompt = "\n\n".join(part for part in (typed, piped) if part.strip())
    if not prompt:
        raise UsageError("the prompt is empty", hint='aipc run demo "What is an NPU?"')
    return prompt


def _refuse_contradictions(args: Namespace, *, chatting: bool) -> None:
    if args.raw and args.system:
        raise UsageError("--raw is plain text, with no place for --system", hint="leave one of them out")
    for name in ("raw", "json"):
        if chatting and getattr(args, name):
            raise UsageError(f"--{name} is not for a chat", hint="give a prompt behind the model")


def _answer(chunks: Iterator[Chunk], *, as_json: bool) -> int:
    if as_json:
        answer = collect(chunks, show=lambda text: None)
        console.write_answer(json.dumps(answer.as_json(), ensure_ascii=False) + "\n")
    else:
        answer = collect(chunks, show=console.write_answer)
    console.note(summary(answer))
    return INTERRUPTED if answer.cancelled else 0


def _is_fed(stdin: Any) -> bool:
    """Whether stdin is a pipe or a file: only then may a prompt that was typed have more to it."""
    try:
        mode = os.fstat(stdin.fileno()).st_mode
    except (AttributeError, OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)


def _read_piped(stdin: Any) -> str:
    if stdin is None or stdin.closed:
        return ""
    text: str = stdin.read(MAX_PIPED_CHARACTERS + 1)
    if len(text) > MAX_PIPED_CHARACTERS:
        raise UsageError(
            f"what is piped in is longer than {MAX_PIPED_CHARACTERS} characters: it is no prompt"
        )
    return text.removeprefix("\ufeff").rstrip("\r\n")


def _as_text(word: str) -> str:
    """A word of the command line, in which bytes that are no text stand as lone surrogates."""
    return word.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
