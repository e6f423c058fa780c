"""A model's tokenizer and chat template: prompts to token ids, and the ids at which an answer ends."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aipc.errors import AipcError, CheckpointError, UnsupportedModelError, UsageError
from aipc.phi3 import token_ids
from aipc.text.detokenize import Decoder, Detokenizer
from aipc.types import Message

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

    from aipc.text.template import ChatTemplate

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MAX_BYTES = 256 * 2**20
# Unicode keeps these code points free for use inside a program.
_NONCHARACTERS = tuple(map(chr, range(0xFDD0, 0xFDF0)))


class Text:
    """Text in and out for one model. Several threads may share one.

    stop_ids   an answer ends with any of these: what config.json, generation_config.json and
               tokenizer_config.json call end of text, and what the chat template ends a turn with
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        eos_ids: Sequence[int],
        named: Mapping[str, Any],
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token_id: token.content for token_id, token in added.items() if token.special}
        self._special_pattern = _pattern(self._special.values())
        self._special_texts = frozenset(self._special.values())
        self._bos = named.get("bos_token")
        decoder = tokenizer.decoder
        self._decoder = Decoder.parse(json.loads(decoder.__getstate__()) if decoder else None)
        self.stop_ids = frozenset(eos_ids) | self._template_end_ids()

    @classmethod
    def load(cls, folder: Path) -> Text:
        """The text side of a model folder, of which tokenizer.json is the one file that must exist.

        raises   CheckpointError for a damaged file, UnsupportedModelError for a tokenizer that is
                 neither Llama-style nor GPT-style
        """
        from aipc.text.template import optional_json_object, read_chat_template

        config = optional_json_object(folder / "tokenizer_config.json")
        named = named_tokens(config) | named_tokens(optional_json_object(folder / "special_tokens_map.json"))
        tokenizer = load_tokenizer(folder / "tokenizer.json")
        eos_ids: list[int] = []
        for name in ("config.json", "generation_config.json"):
            raw = optional_json_object(folder / name)
            eos_ids += token_ids(raw.get("eos_token_id"), f"{folder / name}: eos_token_id")
        eos = tokenizer.token_to_id(named["eos_token"]) if "eos_token" in named else None
        if eos is not None:
            eos_ids.append(eos)
        return cls(tokenizer, read_chat_template(folder, config, named), eos_ids, named)

    @property
    def vocab_size(self) -> int:
        """How many ids mean something."""
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The ids of a text as it stands, with special tokens read as such, no template.

        What the tokenizer puts around a text, such as a begin-of-text token, is added once.
        """
        begun = bool(self._bos) and text.startswith(str(self._bos))
        return self._encode(self._tokenizer, text, add_special_tokens=not begun).ids

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation in the model's own form, ending where the answer begins.

        The same as transformers gives with tokenizer.json as it stands (its release 5 rebuilds Phi-3's,
        and leaves out the space that starts every message), with two exceptions. A system message that
        the template drops goes in front of the first user message. And special tokens are read as such
        only where the template writes them: "<|end|>" inside a message is seven harmless characters,
        so that no message can end its turn and speak as another role.

        raises   UsageError if there is no template, it has no place for tools that are there, or it refuses
                 the conversation
        """
        template = self._template
        if template is None:
            raise UsageError(
                "this model has no chat template, so it takes no messages",
                hint="pass the whole prompt as plain text with raw=True",
            )
        if not messages:
            raise UsageError("a conversation has at least one message")
        if not self.takes_tools and any(m.tools is not None or m.role == "tool" for m in messages):
            raise UsageError(
                # Editors and agents look for "does not support tools", which are Ollama's words.
                "this model does not support tools: it was not trained to call functions, and its chat "
                "template has no place for them",
                hint="take a model that was, such as phi-4-mini, or leave them out",
            )
        messages = _with_system_kept(template, messages)
        mark = _unused(_NONCHARACTERS, messages)
        marked = [
            replace(
                m, content=self._broken_up(m.content, mark), tools=m.tools and self._broken_up(m.tools, mark)
            )
            for m in messages
        ]
        encoding = self._encode(self._tokenizer, template.render(marked), add_special_tokens=False)
        if marked == messages:
            return encoding.ids
        return list(self._without_mark(encoding, template.render(marked), mark))

    @cached_property
    def takes_tools(self) -> bool:
        """Whether the chat template has a place for functions in the system message, as Phi-4-mini's has."""
        tools = _NONCHARACTERS[0]
        probe = [Message("system", "a", tools), Message("user", "a")]
        try:
            return self._template is not None and tools in self._template.render(probe)
        except AipcError:
            return False

    def decoder(self) -> Detokenizer:
        """A new detokenizer, for one answer."""
        return Detokenizer(self._token, self._decoder.joiner())

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to a text: UTF-8, or a part of a character; of a special token its name."""
        token = self._tokenizer.id_to_token(token_id) if 0 <= token_id < 2**32 else None
        if token is None:
            return b""
        return token.encode("utf-8") if token in self._special_texts else self._decoder.bytes_of(token)

    def _token(self, token_id: int) -> str | None:
        token = self._tokenizer.id_to_token(token_id) if 0 <= token_id < 2**32 else None
        return None if token in self._special_texts else token

    def _broken_up(self, content: str, mark: str) -> str:
        """A message with a mark inside everything that reads as a special token."""
        while self._special_pattern and self._special_pattern.search(content):
            content = self._special_pattern.sub(lambda found: found[0][0] + mark + found[0][1:], content)
        return content

    def _without_mark(self, encoding: Encoding, text: str, mark: str) -> Iterator[int]:
        """The ids of a marked text as if the marks were not there, yet did their work.

        A tokenizer reads the texts between special tokens each on its own: so those that hold a mark
        are read again without it, by a tokenizer that is blind to special tokens.
        """
        ids, offsets = encoding.ids, encoding.offsets
        edges = [index for index, token_id in enumerate(ids) if token_id in self._special]
        first, begin = 0, 0
        for edge in [*edges, len(ids)]:
            end = offsets[edge][0] if edge < len(ids) else len(text)
            between = text[begin:end]
            if mark in between:
                yield from self._encode(self._blind, between.replace(mark, ""), add_special_tokens=False).ids
            else:
                yield from ids[first:edge]
            if edge < len(ids):
                yield ids[edge]
                first, begin = edge + 1, offsets[edge][1]

    @cached_property
    def _blind(self) -> Tokenizer:
        try:
            tokenizer = copy.deepcopy(self._tokenizer)
        except Exception as exc:
            raise CheckpointError(f"tokenizer.json contradicts itself ({str(exc)[:200]})") from exc
        tokenizer.encode_special_tokens = True
        return tokenizer

    def _encode(self, tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> Encoding:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as exc:
            raise UsageError("the text holds half a surrogate pair, which is no character") from exc
        with _as_checkpoint_error("tokenizer.json cannot read this text"):
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _template_end_ids(self) -> set[int]:
        """The special token with which the template ends an answer, found by rendering one."""
        if self._template is None or self._special_pattern is None:
            return set()
        answer = _NONCHARACTERS[0]
        try:
            text = self._template.render(
                [Message("user", "a"), Message("assistant", answer)], generation_prompt=False
            )
        except AipcError:
            return set()
        end = self._special_pattern.match(text.partition(answer)[2].lstrip())
        return {token_id for token_id, content in self._special.items() if end and content == end[0]}


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a tokenizer.json, without its truncation and padding.

    raises   CheckpointError if the file is missing or damaged, UnsupportedModelError if it is not BPE
    """
    from tokenizers import Tokenizer

    raw = read_tokenizer_file(path)
    model = raw.get("model")
    model = model if isinstance(model, dict) else {}
    kind = model.get("type")
    # A prefix or suffix that does not fit its merges ends the whole process inside the library.
    if kind != "BPE" or any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix")):
        raise UnsupportedModelError(
            f"{path} is a tokenizer of the kind {str(kind)[:80]!r}; aipc reads BPE without subword marks"
        )
    with _as_checkpoint_error(f"{path} is damaged"):
        tokenizer: Tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_tokenizer_file(path: Path) -> dict[str, Any]:
    """The content of a tokenizer.json.

    raises   CheckpointError if it is missing, too large, an LFS pointer, or no JSON object
    """
    try:
        data = path.read_bytes() if path.stat().st_size <= _MAX_BYTES else b""
        if data.startswith(b"version https://git-lfs"):
            raise CheckpointError(f"{path} is a Git LFS pointer, not the file itself", hint="git lfs pull")
        raw = json.loads(data.decode("utf-8"))
    except FileNotFoundError as exc:
        raise CheckpointError(f"{path} is missing", hint="aipc reads models with a tokenizer.json") from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path} is not JSON: {exc}", hint="download the model again") from exc
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds a JSON {type(raw).__name__} instead of an object")
    return raw


