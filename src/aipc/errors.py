"""Every error that aipc raises on purpose.

    AipcError
    ├── UsageError               2   a word, value or combination that does not exist
    │   └── PromptTooLongError       more tokens than the model or the device takes
    ├── ModelNotFoundError       3   no such alias, folder or repository, or no access to it
    │   └── DownloadError            it exists, but could not be fetched
    ├── CheckpointError          4   a file or tensor is damaged, missing or not what it says
    ├── UnsupportedModelError    5   a sound model that aipc cannot convert or run
    │   └── SchemeError              a quantisation that does not fit the model or the device
    ├── DeviceError              6   a device is absent, unreachable, or refused the model
    ├── StorageError             7   no room, or no right to write
    ├── MissingExtraError        8   a package that this work needs is not installed
    └── RuntimeFailedError       9   the runtime below broke while it was working
        └── EngineLostError          its process ended or hung; the same request may be asked again

The numbers are the exit codes of the command line. A message says what was found and what is
possible; a hint says what to do.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


class AipcError(Exception):
    """The root: catch this to catch everything that aipc raises on purpose.

    message   what was found and, where it helps, what is possible; one sentence, no trailing advice
    hint      what to do about it, or "" where nothing can be done
    """

    exit_code = 1
    code = "error"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            # A traceback shows notes: a script's author reads the hint there.
            self.add_note(f"hint: {hint}")


class UsageError(AipcError):
    """A word, value or combination that does not exist."""

    exit_code = 2
    code = "invalid_request"


class PromptTooLongError(UsageError):
    """The prompt, or the prompt with its answer, exceeds what the model or the device takes."""

    code = "context_length_exceeded"


class ModelNotFoundError(AipcError):
    """No such alias, folder or repository, or no access to it."""

    exit_code = 3
    code = "model_not_found"


class DownloadError(ModelNotFoundError):
    """The model exists, but could not be fetched: no network, or a server that failed."""

    code = "download_failed"


class CheckpointError(AipcError):
    """A file or tensor of a model is damaged, missing, or not what it says it is."""

    exit_code = 4
    code = "bad_checkpoint"


class UnsupportedModelError(AipcError):
    """A sound model that aipc cannot convert or run."""

    exit_code = 5
    code = "unsupported_model"


class SchemeError(UnsupportedModelError):
    """A quantisation scheme that does not fit the model's shapes or the device."""

    code = "unsupported_scheme"


class DeviceError(AipcError):
    """A device is absent, cannot be reached, or refused the model."""

    exit_code = 6
    code = "device_unavailable"


class StorageError(AipcError):
    """No room on the disk, or no right to write there."""

    exit_code = 7
    code = "storage"


class MissingExtraError(AipcError):
    """A package that this work needs is not installed."""

    exit_code = 8
    code = "missing_extra"


class RuntimeFailedError(AipcError):
    """The runtime below broke while it was working."""

    exit_code = 9
    code = "runtime_failed"


class EngineLostError(RuntimeFailedError):
    """The process that computes has ended or hung. The next request starts a fresh one."""

    code = "engine_lost"


def shown(value: object) -> str:
    """An untrusted value as a short printable word for a message, however long or deep it is."""
    import reprlib

    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = 120
    return brief.repr(value)


def require(module: str, extra: str) -> ModuleType:
    """Import `module`, which the extra `extra` of aipc installs, without the telemetry it may bring.

    raises   MissingExtraError if it, or something it imports, is not installed
    """
    try:
        with _without_openvino_telemetry():
            return importlib.import_module(module)
    except ImportError as exc:
        raise MissingExtraError(
            f"this needs the package {module!r}, which could not be imported ({exc})",
            hint=f'pip install "aipc[{extra}]"',
        ) from exc


@contextmanager
def _without_openvino_telemetry() -> Iterator[None]:
    """Importing openvino reports to Google Analytics, unless the package that does so is missing."""
    name = "openvino_telemetry"
    if name in sys.modules:
        yield
        return
    # With None in its place, an import of it raises ImportError.
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]
