"""The tokens by which a model is calibrated while it is quantised: of a text, or drawn at random."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import numpy as np

from aipc.errors import UsageError
from aipc.phi3 import Phi3Config
from aipc.text import Text
from aipc.text.file import read_text_file
from aipc.types import Message

# Tokens of a sequence, and of all together: what a layer makes of these is in memory, 0.25 MB a token
# for Phi-3-mini.
_SEQUENCE_TOKENS = 512
_MAX_TOKENS = 8192
# Fewer say too little of the inputs of even a small matrix.
_MIN_TOKENS = 256
# Of a longer text so many pieces are taken, at even distances.
_PIECES = 16
_MAX_CHARACTERS = 5 * _MAX_TOKENS

# Of as many random tokens short sequences said more on the demo model than long ones.
_RANDOM_SEQUENCES = 16
_RANDOM_SEQUENCE_TOKENS = 64
# One for each token: half as many lost more on the demo model, and more cost time.
_RANDOM_COLUMNS = 1024


@dataclass(frozen=True, slots=True)
class Calibration:
    """Sequences of token ids.

    dataset   the name of the text's file, or "default", or "random" where there is no text
    sha256    of the text
    columns   of a matrix, neighbours, that make up for each other; None for all
    """

    dataset: str
    sha256: str | None
    sequences: tuple[tuple[int, ...], ...]
    columns: int | None = None

    def describe(self) -> dict[str, Any]:
        """For the manifest, in JSON's types."""
        tokens = sum(map(len, self.sequences))
        text = {} if self.sha256 is None else {"dataset_sha256": self.sha256}
        return {"dataset": self.dataset, **text, "calibration_tokens": tokens}


def random_calibration(config: Phi3Config) -> Calibration:
    """Tokens that no text is needed for: every one as likely as any other, the same at each call."""
    size = min(_RANDOM_SEQUENCE_TOKENS, config.context_length)
    ids = np.random.default_rng(0).integers(config.vocab_size, size=(_RANDOM_SEQUENCES, size))
    return Calibration("random", None, tuple(map(tuple, ids.tolist())), _RANDOM_COLUMNS)


def read_calibration(checkpoint_folder: Path, config: Phi3Config, dataset: Path | None) -> Calibration:
    """A text file, or the text that comes with aipc: dialogue, prose, code, tables and other languages.

    The paragraphs are read as a chat, in the model's own template where it has one.

    raises   UsageError if the file cannot be read, is no text or is too short; CheckpointError if the
             tokenizer is missing or damaged
    """
    if dataset is None:
        words = resources.files("aipc.conversion").joinpath("calibration.txt").read_text(encoding="utf-8")
    else:
        words = read_text_file(dataset).replace("\r\n", "\n")
    ids = _as_chat(Text.load(checkpoint_folder), _pieces(words)) if words.strip() else []
    if len(ids) < _MIN_TOKENS:
        raise UsageError(
            f"the text has {len(ids)} tokens; to calibrate, at least {_MIN_TOKENS} are needed",
            hint="give a longer text, or leave --dataset away for the text that comes with aipc",
        )
    size = min(_SEQUENCE_TOKENS, config.context_length)
    sequences = [tuple(ids[start : start + size]) for start in range(0, len(ids), size)]
    skip = -(-len(sequences) // (_MAX_TOKENS // size))
    return Calibration(
        dataset="default" if dataset is None else dataset.name,
        sha256=hashlib.sha256(words.encode()).hexdigest(),
        sequences=tuple(sequences[::skip]),
    )


def _pieces(words: str) -> str:
    """A text, or pieces from all over it."""
    if len(words) <= _MAX_CHARACTERS:
        return words
    size = _MAX_CHARACTERS // _PIECES
    distance = (len(words) - size) // (_PIECES - 1)
    return "\n\n".join(words[n * distance : n * distance + size] for n in range(_PIECES))


def _as_chat(text: Text, words: str) -> list[int]:
    """The ids of a text whose paragraphs are said in turn by user and assistant, the last by the user.

    A model for chats is asked in its template's form, whose tokens the plain text lacks: on the demo model,
    its chats lose a tenth less by it, and plain text no more.
    """
    paragraphs = [part for part in words.split("\n\n") if part.strip()]
    paragraphs = paragraphs[: len(paragraphs) - 1 + len(paragraphs) % 2]
    roles: tuple[Literal["user"], Literal["assistant"]] = ("user", "assistant")
    try:
        return text.encode_chat([Message(roles[n % 2], part) for n, part in enumerate(paragraphs)])
    except UsageError:  # there is no template, or it wants no such chat
        return text.encode(words)
