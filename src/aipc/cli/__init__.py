"""The command line: find the command, run it, and turn whatever happens into an exit code.

`aipc --help` is answered by this module alone, which therefore imports nothing: not argparse, whose
start costs as much as the interpreter's, and no command.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing.TYPE_CHECKING without the import of typing
    from collections.abc import Sequence
    from types import FrameType
    from typing import TextIO

INTERRUPTED = 130

# name: (the module with add_arguments(parser) and run(args) -> exit code, one line of help)
COMMANDS = {
    "run": ("aipc.cli.run", "answer a prompt, or chat"),
    "convert": ("aipc.cli.convert", "convert a checkpoint once, for later runs or other programs"),
    "compile": ("aipc.cli.compile", "compile a model for an NPU before it gets there"),
    "serve": ("aipc.cli.serve", "answer OpenAI's and Ollama's clients, from models of this machine"),
    "bench": ("aipc.cli.bench", "measure every device and runtime here, and say which to take"),
    "plan": ("aipc.cli.plan", "say which device and runtime a model takes and why, or pin a choice"),
    "devices": ("aipc.cli.devices", "list the processors here, and the words that reach them"),
    "doctor": ("aipc.cli.doctor", "find what is wrong with this machine, and what mends it"),
    "verify": ("aipc.cli.verify", "what a converted folder lost against its original"),
    "top": ("aipc.cli.top", "show what NPU, GPUs and CPU are doing, live"),
    "models": ("aipc.cli.models", "list, verify, prepare and remove the models on this machine"),
}

OPTIONS = {
    "-h, --help": "show this, or with a command what the command takes",
    "--version": "show the version",
    "--verbose": "show the traceback of an error as well",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `aipc` with these words, by default those of the process, and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        _tolerate_every_character(stream)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_has_gone()
    except Exception as exc:  # noqa: BLE001 - the outermost frame: here every error becomes two lines
        from aipc.cli.console import report_error

        return report_error(exc, verbose="--verbose" in words)
    return code


def help_text() -> str:
    """What `aipc --help` shows."""
    width = max(map(len, [*COMMANDS, *OPTIONS]))
    commands = "\n".join(f"  {name:{width}}  {line}" for name, (_, line) in COMMANDS.items())
    options = "\n".join(f"  {name:{width}}  {line}" for name, line in OPTIONS.items())
    return (
        "usage: aipc COMMAND [options]\n\n"
        "Microsoft's Phi-3 family on the best processor of an AI PC: NPU, GPU or CPU.\n\n"
        f"commands:\n{commands}\n\noptions:\n{options}\n\n"
        'Try it offline: aipc run demo "Can you introduce yourself?"\n'
    )


def _dispatch(words: list[str]) -> int:
    for index, word in enumerate(words):
        if word in {"-h", "--help"}:
            sys.stdout.write(help_text())
            return 0
        if word == "--version":
            from aipc import __version__

            sys.stdout.write(f"aipc {__version__}\n")
            return 0
        if word != "--verbose":
            return _run_command(word, words[index + 1 :])
    sys.stderr.write(help_text())
    return 2


def _run_command(name: str, words: list[str]) -> int:
    import importlib

    from aipc.cli.parser import CommandParser, unknown_word

    if name not in COMMANDS:
        kind = "option" if name.startswith("-") else "command"
        raise unknown_word(
            kind, name, [*COMMANDS, "--help", "--version", "--verbose"], help_command="aipc --help"
        )
    _unwind_when_told_to_end()
    module_name, line = COMMANDS[name]
    command = importlib.import_module(module_name)
    parser = CommandParser(name, line)
    command.add_arguments(parser)
    try:
        args = parser.parse(words)
    except SystemExit as end:  # the parser has shown its help
        return int(end.code or 0)
    code: int = command.run(args)
    return code


def _tolerate_every_character(stream: TextIO | None) -> None:
    """A terminal keeps its encoding, a pipe or file is UTF-8; what does not fit becomes a question mark."""
    if stream is not None and hasattr(stream, "reconfigure"):
        stream.reconfigure(encoding=None if stream.isatty() else "utf-8", errors="replace")


def _unwind_when_told_to_end() -> None:
    """Let SIGTERM and SIGHUP, and Ctrl+Break of Windows, leave as Ctrl+C does: nothing half-made stays."""
    import signal
    import threading

    def unwind(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        return
    for name in ("SIGTERM", "SIGHUP", "SIGBREAK"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, unwind)


def _reader_has_gone() -> int:
    """End quietly, as `aipc ... | head -1` expects: what is still buffered goes nowhere."""
    import os

    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
    return 0
