"""Warnings about arguments that mean nothing here, each once in a process."""

from __future__ import annotations

import warnings

_given: set[str] = set()


def warn_once(sentence: str) -> None:
    """Warn the caller of the public function that called this, unless the same was said before."""
    if sentence not in _given:
        _given.add(sentence)
        warnings.warn(sentence, UserWarning, stacklevel=3)
