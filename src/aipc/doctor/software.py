"""Checks of the runtimes' packages and of the cache."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata

from aipc import cache, inventory
from aipc.errors import AipcError
from aipc.runtimes import packages
from aipc.runtimes.base import ONNXRUNTIME, RUNTIMES, RuntimeInfo
from aipc.types import Check

# The engine's module imports the runtime as it will be used, without its telemetry.
_IMPORT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); import {}_engine"
_IMPORT_S = 120.0


def runtime_checks() -> Iterator[Check]:
    """Whether each runtime is installed, alone, and can be imported; at least one must be."""
    installed = inventory.installed_runtimes()
    if not installed:
        titles = " nor ".join(info.title for info in RUNTIMES.values())
        yield Check("runtimes", "failed", f"neither {titles} is installed", 'pip install "aipc[openvino]"')
        return
    for info in RUNTIMES.values():
        if info in installed:
            yield _package_check(info)
        else:
            yield Check(info.title, "note", f'not installed; pip install "aipc[{info.extra}]" adds it')


def cache_checks() -> Iterator[Check]:
    """Whether converted models can be written, and are as they were written."""
    place = cache.cache_dir()
    try:
        if place.exists():
            cache.ensure_writable(place)
        entries = cache.entries()
    except AipcError as exc:
        yield Check("cache", "failed", exc.message, exc.hint)
        return
    damaged = 0
    for entry in entries:
        try:
            problems = cache.verify(entry.folder, contents=False)
        except AipcError as exc:
            problems = [exc.message]
        damaged += bool(problems)
        if problems:
            fix = f"aipc models remove {entry.name}: the next run converts it anew"
            yield Check("cache", "failed", f"{entry.name}: {problems[0]}", fix)
    if not damaged:
        count = f"{len(entries)} converted model{'' if len(entries) == 1 else 's'}"
        sizes = "; names and sizes are right (aipc models verify reads them whole)" if entries else ""
        yield Check("cache", "passed", f"{count} in {place}{sizes}")


def _package_check(info: RuntimeInfo) -> Check:
    try:
        name = packages.installed_flavour().genai if info is ONNXRUNTIME else info.distribution
        about = f"{name} {metadata.version(name)}"
    except AipcError as exc:
        return Check(info.title, "failed", exc.message, exc.hint)
    except metadata.PackageNotFoundError:
        about = "its modules, without the record of a package,"
    said = _import_error(info)
    if said:
        fix = f'pip install --force-reinstall "aipc[{info.extra}]"'
        return Check(info.title, "failed", f"{about} is installed, but cannot be imported: {said}", fix)
    return Check(info.title, "passed", f"{about} is installed")


def _import_error(info: RuntimeInfo) -> str:
    """What Python says when it imports a runtime, in a process of its own; "" if all is well."""
    path = json.dumps([part for part in sys.path if part])
    words = [sys.executable, "-P", "-c", _IMPORT.format(info.module), path]
    try:
        done = subprocess.run(words, capture_output=True, timeout=_IMPORT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)[:300]
    lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return (lines or [f"code {done.returncode}"])[-1][:300] if done.returncode else ""
