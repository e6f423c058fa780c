"""`aipc models`: what has been converted on this machine; verify it, prepare it, remove it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import aipc
from aipc import cache
from aipc.cache import Entry
from aipc.cli import console
from aipc.errors import CheckpointError, UsageError

ACTIONS = ("list", "verify", "prepare", "remove")

# The only runtime that has something to prepare.
ONNXRUNTIME = "onnxruntime"

# The name for what devices have compiled from folders that are not in the cache.
COMPILED = "compiled"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The words after `aipc models`."""
    parser.add_argument(
        "action", nargs="?", choices=ACTIONS, default="list", help="what to do (default: list)"
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="one converted model, or all of one model")
    parser.add_argument("--json", action="store_true", help="list in JSON, sizes in bytes")
    parser.add_argument("--yes", action="store_true", help="remove without asking")


def run(args: argparse.Namespace) -> int:
    """Do what the words ask.

    raises   UsageError, ModelNotFoundError, CheckpointError if a model is damaged, StorageError
    """
    if args.action == "remove" and args.name == COMPILED:
        freed = cache.remove_compiled_elsewhere()
        sys.stderr.write(f"removed {_size(freed)} compiled from models that are not in the cache\n")
    elif args.action == "remove":
        _remove(args.name, sure=args.yes)
    elif args.action == "prepare":
        _prepare(args.name)
    elif args.action == "verify":
        _verify(cache.select(args.name) if args.name else cache.entries())
    else:
        _list(cache.select(args.name) if args.name else cache.entries(), as_json=args.json)
    return 0


def _list(entries: Sequence[Entry], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps([_as_object(entry) for entry in entries], indent=2) + "\n")
        return
    elsewhere = sum(map(cache.bytes_below, cache.compiled_elsewhere()))
    if elsewhere:
        sys.stderr.write(f"{_size(elsewhere)} compiled from other folders: aipc models remove {COMPILED}\n")
    if not entries:
        sys.stderr.write(f"no converted models yet in {cache.cache_dir()}\n")
        return
    rows = [("NAME", "RUNTIME", "PRECISION", "SIZE", "AGE", "SOURCE"), *map(_row, entries)]
    sys.stdout.writelines(f"{line}\n" for line in console.aligned(rows))


def _row(entry: Entry) -> tuple[str, ...]:
    compiled = f" + {_size(entry.compiled_bytes)} compiled" if entry.compiled_bytes else ""
    runtime, precision = _runtime_and_precision(entry)
    age = _age((datetime.now(UTC) - entry.created).total_seconds())
    source = entry.manifest.source.name if entry.manifest else "aipc.json is damaged"
    return entry.name, runtime, precision, _size(entry.bytes) + compiled, age, source


def _as_object(entry: Entry) -> dict[str, object]:
    runtime, precision = _runtime_and_precision(entry)
    manifest = entry.manifest
    return {
        "name": entry.name,
        "folder": str(entry.folder),
        "runtime": runtime,
        "precision": precision,
        "bytes": entry.bytes,
        "compiled_bytes": entry.compiled_bytes,
        "created": entry.created.isoformat(),
        "source": manifest.source.name if manifest else None,
        "revision": manifest.source.revision if manifest else None,
        "aipc_version": manifest.aipc_version if manifest else None,
    }


def _runtime_and_precision(entry: Entry) -> tuple[str, str]:
    if entry.manifest is None:  # both stand in the folder's name as well, runtime-precision-key
        runtime, _, rest = entry.folder.name.partition("-")
        return runtime, rest.rpartition("-")[0]
    return entry.manifest.runtime, cache.precision_word(entry.manifest.recipe)


def _verify(entries: Sequence[Entry]) -> None:
    damaged = []
    for entry in entries:
        try:
            problems = cache.verify(entry.folder)
        except CheckpointError as exc:
            problems = [exc.message]
        for line in problems or ["ok"]:
            sys.stdout.write(f"{entry.name}: {line}\n")
        if problems:
            damaged.append(entry.name)
    if damaged:
        raise CheckpointError(
            f"{len(damaged)} of {len(entries)} converted models are not as they were written",
            hint=f"aipc models remove {damaged[0]}: the next run converts it anew",
        )


def _prepare(name: str | None) -> None:
    """Pack the weights for this machine's CPU, so that every later start is faster."""
    if name is None:
        raise UsageError("prepare what?", hint="aipc models prepare NAME; aipc models lists the names")
    entry = next((entry for entry in cache.entries() if entry.name == name.strip("/")), None)
    source = name if entry is None else entry.folder
    with console.progress(f"preparing {name}") as progress:
        model = aipc.load(source, "CPU", ONNXRUNTIME, fast_load=True, progress=progress)
    with model:
        for sentence in model.notes or (f"{name} is prepared already",):
            console.note(sentence)


def _remove(name: str | None, *, sure: bool) -> None:
    if name is None:
        raise UsageError("remove what?", hint="aipc models remove NAME; aipc models lists the names")
    found = cache.select(name)
    total = _size(sum(entry.bytes + entry.compiled_bytes for entry in found))
    if not sure and not _confirmed(f"remove {', '.join(entry.name for entry in found)} ({total})? [y/N] "):
        sys.stderr.write("nothing was removed\n")
        return
    cache.remove(name)
    sys.stderr.write(f"removed {len(found)} converted {'model' if len(found) == 1 else 'models'}, {total}\n")


def _confirmed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on", hint="aipc models remove NAME --yes")
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def _size(count: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} B"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return "now"
