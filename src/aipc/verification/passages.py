"""The text on which a folder is compared with its original, cut into prompts and given answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from aipc.errors import UsageError
from aipc.text.file import read_text_file

# A step of decoding for each: so many scores are compared in a passage.
FOLLOWING_TOKENS = 64
SHORTEST = 16

# Of these, what text and context have room for, and all of both.
_USUAL_LENGTHS = (128, 512, 2048)
# The shortest length is read at so many places, as a text's beginning says little of the rest.
_PLACES = 4


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text: the model reads `prompt`, and is asked how it scores each token that follows."""

    prompt: tuple[int, ...]
    following: tuple[int, ...]

    @property
    def computed(self) -> tuple[int, ...]:
        """All tokens but the last, behind which nothing is asked."""
        return self.prompt + self.following[:-1]

    @property
    def tokens(self) -> int:
        """How many, of both together."""
        return len(self.prompt) + len(self.following)


def read_text(path: Path | None) -> str:
    """A text file, or the text that comes with aipc: prose, code, dialogue and other languages.

    raises   UsageError if it cannot be read, or is no text
    """
    if path is None:
        return resources.files("aipc.verification").joinpath("text.txt").read_text(encoding="utf-8")
    return read_text_file(path)


def make_passages(
    ids: Sequence[int], context_length: int, lengths: Sequence[int] | None = None
) -> list[Passage]:
    """Passages of several lengths: the shortest at several places, the others from the beginning.

    ids       of the whole text
    lengths   in tokens; None for a choice up to what context and text have room for
    raises    UsageError for a text that is too short, or a length that is impossible
    """
    room = min(len(ids), context_length)
    if room < SHORTEST:
        raise UsageError(
            f"the text has {len(ids)} tokens; at least {SHORTEST} are needed", hint="give a longer text"
        )
    if lengths is None:
        lengths = [*(length for length in _USUAL_LENGTHS if length < room), room]
    for length in lengths:
        if not SHORTEST <= length <= room:
            raise UsageError(
                f"a length of {length} tokens is not possible: from {SHORTEST} to {room} are, with a text of "
                f"{len(ids)} tokens and a context of {context_length}",
                hint="give a longer text, or other lengths",
            )
    shortest, *others = sorted(set(lengths))
    step = (len(ids) - shortest) // (_PLACES - 1)
    starts = sorted({place * step for place in range(_PLACES)}) if step >= shortest else [0]
    return [_passage(ids[start : start + shortest]) for start in starts] + [
        _passage(ids[:length]) for length in others
    ]


def _passage(ids: Sequence[int]) -> Passage:
    border = len(ids) - min(FOLLOWING_TOKENS, len(ids) // 2)
    return Passage(tuple(ids[:border]), tuple(ids[border:]))
