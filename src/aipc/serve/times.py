"""Times as people and Ollama's clients write them."""

from __future__ import annotations

import re

from aipc.errors import UsageError, shown

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h)"


def parse_seconds(text: str, what: str) -> float:
    """A time such as 90, 90s, 1h30m or -1; below 0 is for ever.

    raises   UsageError
    """
    if re.fullmatch(r"-?\d{1,9}(\.\d{1,9})?", text):
        return float(text)
    if not re.fullmatch(f"-?({_PART})+", text):
        raise UsageError(f"{what} is {shown(text)}, which is no time", hint="such as 90s, 5m, 1h30m or -1")
    value = sum(float(count) * _UNITS[unit] for count, unit in re.findall(_PART, text))
    return -value if text.startswith("-") else value
