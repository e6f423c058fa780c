"""What stands before every route: who may ask, from where, how much, and what a browser may do with it."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aipc.errors import AipcError
from aipc.serve.failures import RefusedError, body_of, headers_of, status_of

# Some thirty times the text that fits into the longest context.
MAX_BODY_BYTES = 4 * 2**20
MAX_BODY_S = 30.0

# They tell nothing but that the server is there, and what its page looks like.
OPEN_PATHS = frozenset({"/", "/health"})
STATIC_PREFIX = "/static/"

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # The page's own files and this server, and nothing from anywhere else.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
}


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may ask.

    api_key   what every request must carry, or None on loopback
    hosts     names that this server is called by, besides IP addresses and localhost
    origins   web pages elsewhere that may ask, such as "https://chat.example.org"
    """

    api_key: str | None = None
    hosts: Collection[str] = ()
    origins: Collection[str] = ()


class Guard:
    """Refuses, before the application sees it, a request that the policy does not let through."""

    def __init__(self, app: ASGIApp, policy: Policy) -> None:
        self._app = app
        self._policy = policy
        self._hosts = {"localhost", *(host.lower() for host in policy.hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check, then hand on with the whole body at hand."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        send = _with_headers(send, self._cors(origin))
        try:
            self._check_host(headers)
            self._check_origin(origin, headers, scope["scheme"])
            if _is_preflight(scope, headers):
                await JSONResponse(None, 204, _PREFLIGHT)(scope, receive, send)
                return
            self._check_key(headers, scope["path"])
            body = await _read_body(headers, receive)
        except AipcError as exc:
            answer = JSONResponse(body_of(exc, scope["path"]), status_of(exc), headers_of(exc))
            await answer(scope, receive, send)
            return
        if body is not None:
            await self._app(_as_json(scope), _replayed(body, receive), send)

    def _check_host(self, headers: Headers) -> None:
        """A page elsewhere can make its own name mean this machine, but not make us answer to it."""
        name = _host_name(headers.get("host", ""))
        if name not in self._hosts and not _is_address(name):
            raise RefusedError(
                403,
                "wrong_host",
                f"this server is not called {name[:100]!r}",
                hint="ask by its address, or name it with --allow-host",
            )

    def _check_origin(self, origin: str | None, headers: Headers, scheme: str) -> None:
        own = f"{scheme}://{headers.get('host', '')}"
        if origin is not None and origin != own and origin not in self._policy.origins:
            raise RefusedError(
                403,
                "wrong_origin",
                "web pages from elsewhere may not ask here",
                hint="allow a page with --cors ORIGIN",
            )

    def _check_key(self, headers: Headers, path: str) -> None:
        expected = self._policy.api_key
        if expected is None or path in OPEN_PATHS or path.startswith(STATIC_PREFIX):
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        # Headers are bytes, of which the framework makes Latin-1.
        right = hmac.compare_digest(given.strip().encode("latin-1"), expected.encode())
        if kind.lower() != "bearer" or not right:
            raise RefusedError(
                401,
                "invalid_api_key",
                "the API key is missing or wrong",
                hint="send the header Authorization: Bearer KEY",
            )

    def _cors(self, origin: str | None) -> dict[str, str]:
        if origin is None or origin not in self._policy.origins:
            return {}
        return {
            "Access-Control-Allow-Origin": origin,
            "Vary": "Origin",
            "Cross-Origin-Resource-Policy": "cross-origin",
        }


_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "authorization, content-type, *",
    "Access-Control-Max-Age": "600",
}


def _as_json(scope: Scope) -> Scope:
    """Every body is JSON here, whatever curl says that it sends; a form of a page elsewhere was refused."""
    others = [(name, value) for name, value in scope["headers"] if name != b"content-type"]
    scope["headers"] = [*others, (b"content-type", b"application/json")]
    return scope


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    return scope["method"] == "OPTIONS" and "access-control-request-method" in headers


def _host_name(host: str) -> str:
    """A Host header without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine only."""
    if host == "localhost":
        return True
    return _is_address(host) and ipaddress.ip_address(host).is_loopback


async def _read_body(headers: Headers, receive: Receive) -> bytes | None:
    """The body, or None if the client has gone.

    raises   RefusedError (413, 408)
    """
    announced = headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(MAX_BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return None
                body += message.get("body", b"")
                if len(body) > MAX_BODY_BYTES:
                    raise _too_large()
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise RefusedError(408, "too_slow", f"the body took longer than {MAX_BODY_S:.0f} s") from None


def _too_large() -> RefusedError:
    return RefusedError(413, "too_large", f"the body is larger than {MAX_BODY_BYTES} bytes")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """`receive` for the application: first the body, then what the client does next."""
    parts: Iterable[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def next_message() -> Message:
        return next(parts, None) or await receive()  # type: ignore[call-overload]

    return next_message


def _with_headers(send: Send, more: dict[str, str]) -> Send:
    async def send_with(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(_HEADERS | more)
        await send(message)

    return send_with
