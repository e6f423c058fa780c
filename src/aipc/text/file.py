"""A text that the user names, to measure or to calibrate with."""

from __future__ import annotations

from pathlib import Path

from aipc.errors import UsageError

_MAX_BYTES = 64 * 2**20
_HINT = "save it as UTF-8 text, with an editor"


def read_text_file(path: Path) -> str:
    """The content of a UTF-8 file.

    raises   UsageError if it cannot be read, is too large, or is no text
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise UsageError(f"{path} is larger than {_MAX_BYTES >> 20} MB", hint="give a part of it")
        if b"\0" in data:  # UTF-8 has them too, but no text does
            raise UsageError(f"{path} is no text: byte {data.index(0)} is 0", hint=_HINT)
        return data.decode("utf-8-sig")
    except OSError as exc:
        raise UsageError(f"{path} cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise UsageError(f"{path} is no UTF-8 text: {exc.reason} at byte {exc.start}", _HINT) from exc
