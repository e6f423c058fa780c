"""ONNX Runtime's exceptions, which are all RuntimeError, in our words. They are told apart by their text."""

from __future__ import annotations

import re

from aipc.errors import (
    AipcError,
    CheckpointError,
    DeviceError,
    RuntimeFailedError,
    UnsupportedModelError,
    UsageError,
)

_NO_MEMORY = (
    "bad_alloc",
    "out of memory",
    "failed to allocate",
    "allocation failed",
    "cuda failure 2",
    "e_outofmemory",
    "8007000e",
)
_NO_PROVIDER = (
    "cuda interface not available",
    "not been built with",
    "unknown provider name",
    "is not supported in this build",
    "no cuda-capable device",
    "failed to load library",
    "loadlibrary failed",
    "cuda driver version is insufficient",
    "dml adapter",
)
_DAMAGED = (
    "error opening",
    "file doesn't exist",
    "external data path",
    "external initializer",
    "out of bounds",
    "protobuf parsing failed",
    "error encountered while parsing",
    "json error",
    "no such file",
    "invalid model",
    "load model from",
    "this is an invalid model",
)
_UNSUPPORTED = ("unsupported model_type", "is not a registered function", "no op registered", "opset")
_UNKNOWN_KEY = re.compile(r"genai_config\.json.*?(\S+?):\s*Unknown value \"(.{1,60}?)\"", re.DOTALL)
_GRAMMAR = ("error creating grammar", "error computing mask", "grammar", "regex", "schema")


def translated(exc: BaseException, folder: str, device: str) -> AipcError:
    """Ours for an exception of ONNX Runtime while it loaded `folder` on `device`. Raise it `from exc`.

    RuntimeFailedError itself means that nothing is known about the cause.
    """
    text, words = str(exc).lower(), gist(exc)
    if isinstance(exc, MemoryError) or _says(text, _NO_MEMORY):
        return out_of_memory(exc, device)
    if _says(text, _NO_PROVIDER):
        return DeviceError(f"{device} does not work here: {words}", hint="take --device CPU")
    unknown = _UNKNOWN_KEY.search(str(exc))
    if unknown:
        return CheckpointError(
            f"{folder}: genai_config.json has the key {unknown[2]!r} in {unknown[1]!r}, which the installed "
            "onnxruntime-genai does not know",
            hint='the folder was made for another version: pip install -U "aipc[onnx]", or convert the '
            "model again",
        )
    if _says(text, _UNSUPPORTED):
        return UnsupportedModelError(
            f"the installed onnxruntime-genai cannot run {folder}: {words}",
            hint='pip install -U "aipc[onnx]", or convert the model again',
        )
    # Windows says in the user's language that a file is missing.
    if isinstance(exc, FileNotFoundError) or _says(text, _DAMAGED):
        return CheckpointError(
            f"{folder} is damaged or not a model for ONNX Runtime: {words}",
            hint="convert or download the model again",
        )
    return RuntimeFailedError(f"ONNX Runtime could not load the model on {device}: {words}")


def failed(exc: BaseException, device: str, *, guided: bool) -> AipcError:
    """Ours for an exception while it answered a request."""
    text = str(exc).lower()
    if guided and _says(text, _GRAMMAR):
        return UsageError(
            f"the runtime cannot follow this response_format: {gist(exc)}",
            hint="use a simpler schema or pattern",
        )
    if isinstance(exc, MemoryError) or _says(text, _NO_MEMORY):
        return out_of_memory(exc, device)
    return RuntimeFailedError(f"ONNX Runtime could not answer: {gist(exc)}")


def out_of_memory(exc: BaseException, device: str) -> DeviceError:
    """The same on every way to it."""
    return DeviceError(
        f"{device} has not enough memory for this model and prompt: {gist(exc)}",
        hint="take int4 weights, a smaller model, a shorter prompt or a smaller --max-new-tokens",
    )


def gist(exc: BaseException, limit: int = 300) -> str:
    """The words of an exception for people: without the places in its source."""
    text = str(exc).rpartition("[ONNXRuntimeError]")[2] or str(exc)
    # What llguidance adds is its parser's inside.
    text = text.partition("<state>")[0]
    text = re.sub(r"\S+\.(cc|cpp|h):\d+", "", text)
    text = re.sub(r"^[ :]*\d+ : [A-Z_]+ : ", "", text)
    return (" ".join(text.split()) or type(exc).__name__)[:limit]


def _says(text: str, phrases: tuple[str, ...]) -> bool:
    return any(phrase in text for phrase in phrases)
