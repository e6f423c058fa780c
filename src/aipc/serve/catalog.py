"""Which models are served, and what is known of one before it is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from aipc import cache, hub
from aipc.errors import AipcError
from aipc.prepare import ReadyModel
from aipc.text import Text

_OF_CONVERTED, _OF_CHECKPOINT = 2.2, 0.6


@dataclass(frozen=True, slots=True)
class Known:
    """A served model as it lies on the disk.

    folder           where it lies, or None if it is not here yet
    bytes            of its files, 0 if they are not here
    modified         when it was converted or changed, on the clock of time.time()
    digest           another one for another model
    format           of its weights
    context_length   most tokens of prompt and answer together, where a file says so
    """

    name: str
    folder: Path | None = None
    bytes: int = 0
    modified: float = 0.0
    digest: str = ""
    format: str = "unknown"
    precision: str = ""
    context_length: int | None = None

    def takes_tools(self) -> bool:
        """Whether it was trained to call functions, as far as its files tell. Reads its tokenizer."""
        try:
            return self.folder is not None and Text.load(self.folder).takes_tools
        except AipcError:
            return False


def served_names(words: Sequence[str]) -> list[str]:
    """The names that clients use: the words as they were given, or all that is here and needs no download.

    raises   ModelNotFoundError for a word that is no model, before anything is loaded
    """
    for word in words:
        _check(word)
    return list(dict.fromkeys(words or [hub.DEMO, *_converted()]))


def describe(name: str) -> Known:
    """What is known of a served model, without a network."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    cached = [e for e in cache.entries() if e.manifest is not None and e.manifest.source.name == name]
    if cached:
        newest = max(cached, key=lambda entry: entry.created)
        return _known(name, newest.folder, newest.created.timestamp(), digest)
    try:
        folder = hub.find(name, download=False).folder
    except AipcError:
        return Known(name, digest=digest)
    return _known(name, folder, folder.stat().st_mtime, digest)


def expected_memory_bytes(name: str) -> int:
    """What a model may need that was never loaded here: 0 where its files are not here yet."""
    known = describe(name)
    # Of Phi-3-mini's 2.1 GB in 4 bits, OpenVINO makes 4.5 GB on a CPU, ONNX Runtime 2.8; a checkpoint of
    # 7.6 GB is converted to the same.
    return int(known.bytes * (_OF_CHECKPOINT if known.format == "safetensors" else _OF_CONVERTED))


def _known(name: str, folder: Path, modified: float, digest: str) -> Known:
    ready = ReadyModel(name, folder)
    try:
        context_length, precision = ready.context_length, ready.precision
    except AipcError:
        context_length, precision = None, ""
    kinds = {
        "openvino_model.xml": "openvino",
        "genai_config.json": "onnx",
        "model.safetensors": "safetensors",
    }
    found = [kind for file, kind in kinds.items() if (folder / file).is_file()]
    return Known(
        name,
        folder,
        cache.bytes_below(folder),
        modified,
        digest,
        found[0] if found else "unknown",
        precision,
        context_length,
    )


def _check(word: str) -> None:
    folder = hub.local_folder(word)
    if folder is not None:
        hub.kind_of(folder)
    elif word != hub.DEMO:
        hub.repository_of(word)


def _converted() -> list[str]:
    """The names of models in the cache that came from the hub."""
    names = []
    for entry in cache.entries():
        if entry.manifest is None or entry.manifest.source.revision is None:
            continue
        try:
            _check(entry.manifest.source.name)
        except AipcError:
            continue
        names.append(entry.manifest.source.name)
    return names
