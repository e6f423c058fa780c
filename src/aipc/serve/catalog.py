"""Which models are served, and what is known of one before it is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from aipc import cache, hub
from aipc.errors import AipcError


def served_names(words: Sequence[str]) -> list[str]:
    """The names that clients use: the words as they were given, or all that is here and needs no download.

    raises   ModelNotFoundError for a word that is no model, before anything is loaded
    """
    for word in words:
        _check(word)
    return list(dict.fromkeys(words or [hub.DEMO, *_converted()]))


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
