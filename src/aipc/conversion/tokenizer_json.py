"""What a tokenizer.json of the Phi family says, as data; whatever is not covered is refused by name.

Covered: BPE over text with byte fallback (Llama-style, Phi-3), and BPE over bytes behind regular
expressions (GPT-style, Phi-4).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aipc.errors import UnsupportedModelError
from aipc.text.detokenize import BYTE_LEVEL_ALPHABET, Decoder
from aipc.text.tokenizer import read_tokenizer_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# GPT-2's split, which tokenizer.json leaves unsaid where ByteLevel has use_regex.
_GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Escapes that Oniguruma (in tokenizers) and PCRE2 (in OpenVINO) read alike.
_COMMON_ESCAPE = re.compile(r"\\(?:[pP]\{\w+\}|[sSrnt]|[^\w\s])")
_MAX_VOCAB = 2_000_000


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that is read from text as a whole, with the white space beside it if it strips that."""

    token_id: int
    content: str
    special: bool
    strip_left: bool
    strip_right: bool


@dataclass(frozen=True, slots=True)
class Split:
    """Text is cut where `pattern` matches; with `matches_only` what it does not match is dropped."""

    pattern: str
    matches_only: bool


@dataclass(frozen=True, slots=True)
class TokenizerSpec:
    """A BPE tokenizer.

    prefix          put before every text that is not empty
    replacements    (what, by what) in turn, in the text with its prefix
    splits          in turn; bytes stand for characters if the tokenizer is GPT-style
    texts           of the vocabulary, by id; "" for an id that stands for nothing
    merges          pairs of texts, the first to be merged first
    before, after   ids put around a text
    decoder         its `byte_level` says which style this is
    """

    added: tuple[AddedToken, ...]
    prefix: str
    replacements: tuple[tuple[str, str], ...]
    splits: tuple[Split, ...]
    texts: tuple[str, ...]
    merges: tuple[tuple[str, str], ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    decoder: Decoder


def read_tokenizer_json(path: Path, tokenizer: Tokenizer) -> TokenizerSpec:
    """The content of a tokenizer.json, from which `tokenizer` was made.

    raises   CheckpointError if it is no JSON, UnsupportedModelError naming what is not covered
    """
    raw = read_tokenizer_file(path)
    try:
        return _read(raw, tokenizer)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise _not_covered(f"an unexpected form ({type(exc).__name__}: {exc})") from exc


def _read(raw: Mapping[str, Any], tokenizer: Tokenizer) -> TokenizerSpec:
    keys = "version truncation padding added_tokens normalizer pre_tokenizer post_processor decoder model"
    _only(raw, "tokenizer.json", dict.fromkeys(keys.split()))
    decoder = Decoder.parse(raw["decoder"])
    byte_level, splits = _pre_tokenizer(raw["pre_tokenizer"])
    if decoder.byte_level != byte_level:
        raise _not_covered("a decoder of another style than its pre_tokenizer")
    model = raw["model"]
    _check_model(model, byte_level=byte_level)
    normalizers = list(_sequence(raw["normalizer"], "normalizers"))
    has_normalizer = bool(normalizers)
    prefix = _prefix(normalizers)
    before, after = _post_processor(raw["post_processor"])
    added = tuple(_added(token, tokenizer, has_normalizer=has_normalizer) for token in raw["added_tokens"])
    size = 1 + max([*model["vocab"].values(), *(token.token_id for token in added)])
    if size > _MAX_VOCAB:
        raise _not_covered(f"the token id {size - 1}")
    return TokenizerSpec(
        added=added,
        prefix=prefix,
        replacements=tuple(_replacement(step) for step in normalizers),
        splits=splits,
        texts=tuple(tokenizer.id_to_token(index) or "" for index in range(size)),
        merges=tuple(_merge(merge) for merge in model["merges"]),
        before=before,
        after=after,
        decoder=decoder,
    )


def _not_covered(what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"tokenizer.json has {what[:300]}, which aipc does not build as an OpenVINO graph",
        hint="aipc builds the tokenizers of the Phi-3 and Phi-4 family",
    )


def _only(value: Mapping[str, Any], where: str, possible: Mapping[str, Sequence[object] | None]) -> None:
    """Refuse a key that is not in `possible`, or a value that is not among those listed for its key."""
    for key, found in value.items():
        if key not in possible:
            raise _not_covered(f"the field {key!r} in {where}")
        listed = possible[key]
        if listed is not None and not any(found is one or found == one for one in listed):
            raise _not_covered(f"{key} = {found!r} in {where}")


def _sequence(value: Mapping[str, Any] | None, members: str) -> Iterator[Mapping[str, Any]]:
    """The steps of a stage: none, one, or those of a Sequence."""
    if value is None:
        return
    if value.get("type") != "Sequence":
        yield value
        return
    _only(value, members, {"type": None, members: None})
    for member in value[members]:
        yield from _sequence(member, members)


def _check_model(model: Mapping[str, Any], *, byte_level: bool) -> None:
    nothing = (None, "")
    rules: dict[str, Sequence[object] | None] = dict.fromkeys(("vocab", "merges", "unk_token", "fuse_unk"))
    rules |= {
        "type": ("BPE",),
        "dropout": (None, 0.0),
        "continuing_subword_prefix": nothing,
        "end_of_word_suffix": nothing,
        "byte_fallback": (not byte_level,) if not byte_level else (False, None),
        "ignore_merges": (False, None),
    }
    _only({"byte_fallback": False} | dict(model), "model", rules)
    alphabet = BYTE_LEVEL_ALPHABET if byte_level else [f"<0x{byte:02X}>" for byte in range(256)]
    missing = [character for character in alphabet if character not in model["vocab"]]
    if missing:
        raise _not_covered(
            f"a vocabulary without the byte {missing[0]!r} ({len(missing)} of 256 are missing)"
        )


def _merge(merge: str | list[str]) -> tuple[str, str]:
    """A pair, which older files write as one text with a space between."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def _prefix(normalizers: list[Mapping[str, Any]]) -> str:
    """The text of a Prepend, which must come first and is taken off the list."""
    if not normalizers or normalizers[0].get("type") != "Prepend":
        return ""
    step = normalizers.pop(0)
    _only(step, "Prepend", {"type": None, "prepend": None})
    return str(step["prepend"])


def _replacement(step: Mapping[str, Any]) -> tuple[str, str]:
    _only(step, "normalizer", {"type": ("Replace",), "pattern": None, "content": None})
    if not step["pattern"].get("String"):
        raise _not_covered("a normalizer that replaces by regular expression")
    return step["pattern"]["String"], step["content"]


def _pre_tokenizer(value: Mapping[str, Any] | None) -> tuple[bool, tuple[Split, ...]]:
    """Whether it ends in bytes, and what it splits by before."""
    steps = list(_sequence(value, "pretokenizers"))
    if not steps:
        return False, ()
    splits = [_split(step) for step in steps[:-1]]
    rules = {"type": ("ByteLevel",), "add_prefix_space": (False,), "trim_offsets": None, "use_regex": None}
    _only(steps[-1], "pre_tokenizer", rules)
    if steps[-1].get("use_regex", True):
        splits.append(Split(_GPT2_SPLIT, matches_only=False))
    return True, tuple(splits)


def _split(step: Mapping[str, Any]) -> Split:
    rules = {"type": ("Split",), "pattern": None, "behavior": ("Isolated", "Removed"), "invert": None}
    _only(step, "pre_tokenizer", rules)
    matches_only = step["behavior"] == "Removed"
    if step["invert"] != matches_only:
        raise _not_covered(f"a Split with behavior {step['behavior']} and invert {step['invert']}")
    pattern = step["pattern"].get("Regex")
    if pattern is None:
        raise _not_covered("a Split by a fixed string")
    if "\\" in _COMMON_ESCAPE.sub("", pattern) or "&&" in pattern or "[[" in pattern:
        raise _not_covered(f"the regular expression {pattern!r}")
    return Split(pattern, matches_only)


def _added(token: Mapping[str, Any], tokenizer: Tokenizer, *, has_normalizer: bool) -> AddedToken:
    rules: dict[str, Sequence[object] | None] = dict.fromkeys(
        ("id", "content", "special", "lstrip", "rstrip")
    )
    rules |= {"single_word": (False,), "normalized": (False,) if has_normalizer else None}
    _only(token, f"the added token {token['content']!r}", rules)
    content = token["content"]
    token_id = tokenizer.token_to_id(content)
    if token_id is None or token_id != token["id"]:
        raise _not_covered(f"the added token {content!r} with the id {token['id']}, which is {token_id}")
    return AddedToken(token_id, content, token["special"], token["lstrip"], token["rstrip"])


def _post_processor(value: Mapping[str, Any] | None) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids before and after a text. ByteLevel changes no ids here, only offsets."""
    before: list[int] = []
    after: list[int] = []
    for step in _sequence(value, "processors"):
        if step.get("type") == "ByteLevel":
            continue
        rules = {"type": ("TemplateProcessing",), "single": None, "pair": None, "special_tokens": None}
        _only(step, "post_processor", rules)
        side = before
        for piece in step["single"]:
            if "Sequence" in piece:
                side = after
            else:
                side += step["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    return tuple(before), tuple(after)
