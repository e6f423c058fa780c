"""Functions that a model may call, in the form that Phi-4-mini was trained on.

The system message carries their descriptions, and the answer is a list of calls:
<|tool_call|>[{"name": "...", "arguments": {...}}]<|/tool_call|>, sometimes functools[...] or the bare list.

source   the chat template of Phi-4-mini-instruct, and its model card
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aipc.types import Message

_MARKERS = ("<|tool_call|>", "functools")
_OPENING, _CLOSING = "<|tool_call|>", "<|/tool_call|>"
_SYSTEM = "You are a helpful assistant with some tools."


@dataclass(frozen=True, slots=True)
class Call:
    """A function that the model wants called. `arguments` is what was between the braces, as JSON text."""

    id: str
    name: str
    arguments: Mapping[str, Any]

    @property
    def arguments_text(self) -> str:
        """The arguments as OpenAI's clients want them."""
        return json.dumps(self.arguments, ensure_ascii=False)


def with_tools(messages: Sequence[Message], functions: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The conversation with the functions in its system message."""
    described = json.dumps(list(functions), ensure_ascii=False)
    first = messages[0] if messages and messages[0].role == "system" else Message("system", _SYSTEM)
    rest = messages[1:] if messages and messages[0].role == "system" else messages
    return [Message("system", first.content, described), *rest]


def said(calls: Sequence[tuple[str, object]]) -> str:
    """Earlier calls, as name and arguments, in the words the model used for them."""
    listed = [{"name": name, "arguments": arguments} for name, arguments in calls]
    return f"{_OPENING}{json.dumps(listed, ensure_ascii=False)}{_CLOSING}"


def forced(functions: Sequence[Mapping[str, Any]], *, several: bool) -> dict[str, Any]:
    """A response_format that lets nothing through but calls of these functions."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": function["name"]},
                # What is not described is not an argument, unless the schema says otherwise.
                "arguments": {
                    "additionalProperties": False,
                    **(function.get("parameters") or {"type": "object"}),
                },
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for function in functions
    ]
    items = calls[0] if len(calls) == 1 else {"anyOf": calls}
    schema: dict[str, Any] = {"type": "array", "items": items, "minItems": 1}
    if not several:
        schema["maxItems"] = 1
    return {"type": "json_schema", "json_schema": {"schema": schema}}


class CallReader:
    """Tells calls from text while an answer comes: text passes, what may become a call waits for the end.

    names   of the functions; a call of any other is text
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._passed = False
        self._calling = False
        self._held = ""

    def read(self, text: str, *, ended: bool) -> tuple[str, list[Call]]:
        """Take the next piece: what is certainly text, and once the answer has ended the calls."""
        passed = self._push(text)
        if not ended:
            return passed, []
        calls = _parse(self._held, self._names)
        return (passed if calls else passed + self._held), calls

    def _push(self, text: str) -> str:
        if not self._names:
            return text
        self._held += text
        if self._calling:
            return ""
        start = self._held.lstrip()
        if not self._passed and (not start or start[0] == "["):
            return ""
        found = [at for marker in _MARKERS if (at := self._held.find(marker)) >= 0]
        self._calling = bool(found)
        cut = min(found) if found else len(self._held) - _longest_beginning(self._held)
        text, self._held = self._held[:cut], self._held[cut:]
        self._passed = self._passed or bool(text)
        return text


def _longest_beginning(text: str) -> int:
    """How many characters at the end of a text could begin a marker."""
    lengths = (n for marker in _MARKERS for n in range(len(marker) - 1, 0, -1) if text.endswith(marker[:n]))
    return max(lengths, default=0)


def _parse(text: str, names: Collection[str]) -> list[Call]:
    """The calls in a text that holds nothing else, or none."""
    text = text.strip()
    for marker in _MARKERS:
        text = text.removeprefix(marker).lstrip()
    try:
        listed, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return []
    calls = [_call(item, names) for item in (listed if isinstance(listed, list) else [listed])]
    found = [call for call in calls if call is not None]
    return found if len(found) == len(calls) else []


def _call(item: object, names: Collection[str]) -> Call | None:
    if isinstance(item, dict) and isinstance(item.get("function"), dict):
        item = item["function"]
    if not isinstance(item, dict) or item.get("name") not in names:
        return None
    arguments = item.get("arguments", item.get("parameters", {}))
    if not isinstance(arguments, dict):
        return None
    return Call(f"call_{secrets.token_hex(12)}", item["name"], arguments)
