"""How the original scores the passages: one pass over the checkpoint, in float32, and kept for the next."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from aipc import cache
from aipc.conversion.checkpoint import Checkpoint
from aipc.conversion.streamed import StreamedWeights
from aipc.decoder import Decoder, forward
from aipc.errors import StorageError
from aipc.manifest import fingerprint
from aipc.phi3 import Phi3Config
from aipc.types import Progress
from aipc.verification.passages import Passage
from aipc.windows_files import move

# Part of the key: to be raised when the arithmetic or the files change.
_VERSION = 1

# So many checkpoints and texts stay in the cache: some 60 MB each, for a vocabulary of 32,000.
_KEPT = 8


def original_scores(
    folder: Path,
    passages: Sequence[Passage],
    *,
    revision: str | None = None,
    progress: Callable[[Progress], None],
) -> list[np.ndarray]:
    """The scores before each following token of each passage, [following, vocab_size] float32.

    folder     of a checkpoint
    revision   of a hub snapshot
    raises     CheckpointError, UnsupportedModelError
    """
    path = _place(folder, passages, revision)
    kept = _read_kept(path)
    if kept is not None:
        return kept
    config, checkpoint = open_checkpoint(folder)
    scores = computed_scores(Decoder(config, StreamedWeights(checkpoint)), passages, "the original", progress)
    _keep(path, scores)
    return scores


def open_checkpoint(folder: Path) -> tuple[Phi3Config, Checkpoint]:
    """A checkpoint, and what it must hold.

    raises     CheckpointError, UnsupportedModelError
    """
    config, checkpoint = Phi3Config.read(folder), Checkpoint.open(folder)
    checkpoint.require(config.weights())
    return config, checkpoint


def computed_scores(
    decoder: Decoder, passages: Sequence[Passage], name: str, progress: Callable[[Progress], None]
) -> list[np.ndarray]:
    """The scores before each following token of each passage, in float32 by numpy.

    name     of what is computed, for people
    memory   what a layer makes of the tokens, 0.25 MB each for Phi-3-mini, and a few blocks of weights
    """
    border = decoder.config.rope_border
    runs = _runs(passages, border)
    sizes = [0] * decoder.config.layers
    for spec in decoder.config.weights():
        if spec.layer is not None:
            sizes[spec.layer] += 2 * spec.elements
    done, total = 0, 2 * decoder.config.parameters
    for layer, x in forward(decoder, runs):
        hidden, done = x, done + sizes[layer]
        progress(Progress(f"{name}: layer {layer + 1} of {len(sizes)}", done, total))
    starts = np.cumsum([0, *map(len, runs)])
    rows = []
    for passage in passages:
        start = next(
            s for s, run in zip(starts, runs, strict=False) if _begins(passage.computed, run, border)
        )
        # The scores before a token are those behind the one before it.
        rows.append(np.arange(start + len(passage.prompt) - 1, start + passage.tokens - 1))
    scores = decoder.head(decoder.last_norm(hidden[np.concatenate(rows)]))
    progress(Progress(f"{name}: head", total, total))
    return np.split(scores, np.cumsum([len(part) for part in rows])[:-1])


def _runs(passages: Sequence[Passage], rope_border: int | None) -> list[tuple[int, ...]]:
    """What must be computed: a passage that begins another one is computed with it."""
    runs: list[tuple[int, ...]] = []
    for ids in sorted((passage.computed for passage in passages), key=len, reverse=True):
        if not any(_begins(ids, run, rope_border) for run in runs):
            runs.append(ids)
    return runs


def _begins(ids: tuple[int, ...], run: tuple[int, ...], rope_border: int | None) -> bool:
    """Whether a text scores as the beginning of another one does: with LongRoPE, a short one may not."""
    same_factors = rope_border is None or (len(ids) > rope_border) == (len(run) > rope_border)
    return same_factors and run[: len(ids)] == ids


def _place(folder: Path, passages: Sequence[Passage], revision: str | None) -> Path:
    asked = [[passage.prompt, passage.following] for passage in passages]
    key = json.dumps([_VERSION, fingerprint(folder, revision=revision), asked])
    return cache.originals_dir() / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"


def _read_kept(path: Path) -> list[np.ndarray] | None:
    """What was kept, or None where nothing was, or nothing that can be read."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as kept:
            return [kept[name] for name in kept.files]
    except (OSError, ValueError, zipfile.BadZipFile):
        return None


def _keep(path: Path, scores: Sequence[np.ndarray]) -> None:
    """Save them whole or not at all; a cache that cannot be written costs the next caller the pass."""
    try:
        cache.ensure_writable(path.parent)
        partial = path.with_name(f"{cache.PARTIAL_PREFIX}{path.name}")
        with partial.open("wb") as file:
            np.savez(file, *scores)
        move(partial, path)
        for old in sorted(path.parent.glob("*.npz"), key=lambda kept: kept.stat().st_mtime)[:-_KEPT]:
            old.unlink()
    except (StorageError, OSError):
        return
