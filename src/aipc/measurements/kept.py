"""What is kept in the cache for each model: the newest whole record, and the choice that a person pinned."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from aipc import cache, hardware, hub
from aipc.errors import AipcError, StorageError, UsageError
from aipc.measurements.record import Record
from aipc.phi3 import read_json_object

_LOG = logging.getLogger("aipc")


@dataclass(frozen=True, slots=True)
class Pin:
    """A device's word, and a runtime's or None for the one that suits."""

    device: str
    runtime: str | None = None

    def __str__(self) -> str:
        return f"{self.device} with {self.runtime}" if self.runtime else self.device


def keep(source: str | Path, record: Record) -> None:
    """Keep a record for later plans.

    raises   StorageError
    """
    record.write(_file(source, "record"))


def record_of(source: str | Path) -> Record | None:
    """The record that was kept of a model, if it is of this machine."""
    path = _file(source, "record")
    if not path.is_file():
        return None
    try:
        record = Record.read(path)
    except UsageError as exc:
        _LOG.warning("%s; aipc bench makes another", exc.message)
        return None
    return record if record.machine.get("cpu") == hardware.cpu().name else None


def pin(source: str | Path, pinned: Pin) -> None:
    """Keep a person's choice.

    raises   StorageError
    """
    path = _file(source, "pin")
    cache.ensure_writable(path.parent)
    try:
        path.write_text(json.dumps(asdict(pinned)) + "\n", encoding="utf-8")
    except OSError as exc:
        raise StorageError(f"{path} cannot be written: {exc.strerror or exc}") from exc


def unpin(source: str | Path) -> bool:
    """Forget a person's choice, and say whether there was one."""
    path = _file(source, "pin")
    there = path.is_file()
    path.unlink(missing_ok=True)
    return there


def pin_of(source: str | Path) -> Pin | None:
    """A person's choice for a model."""
    path = _file(source, "pin")
    if not path.is_file():
        return None
    try:
        raw = read_json_object(path)
    except AipcError as exc:
        _LOG.warning("%s; nothing is pinned", exc.message)
        return None
    device, runtime = raw.get("device"), raw.get("runtime")
    if not isinstance(device, str) or not isinstance(runtime, str | None):
        _LOG.warning("%s names no device; nothing is pinned", path)
        return None
    return Pin(device, runtime)


def _file(source: str | Path, kind: str) -> Path:
    """The same for an alias and the hub id behind it; another one for each folder."""
    folder = hub.local_folder(source)
    if folder is not None:
        name, identity = folder.resolve().name, str(folder.resolve())
    else:
        name = identity = hub.DEMO if str(source) == hub.DEMO else hub.repository_of(str(source)).lower()
    key = hashlib.sha256(identity.encode()).hexdigest()[:8]
    return cache.cache_dir() / "measurements" / f"{cache.file_word(name)}-{key}.{kind}.json"
