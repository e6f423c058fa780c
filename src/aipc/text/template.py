"""A model's chat template, which turns a conversation into the text that the model was trained on."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Template, TemplateError

from aipc.errors import CheckpointError, UsageError
from aipc.phi3 import read_json_object
from aipc.text.sandbox import OverrunError, RefusalError, Sandbox
from aipc.types import Message

_MAX_SOURCE = 128 * 1024
_MAX_SECONDS = 5.0
# What a template may write: this, and so many times the conversation itself.
_BASE_BUDGET = 4_000_000
_BUDGET_PER_CHARACTER = 64

# Whatever Python raises for a wrong value in a template's expressions.
_BROKEN = (
    TemplateError,
    TypeError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    RecursionError,
    MemoryError,
    SyntaxError,
)


class ChatTemplate:
    """A compiled template. Rendering keeps no state: several threads may share one.

    origin    the file it comes from, for messages
    special   texts of the special tokens that a template may name: bos_token, eos_token, ...
    seconds   a rendering that takes more of a processor is given up
    raises    CheckpointError if it is not a template
    """

    def __init__(
        self, source: str, origin: Path | str, special: Mapping[str, object], seconds: float = _MAX_SECONDS
    ) -> None:
        self._origin = origin
        self._special = dict(special)
        self._seconds = seconds
        if len(source) > _MAX_SOURCE:
            raise CheckpointError(f"{origin}: a chat template of {len(source)} characters is no template")
        try:
            sandbox = self._sandbox(0)
            self._code = sandbox.compile(sandbox.metered(source))
        except _BROKEN as exc:
            raise self._broken(exc) from exc

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = True) -> str:
        """The text of a conversation, with the head of the answer if `generation_prompt`.

        raises   UsageError if the template refuses the conversation, CheckpointError if it fails
        """
        sandbox = self._sandbox(sum(len(message.content) + len(message.tools or "") for message in messages))
        try:
            template = Template.from_code(sandbox, self._code, sandbox.make_globals(None))
            return template.render(
                self._special,
                messages=[_as_object(message) for message in messages],
                add_generation_prompt=generation_prompt,
                tools=None,
                documents=None,
            )
        except RefusalError as exc:
            raise UsageError(
                f"the model's chat template refuses this conversation: {exc}",
                hint="most templates want user and assistant in turn, a system message first or not at all",
            ) from exc
        except _BROKEN as exc:
            raise self._broken(exc) from exc

    def _sandbox(self, characters: int) -> Sandbox:
        budget = _BASE_BUDGET + _BUDGET_PER_CHARACTER * characters
        return Sandbox(budget, time.thread_time() + self._seconds)

    def _broken(self, exc: BaseException) -> CheckpointError:
        what = exc if isinstance(exc, OverrunError) else f"{type(exc).__name__}: {exc}"
        return CheckpointError(
            f"{self._origin}: the chat template cannot be used ({' '.join(str(what).split())[:300]})",
            hint="repair the template, or pass the whole prompt yourself with raw=True",
        )


def _as_object(message: Message) -> dict[str, str]:
    """A message as templates know it; they ask whether it has tools, so most have no such key."""
    plain = {"role": message.role, "content": message.content}
    return plain if message.tools is None else {**plain, "tools": message.tools}


def read_chat_template(
    folder: Path, config: Mapping[str, Any], special: Mapping[str, object]
) -> ChatTemplate | None:
    """The compiled template of a folder, or None if it has none.

    config   of tokenizer_config.json
    raises   CheckpointError for a file that is not UTF-8, not a template, or too large
    """
    found = chat_template_source(folder, config)
    return ChatTemplate(*found, special) if found else None


def chat_template_source(folder: Path, config: Mapping[str, Any]) -> tuple[str, Path] | None:
    """The template of a folder and its file: chat_template.jinja, else what tokenizer_config.json holds.

    raises   CheckpointError for a file that is not UTF-8, or a value that is not text
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        return _read(path), path
    path = folder / "tokenizer_config.json"
    source = config.get("chat_template")
    if isinstance(source, list):
        named = {str(item.get("name")): item.get("template") for item in source if isinstance(item, dict)}
        source = named.get("default", next(iter(named.values()), None))
    if source is None:
        return None
    if not isinstance(source, str):
        raise CheckpointError(f"{path}: chat_template is a {type(source).__name__}, not a template")
    return source, path


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(4 * _MAX_SOURCE + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise CheckpointError(f"{path} cannot be read: {exc}", hint="download the model again") from exc


def optional_json_object(path: Path) -> dict[str, Any]:
    """The object in a small JSON file, or an empty one where there is no such file.

    raises   CheckpointError if it is damaged
    """
    return read_json_object(path) if path.exists() else {}