@contextmanager
def _as_checkpoint_error(what: str) -> Iterator[None]:
    """Name the file where the tokenizers library fails, which raises plain exceptions, or panics."""
    try:
        yield
    except Exception as exc:
        raise CheckpointError(f"{what}: {str(exc)[:200]}", hint="download the model again") from exc
    except BaseException as exc:
        # A Rust panic is a BaseException whose class cannot be imported.
        if type(exc).__name__ != "PanicException":
            raise
        raise CheckpointError(f"{what}: {str(exc)[:200]}", hint="download the model again") from exc


def named_tokens(raw: Mapping[str, Any]) -> dict[str, str]:
    """The texts of bos_token, eos_token, ..., which are strings or objects with a content."""
    found = {}
    for name in _NAMED_TOKENS:
        value = raw.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str) and value.isprintable():
            found[name] = value
    return found


def _pattern(texts: Iterable[str]) -> re.Pattern[str] | None:
    # A single character cannot be broken up.
    longest_first = sorted((text for text in texts if len(text) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _unused(candidates: Sequence[str], messages: Sequence[Message]) -> str:
    for candidate in candidates:
        if not any(candidate in message.content + (message.tools or "") for message in messages):
            return candidate
    raise UsageError("the messages hold all 32 noncharacters from U+FDD0 on, which no text needs")


def _with_system_kept(template: ChatTemplate, messages: Sequence[Message]) -> list[Message]:
    """The conversation, a system message that the template drops moved into the first user message."""
    kept = list(messages)
    mark = _unused(_NONCHARACTERS, messages)
    for message in messages:
        if message.role != "system" or not message.content:
            continue
        probe = [replace(m, content=mark) if m is message else m for m in kept]
        if mark in template.render(probe):
            continue
        kept = [m for m in kept if m is not message]
        for index, other in enumerate(kept):
            if other.role == "user":
                kept[index] = Message("user", f"{message.content}\n\n{other.content}")
                break
    return kept
