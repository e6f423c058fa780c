"""The text by which a model is calibrated while it is quantised, as token ids."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from aipc.errors import UsageError
from aipc.phi3 import Phi3Config
from aipc.text import Text
from aipc.text.file import read_text_file

# Tokens of a sequence, and of all together: what a layer makes of these is in memory, 0.15 MB a token
# for Phi-3-mini.
_SEQUENCE_TOKENS = 512
_MAX_TOKENS = 8192
# Fewer say too little of the inputs of even a small matrix.
_MIN_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Calibration:
    """A text in sequences of token ids.

    dataset   the name of its file, or "default"
    sha256    of the text
    """

    dataset: str
    sha256: str
    sequences: tuple[tuple[int, ...], ...]

    def describe(self) -> dict[str, Any]:
        """For the manifest, in JSON's types."""
        tokens = sum(map(len, self.sequences))
        return {"dataset": self.dataset, "dataset_sha256": self.sha256, "calibration_tokens": tokens}


def read_calibration(checkpoint_folder: Path, config: Phi3Config, dataset: Path | None) -> Calibration:
    """A text file, or the text that comes with aipc: dialogue, prose, code, tables and other languages.

    Of a long text, pieces at even distances are taken.

    raises   UsageError if the file cannot be read, is no text or is too short; CheckpointError if the
             tokenizer is missing or damaged
    """
    if dataset is None:
        words = resources.files("aipc.conversion").joinpath("calibration.txt").read_text(encoding="utf-8")
    else:
        words = read_text_file(dataset)
    ids = Text.load(checkpoint_folder).encode(words)
    if len(ids) < _MIN_TOKENS:
        raise UsageError(
            f"the text has {len(ids)} tokens; to calibrate, at least {_MIN_TOKENS} are needed",
            hint="give a longer text, or leave --dataset away for the text that comes with aipc",
        )
    size = min(_SEQUENCE_TOKENS, config.context_length)
    starts = range(0, len(ids), size)
    wanted = _MAX_TOKENS // size
    if len(starts) > wanted:
        starts = range(0, len(ids) - size + 1, (len(ids) - size) // (wanted - 1))
    return Calibration(
        dataset="default" if dataset is None else dataset.name,
        sha256=hashlib.sha256(words.encode()).hexdigest(),
        sequences=tuple(tuple(ids[start : start + size]) for start in starts[:wanted]),
    )
