"""What goes wrong, as HTTP says it: a status, and the body that OpenAI's or Ollama's clients read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from aipc.errors import AipcError, ModelNotFoundError, PromptTooLongError, UsageError

OLLAMA_PREFIX = "/api/"
# What Ollama does with its models.
_MANAGING = frozenset({"pull", "push", "create", "copy", "delete"})


class RefusedError(UsageError):
    """A request that the server does not take, whatever the model.

    status        of HTTP
    retry_after_s when it may be asked again, or None
    param         the field that is wrong, or None
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        hint: str = "",
        *,
        retry_after_s: int | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.status = status
        self.code = code
        self.retry_after_s = retry_after_s
        self.param = param


class Failure(BaseModel):
    """What OpenAI's clients read of an error."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class FailureBody(BaseModel):
    """The body of an error."""

    error: Failure


class OllamaFailureBody(BaseModel):
    """The body of an error in Ollama's API."""

    error: str


def status_of(exc: Exception) -> int:
    """The status for an error; 500 is for those that are nobody's request's fault."""
    if isinstance(exc, RefusedError):
        return exc.status
    if isinstance(exc, UsageError):
        return 400
    if isinstance(exc, ModelNotFoundError):
        return 404
    return 500


def headers_of(exc: Exception) -> dict[str, str]:
    """Headers that belong to an error."""
    if isinstance(exc, RefusedError) and exc.retry_after_s is not None:
        return {"Retry-After": str(exc.retry_after_s)}
    if isinstance(exc, RefusedError) and exc.status == 401:
        return {"WWW-Authenticate": "Bearer"}
    return {}


def body_of(exc: Exception, path: str) -> dict[str, Any]:
    """The body for an error, in the manner of the API that `path` belongs to."""
    if path.startswith(OLLAMA_PREFIX):
        return {"error": message_of(exc)}
    code = exc.code if isinstance(exc, AipcError) else "internal_error"
    param = "messages" if isinstance(exc, PromptTooLongError) else None
    param = "model" if isinstance(exc, ModelNotFoundError) else param
    param = exc.param if isinstance(exc, RefusedError) else param
    return {"error": {"message": message_of(exc), "type": _type_of(exc), "param": param, "code": code}}


def message_of(exc: Exception) -> str:
    """An error in a sentence, with what to do."""
    if not isinstance(exc, AipcError):
        # Its words may hold what was asked, and are no use to who reads them.
        return f"the server itself has failed, with {type(exc).__name__}"
    return f"{exc.message}; {exc.hint}" if exc.hint else exc.message


def not_here(method: str, path: str) -> str:
    """What to tell who asks for something that this server does not have."""
    words = f"there is no {method} {path[:200]} here"
    last = path.rstrip("/").rpartition("/")[2]
    if last.startswith("embed"):
        return f"{words}: no Phi model makes embeddings"
    if path.startswith(OLLAMA_PREFIX) and last in _MANAGING:
        return f"{words}: which models are served is said when it is started, by aipc serve MODEL ..."
    return f"{words}; OpenAI's API begins with /v1, Ollama's with /api, and /openapi.json lists all there is"


def wrong_field(errors: Sequence[Any], path: str) -> dict[str, Any]:
    """The body for a request that does not fit its description, from pydantic's list of what is wrong."""
    # Where a value may be of several kinds, the error that lies deepest is of the kind that was meant.
    first = max(errors, key=lambda error: len(error["loc"]))
    # Parts with brackets are pydantic's names for kinds of values.
    where = [str(part) for part in first["loc"] if part != "body" and "[" not in str(part)]
    name = where[0] if where else None
    # pydantic says so of the words of our own checks.
    said = first["msg"].removeprefix("Value error, ")
    message = f"{'.'.join(where)[:200] or 'the body'}: {said[:300]}"
    if path.startswith(OLLAMA_PREFIX):
        return {"error": message}
    failure = {"message": message, "type": "invalid_request_error", "param": name, "code": "invalid_request"}
    return {"error": failure}


def _type_of(exc: Exception) -> str:
    status = status_of(exc)
    if status == 401:
        return "authentication_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
