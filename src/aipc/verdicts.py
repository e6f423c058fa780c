"""What `aipc verify` found of a model on a device, kept for whoever runs it there later."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from aipc import cache
from aipc.errors import CheckpointError, StorageError
from aipc.phi3 import read_json_object
from aipc.runtimes.base import Device
from aipc.windows_files import move

Verdict = Literal["good", "suspicious", "broken"]


def keep(record: Mapping[str, object], folder: Path, device: Device, runtime_version: str) -> Path:
    """Write what was found, in the place of what was found before.

    runtime_version   with the runtime's name: another one may compute otherwise
    raises            StorageError
    """
    path = _path(folder, device, runtime_version)
    cache.ensure_writable(path.parent)
    partial = path.with_name(f"{cache.PARTIAL_PREFIX}{path.name}")
    try:
        partial.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        move(partial, path)
    except OSError as exc:
        raise StorageError(f"{path} cannot be written: {exc.strerror or exc}") from exc
    return path


def warning(folder: Path, device: Device, runtime_version: str) -> str | None:
    """A sentence for people, where the model was found to be less than good on this very device."""
    path = _path(folder, device, runtime_version)
    if not path.is_file():
        return None
    try:
        record = read_json_object(path)
    except CheckpointError:
        return None
    verdict, reasons = record.get("verdict"), record.get("reasons")
    if verdict not in {"suspicious", "broken"} or not isinstance(reasons, list) or not reasons:
        return None
    # The first says how much is lost, the second where: which matrices, or whether it is the device.
    found = "; ".join(str(reason)[:300] for reason in reasons[:2])
    return f"aipc verify found this model {verdict} on {device.word}: {found}"


def _path(folder: Path, device: Device, runtime_version: str) -> Path:
    driver = f"{device.name} {device.driver}"
    return cache.verdict_path(folder, device=device.word, driver=driver, runtime_version=runtime_version)
