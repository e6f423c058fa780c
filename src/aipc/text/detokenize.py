"""Token ids to text, one at a time: the pieces put together are the tokenizer's own decoding of them all."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from aipc.errors import UnsupportedModelError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Joiner(Protocol):
    """Puts the texts of tokens together, as the decoder of a tokenizer.json says."""

    def push(self, token: str) -> str:
        """The text that is certain once `token` has come."""

    def finish(self) -> str:
        """The text that was held back, once nothing more comes."""


class Detokenizer:
    """Turns the ids of an answer into text as they come, with constant work for each.

    All pieces together equal the tokenizer's decoding of all ids, special tokens left out. A piece
    never holds half a character: what is incomplete waits for the next id.

    token   the text of an id in the vocabulary; None for an unknown id or a special token
    """

    def __init__(self, token: Callable[[int], str | None], joiner: Joiner) -> None:
        self._token = token
        self._joiner = joiner

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes, possibly none."""
        token = self._token(token_id)
        return "" if token is None else self._joiner.push(token)

    def finish(self) -> str:
        """What was held back; bytes that are no character become U+FFFD."""
        return self._joiner.finish()


class ByteLevelJoiner:
    """GPT-style: every character of a token stands for a byte (Phi-4)."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: str) -> str:
        """The characters that are complete with the bytes of `token`."""
        return self._utf8.decode(byte_level_bytes(token))

    def finish(self) -> str:
        """U+FFFD for a character that lacks bytes, else nothing."""
        return self._utf8.decode(b"", final=True)


class ByteFallbackJoiner:
    """Llama-style: tokens are text, and `<0xE2>` is a byte (Phi-3).

    A run of byte tokens is one text if all of it is UTF-8, else U+FFFD for each byte: so a run waits
    for its end.

    replaced   what in a token stands for what, such as "▁" for " "
    strip      how many of which character go from the start of the whole text
    """

    def __init__(self, replaced: tuple[str, str] | None, strip: tuple[str, int]) -> None:
        self._replaced = replaced
        self._strip, self._to_strip = strip
        self._run = bytearray()

    def push(self, token: str) -> str:
        """The text of the byte run that `token` ends, and its own."""
        if self._replaced:
            token = token.replace(*self._replaced)
        byte = fallback_byte(token)
        if byte is not None:
            self._run.append(byte)
            return ""
        return self._stripped(self._end_of_run() + token)

    def finish(self) -> str:
        """The text of the byte run that stood last."""
        return self._stripped(self._end_of_run())

    def _end_of_run(self) -> str:
        run, self._run = bytes(self._run), bytearray()
        try:
            return run.decode("utf-8")
        except UnicodeDecodeError:
            return "\ufffd" * len(run)

    def _stripped(self, text: str) -> str:
        while self._to_strip and text:
            if text[0] != self._strip:
                self._to_strip = 0
            else:
                text = text[1:]
                self._to_strip -= 1
        return text


@dataclass(frozen=True, slots=True)
class Decoder:
    """What the decoder of a tokenizer.json does.

    byte_level   GPT-style; the other fields are then without meaning
    replaced     as in ByteFallbackJoiner
    strip        as in ByteFallbackJoiner
    """

    byte_level: bool
    replaced: tuple[str, str] | None = None
    strip: tuple[str, int] = (" ", 0)

    def joiner(self) -> Joiner:
        """A new joiner, for one text."""
        return ByteLevelJoiner() if self.byte_level else ByteFallbackJoiner(self.replaced, self.strip)

    def bytes_of(self, token: str) -> bytes:
        """The UTF-8 bytes, or the single byte, that `token` adds to a text."""
        if self.byte_level:
            return byte_level_bytes(token)
        text = token.replace(*self.replaced) if self.replaced else token
        byte = fallback_byte(text)
        return text.encode("utf-8") if byte is None else bytes([byte])

    @classmethod
    def parse(cls, raw: Mapping[str, Any] | None) -> Decoder:
        """The decoder of a tokenizer.json that the tokenizers library has accepted.

        raises   UnsupportedModelError for one that is neither GPT-style nor Llama-style
        """
        listed = raw is not None and raw.get("type") == "Sequence"
        steps = list(raw["decoders"]) if raw and listed else [raw] if raw else []
        kinds = tuple(step["type"] for step in steps)
        if kinds == ("ByteLevel",):
            return cls(byte_level=True)
        by_kind = dict(zip(kinds, steps, strict=True))
        replace, strip = by_kind.get("Replace"), by_kind.get("Strip")
        expected = (*("Replace",) * bool(replace), "ByteFallback", "Fuse", *("Strip",) * bool(strip))
        plain = "String" in replace["pattern"] if replace else True
        if kinds != expected or not plain or (strip and strip["stop"]):
            raise UnsupportedModelError(
                f"the decoder of tokenizer.json is {', '.join(kinds)[:200] or 'missing'}; aipc reads "
                "ByteLevel (as in Phi-4) and Replace, ByteFallback, Fuse, Strip (as in Phi-3)"
            )
        return cls(
            byte_level=False,
            replaced=(replace["pattern"]["String"], replace["content"]) if replace else None,
            strip=(strip["content"], strip["start"]) if strip else (" ", 0),
        )


def fallback_byte(token: str) -> int | None:
    """The byte that a token such as `<0xE2>` stands for."""
    found = _BYTE_TOKEN.fullmatch(token)
    return int(found[1], 16) if found else None


def byte_level_bytes(token: str) -> bytes:
    """The bytes that the characters of a GPT-style token stand for, or its own if one stands for none."""
    try:
        return bytes(map(_BYTE_OF_CHARACTER.__getitem__, token))
    except KeyError:
        return token.encode("utf-8")


def _byte_of_character() -> dict[str, int]:
    """GPT-2's table: printable Latin-1 characters stand for themselves, the other bytes for U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table


_BYTE_OF_CHARACTER = _byte_of_character()
BYTE_LEVEL_ALPHABET = frozenset(_BYTE_OF_CHARACTER)
