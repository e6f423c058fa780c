"""uvicorn in front of the application: where it listens, what it logs, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from aipc.errors import UsageError
from aipc.serve.pool import Pool

# Open connections, used or not; more are told to come back.
_MOST_CONNECTIONS = 512
_KEEP_ALIVE_S = 30


class Connection(H11Protocol):
    """HTTP by h11, which bounds the size of headers, as httptools does not. Small pieces are sent at once."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin with a client."""
        # Else the system holds each second piece back for the 40 ms and more of a delayed acknowledgement.
        # asyncio sees to it only for sockets that say they are TCP's, which accepted ones need not do.
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)


class Server(uvicorn.Server):
    """Ends gracefully: answers under way are finished, those that take too long end with an error.

    drain_s   how long they may take
    started   called once it answers, and a signal ends it gracefully
    """

    def __init__(
        self,
        app: FastAPI,
        pool: Pool,
        *,
        drain_s: float,
        verbose: bool,
        started: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_level="info" if verbose else "critical",
                access_log=verbose,
                server_header=False,
                lifespan="on",
                http=Connection,
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_keep_alive=_KEEP_ALIVE_S,
                # By then the models are closed, and the last errors written.
                timeout_graceful_shutdown=int(drain_s) + 5,
            )
        )
        self._pool = pool
        self._drain_s = drain_s
        self._announce = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new connections, wait for the answers, then close the models."""
        closing = asyncio.get_running_loop().call_later(self._drain_s, self._cut_short)
        await super().shutdown(sockets)
        closing.cancel()

    def _cut_short(self) -> None:
        self._closing = asyncio.create_task(self._pool.close())


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    raises   UsageError if the port is taken, or the address is not this machine's
    """
    if not 0 <= port < 2**16:
        raise UsageError(f"there is no port {port}; possible are 0, for a free one, to {2**16 - 1}")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return _bound(family, host, port)
    except (OSError, UnicodeError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise UsageError(
            f"the server cannot listen on {host} port {port}: {reason}",
            hint="another program may be there; take another port with --port",
        ) from exc


def _bound(family: int, host: str, port: int) -> socket.socket:
    """A socket that listens, alone on its port.

    raises   OSError
    """
    with contextlib.ExitStack() as undo:
        listening = undo.enter_context(socket.socket(family, socket.SOCK_STREAM))
        if sys.platform == "win32":
            # There SO_REUSEADDR lets a second server listen on the port; and without either of the two,
            # another program that asks for SO_REUSEADDR would take it over.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            # Elsewhere it says that connections of an ended server, which linger, do not hold the port.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((host, port))
        listening.listen(1024)
        undo.pop_all()
        return listening
