"""aipc serve: models behind OpenAI's and Ollama's APIs, on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from argparse import ArgumentParser, Namespace
from typing import TYPE_CHECKING

import aipc
from aipc.cli import console
from aipc.errors import UsageError, require

if TYPE_CHECKING:
    from socket import socket as Socket  # noqa: N812 - it is a class

    from aipc.inventory import Candidate
    from aipc.model import Model
    from aipc.serve.guard import Policy
    from aipc.serve.pool import Pool
    from aipc.serve.server import Server

KEY_VARIABLE = "AIPC_API_KEY"
_SHORTEST_KEY = 16


def add_arguments(parser: ArgumentParser) -> None:
    """The words of `aipc serve`."""
    parser.usage = "aipc serve [MODEL ...] [options]"
    parser.epilog = (
        "The first MODEL is loaded before the server answers, the others when they are asked for. "
        "Without MODEL, demo and every converted model on this machine are served. "
        f"{KEY_VARIABLE} holds the API key that clients must send; any address but loopback needs one, "
        "and one is made and shown where there is none."
    )
    parser.add_argument("models", metavar="MODEL", nargs="*", default=[], help="alias, hub id or folder")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument(
        "--device",
        default="auto",
        help="NPU, GPU, GPU.1, CPU ...: clients can ask for no other; auto leaves it to them (default: auto)",
    )
    parser.add_argument(
        "--runtime",
        help="what runs the models, such as openvino; clients can then ask for no other "
        "(default: by device and folder)",
    )
    group = parser.add_argument_group("how much")
    group.add_argument(
        "--keep-alive",
        metavar="TIME",
        default="5m",
        help="unload a model that was idle so long: 90s, 5m, 2h; -1 never does (default: 5m)",
    )
    group.add_argument(
        "--memory", type=float, metavar="GB", help="for all models together (default: 80%% of the machine's)"
    )
    group.add_argument(
        "--parallel", type=int, metavar="N", default=8, help="answers of one model at once (default: 8)"
    )
    group.add_argument(
        "--queue",
        type=int,
        metavar="N",
        default=64,
        help="requests that may wait for one model (default: 64)",
    )
    group.add_argument(
        "--drain", metavar="TIME", default="30s", help="how long answers may take after Ctrl+C (default: 30s)"
    )
    group = parser.add_argument_group("who may ask")
    group.add_argument(
        "--cors", metavar="ORIGIN", action="append", default=[], help="a web page elsewhere; repeatable"
    )
    group.add_argument(
        "--allow-host", metavar="NAME", action="append", default=[], help="a name of this server; repeatable"
    )


def run(args: Namespace) -> int:
    """Serve until Ctrl+C, and return the exit code."""
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        require(package, "serve")
    from aipc.serve.app import create_app
    from aipc.serve.server import Server, listen
    from aipc.serve.times import parse_seconds

    pool, policy = _pool(args), _policy(args)
    drain_s = parse_seconds(args.drain, "--drain")
    with listen(args.host, args.port) as socket:
        first = pool.names[0]
        model = _load(first, args) if args.models else None
        host = f"[{args.host}]" if ":" in args.host else args.host
        address = f"http://{host}:{socket.getsockname()[1]}"

        def announce() -> None:
            console.note(f"serving {', '.join(pool.names)}")
            console.note(f"OpenAI: {address}/v1   page: {address}   Ctrl+C ends")

        server = Server(
            create_app(pool, policy), pool, drain_s=drain_s, verbose=args.verbose, started=announce
        )
        # uvicorn raises the signal again once it has ended well; whether it gets here depends on the moment.
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(_serve(server, pool, first, model, socket))
    console.note("the server has ended")
    return 0


async def _serve(server: Server, pool: Pool, first: str, model: Model | None, socket: Socket) -> None:
    if model is not None and model.candidate is not None:
        pool.adopt(first, model.candidate, model)
    await server.serve(sockets=[socket])


def _pool(args: Namespace) -> Pool:
    from aipc.serve.catalog import expected_memory_bytes, served_names
    from aipc.serve.places import Places
    from aipc.serve.pool import Limits, Pool, machine_memory_bytes
    from aipc.serve.times import parse_seconds

    for name, value in (("--parallel", args.parallel), ("--queue", args.queue + 1)):
        if value < 1:
            raise UsageError(f"{name} is {getattr(args, name[2:])}; it must be more")
    memory = 0.8 * machine_memory_bytes() if args.memory is None else args.memory * 1e9
    if not memory > 0:
        raise UsageError(f"--memory is {args.memory}; it must be above 0")
    limits = Limits(int(memory), parse_seconds(args.keep_alive, "--keep-alive"), args.parallel, args.queue)
    names = served_names(args.models)
    return Pool(names, Places(args.device, args.runtime), _load_quietly, expected_memory_bytes, limits)


def _policy(args: Namespace) -> Policy:
    """Who may ask; an address that others reach is never without a key.

    raises   UsageError for a key that can be guessed
    """
    from aipc.serve.guard import Policy, is_loopback

    key = os.environ.get(KEY_VARIABLE) or None
    if not is_loopback(args.host):
        if key is None:
            key = secrets.token_urlsafe(32)
            console.note(f"API key: {key}")
        elif len(key) < _SHORTEST_KEY:
            raise UsageError(
                f"{KEY_VARIABLE} has {len(key)} characters; where others reach the server, "
                f"{_SHORTEST_KEY} are needed",
                hint=f"leave {KEY_VARIABLE} empty, and one is made",
            )
    return Policy(key, (args.host, *args.allow_host), tuple(args.cors))


def _load(name: str, args: Namespace) -> Model:
    """The model, with progress on stderr."""
    with console.progress(f"loading {name}") as progress:
        model = aipc.load(name, device=args.device, runtime=args.runtime, progress=progress)
    for sentence in model.notes:
        console.note(sentence)
    return model


def _load_quietly(name: str, place: Candidate) -> Model:
    """The model, loaded while others answer."""
    console.note(f"loading {name} on {place}")
    model = aipc.load(name, device=place.device.word, runtime=place.runtime.name)
    for sentence in model.notes:
        console.note(sentence)
    return model
