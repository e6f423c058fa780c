"""What a converted folder says about itself, in aipc.json: from what, how and when it was made."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from aipc.errors import CheckpointError, StorageError
from aipc.phi3 import read_json_object
from aipc.windows_files import is_device_name

MANIFEST_FILE = "aipc.json"
# What was compiled for an NPU later has records of its own there.
COMPILED_DIR = "npu"
FORMAT = 1

# Files up to this size are identified by content, which takes milliseconds; larger ones by size and time.
_HASHED_WHOLE_BYTES = 64 * 2**20
_MODEL_SUFFIXES = {".json", ".jinja", ".safetensors", ".xml", ".bin", ".onnx", ".data"}
_MAX_FILES = 10_000
_MAX_TEXT = 4_096
_HINT = "remove the folder and convert the model again"


@dataclass(frozen=True, slots=True)
class FileRecord:
    """One file of a folder; `sha256` in lower-case hex."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """What a folder was converted from.

    name          how the user called it: an alias, a hub id or a path
    revision      the commit of a hub snapshot, else None
    fingerprint   of the checkpoint's files, see `fingerprint`
    """

    name: str
    revision: str | None
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of aipc.json.

    recipe    the words of the conversion, such as {"weight_format": "int4", "group_size": 128}
    runtime   the name of the runtime that the folder is for
    files     every file but aipc.json, by its path in the folder, written with "/"
    created   when the conversion ended, in UTC
    """

    source: SourceRecord
    recipe: Mapping[str, Any]
    runtime: str
    files: Mapping[str, FileRecord]
    aipc_version: str
    created: datetime = field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))

    @property
    def bytes(self) -> int:
        """Of all files together."""
        return sum(record.bytes for record in self.files.values())

    @property
    def digest(self) -> str:
        """One sha256 for the content of all files."""
        lines = (f"{name}\0{record.sha256}\n" for name, record in sorted(self.files.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """Write aipc.json into `folder`.

        raises   StorageError
        """
        record = {
            "aipc_format": FORMAT,
            "aipc_version": self.aipc_version,
            "created": self.created.astimezone(UTC).isoformat().replace("+00:00", "Z"),
            "source": _as_object(self.source),
            "recipe": dict(self.recipe),
            "runtime": self.runtime,
            "files": {name: _as_object(self.files[name]) for name in sorted(self.files)},
        }
        path = folder / MANIFEST_FILE
        try:
            path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8", newline="\n")
        except OSError as exc:
            raise StorageError(f"{path} cannot be written: {exc.strerror or exc}") from exc

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of `folder`, which is not trusted: no path in it leads out of the folder.

        raises   CheckpointError if it is missing, damaged or of a later format
        """
        path = folder / MANIFEST_FILE
        try:
            raw = read_json_object(path)
        except CheckpointError as exc:
            raise CheckpointError(exc.message, hint=_HINT) from exc
        fields = _Fields(raw, str(path))
        found = fields.take("aipc_format", int)
        if found != FORMAT:
            raise CheckpointError(
                f"{path} is of format {found}; this aipc reads format {FORMAT}",
                hint="update aipc, or convert the model again",
            )
        source = _Fields(fields.take("source", dict), f"{path}: source")
        return cls(
            source=SourceRecord(
                source.text("name"), source.text_or_none("revision"), source.sha256("fingerprint")
            ),
            recipe=fields.take("recipe", dict),
            runtime=fields.text("runtime"),
            files=_read_files(fields.take("files", dict), f"{path}: files"),
            aipc_version=fields.text("aipc_version"),
            created=fields.time("created"),
        )


def fingerprint(folder: Path, *, revision: str | None = None) -> str:
    """Which model a folder holds: sha256 over its files, of which only the large ones are not read.

    revision   where a commit names the content, the times of the files say nothing and are left out
    raises     CheckpointError if the folder cannot be read
    """
    whole = hashlib.sha256()
    try:
        for path in sorted(folder.iterdir(), key=lambda path: path.name):
            if path.suffix not in _MODEL_SUFFIXES or not path.is_file():
                continue
            stat = path.stat()
            state = _sha256(path) if stat.st_size <= _HASHED_WHOLE_BYTES else str(stat.st_size)
            if stat.st_size > _HASHED_WHOLE_BYTES and revision is None:
                state += f" {stat.st_mtime_ns}"
            whole.update(f"{path.name}\0{state}\n".encode())
    except OSError as exc:
        raise CheckpointError(f"{exc.filename or folder} cannot be read: {exc.strerror or exc}") from exc
    return whole.hexdigest()


def hash_files(
    folder: Path,
    known: Mapping[str, FileRecord] | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, FileRecord]:
    """Size and sha256 of every file below `folder` but aipc.json, sorted by path.

    known      files that were hashed while they were written, and are not read again
    progress   called with the bytes of each file that has been read
    raises     CheckpointError if a file cannot be read
    """
    records = {}
    for name in file_names(folder):
        path = folder / name
        try:
            record = (known or {}).get(name) or FileRecord(path.stat().st_size, _sha256(path))
        except OSError as exc:
            raise CheckpointError(f"{path} cannot be read: {exc.strerror or exc}") from exc
        records[name] = record
        if progress is not None:
            progress(record.bytes)
    return records


def file_names(folder: Path) -> list[str]:
    """What a conversion wrote below `folder`, but aipc.json: sorted paths in it, written with "/"."""
    names = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())
    return sorted(name for name in names if name != MANIFEST_FILE and not name.startswith(f"{COMPILED_DIR}/"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_object(record: SourceRecord | FileRecord) -> dict[str, object]:
    return {name: getattr(record, name) for name in record.__slots__}


def _read_files(raw: Mapping[str, Any], where: str) -> dict[str, FileRecord]:
    if len(raw) > _MAX_FILES:
        raise CheckpointError(
            f"{where} lists {len(raw)} files; at most {_MAX_FILES} are possible", hint=_HINT
        )
    records = {}
    for name in raw:
        if not _stays_inside(name):
            raise CheckpointError(f"{where}: {name[:80]!r} is no path inside the folder", hint=_HINT)
        entry = _Fields(_Fields(raw, where).take(name, dict), f"{where}: {name}")
        size = entry.take("bytes", int)
        if size < 0:
            raise entry.wrong("bytes", size)
        records[name] = FileRecord(size, entry.sha256("sha256"))
    return records


def _stays_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    plain = name == "/".join(parts) and not re.search(r'[\\:*?"<>|\x00-\x1f]', name)
    return (
        plain
        and bool(parts)
        and len(name) <= 512
        and ".." not in parts
        and parts[0] not in {"/", "//", "."}
        and not any(is_device_name(part) for part in parts)
    )


class _Fields:
    """Reads values from an untrusted manifest, and names the file and the field that is wrong."""

    def __init__(self, raw: Mapping[str, Any], where: str) -> None:
        self.raw = raw
        self.where = where

    def wrong(self, name: str, value: object) -> CheckpointError:
        return CheckpointError(f"{self.where}: {name[:80]} is {str(value)[:80]!r}", hint=_HINT)

    def take(self, name: str, kind: type) -> Any:
        value = self.raw.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise self.wrong(name, value)
        return value

    def text(self, name: str) -> str:
        value: str = self.take(name, str)
        if not 0 < len(value) <= _MAX_TEXT or not value.isprintable():
            raise self.wrong(name, value)
        return value

    def text_or_none(self, name: str) -> str | None:
        return None if self.raw.get(name) is None else self.text(name)

    def sha256(self, name: str) -> str:
        value = self.text(name)
        if not re.fullmatch(r"[0-9a-f]{64}", value):
            raise self.wrong(name, value)
        return value

    def time(self, name: str) -> datetime:
        value = self.text(name)
        try:
            moment = datetime.fromisoformat(value)
        except ValueError as exc:
            raise self.wrong(name, value) from exc
        if moment.tzinfo is None:
            raise self.wrong(name, value)
        return moment
