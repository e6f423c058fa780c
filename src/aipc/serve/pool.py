"""The models that are served: loaded when they are asked for, unloaded when memory or time runs out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import psutil

from aipc.errors import DeviceError, MissingExtraError, ModelNotFoundError, SchemeError
from aipc.inventory import Candidate
from aipc.model import Model
from aipc.serve.failures import RefusedError
from aipc.serve.places import Places, Wish, wanted
from aipc.serve.slots import Slots

# Ollama's clients add a tag to a name that has none.
_USUAL_TAG = ":latest"

_LOG = logging.getLogger("aipc.serve")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much the pool may use.

    memory_bytes   of all processes that compute together
    keep_alive_s   how long an idle model stays loaded; below 0 for ever
    at_once        requests that one model works on
    waiting        requests that may wait for one model
    """

    memory_bytes: int
    keep_alive_s: float = 300.0
    at_once: int = 8
    waiting: int = 64


@dataclass(slots=True)
class Entry:
    """A model in a place, loaded or not: a device and the runtime that reaches it.

    users          requests that hold it
    last_used      on the clock of time.monotonic()
    expires        when it is unloaded if nobody asks, on the clock of time.time(); None while it is used,
                   and if it stays for ever
    memory_bytes   of its process when it was last measured, or an estimate; 0 before either
    """

    name: str
    place: Candidate
    slots: Slots
    model: Model | None = None
    loading: asyncio.Task[Model] | None = None
    users: int = 0
    last_used: float = 0.0
    expires: float | None = None
    memory_bytes: int = 0
    timer: asyncio.TimerHandle | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.name} on {self.place}"

    @property
    def labels(self) -> tuple[str, str, str]:
        """What tells it from all others: the model, the device and the runtime, as clients name them."""
        return self.name, self.place.device.word, self.place.runtime.name


@dataclass(frozen=True, slots=True)
class Default:
    """Where a request that names no device was answered last.

    notes   why not in a better place
    """

    entry: Entry
    notes: tuple[str, ...] = ()


class Pool:
    """Models by the names that their owner gave, each in the places that clients ask for.

    places     where each may run; asked in a thread
    load       opens a model in a place; called in a thread
    estimate   the memory in bytes that one which was never loaded may need; called in a thread
    """

    def __init__(
        self,
        names: Iterable[str],
        places: Places,
        load: Callable[[str, Candidate], Model],
        estimate: Callable[[str], int],
        limits: Limits,
    ) -> None:
        self.limits = limits
        self.names = tuple(names)
        self.places = places
        self.entries: dict[tuple[str, str, str], Entry] = {}
        self._defaults: dict[str, Default] = {}
        self._load = load
        self._estimate = estimate
        self._loading = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    def served(self, name: str) -> str:
        """The name under which a model is served.

        raises   ModelNotFoundError
        """
        for known in (name, name.removesuffix(_USUAL_TAG)):
            if known in self.names:
                return known
        raise ModelNotFoundError(
            f"the model {name[:200]!r} is not served here", hint=f"served are {', '.join(self.names)}"
        )

    def taken(self, name: str) -> Default | None:
        """Where requests go that name no device; None if no model is loaded for them."""
        default = self._defaults.get(name)
        return default if default is not None and _is_up(default.entry) else None

    async def find(self, wish: Wish) -> list[Entry]:
        """Where a request may be answered, best first.

        raises   ModelNotFoundError; RefusedError (400) for a place that is not here; what choosing one raises
        """
        name = self.served(wish.model)
        taken = self.taken(name)
        if wish.anywhere and taken is not None:
            return [taken.entry]
        asked = self.entries.get((name, wish.device or "", wish.runtime or ""))
        if asked is not None and _is_up(asked):
            return [asked]
        plan = await asyncio.to_thread(self.places.of, name, pinned=wish.anywhere)
        return [self._entry(name, place) for place in wanted(plan, wish)]

    @contextlib.asynccontextmanager
    async def lease(
        self, wish: Wish, entries: Sequence[Entry], keep_alive_s: float | None = None
    ) -> AsyncIterator[tuple[Entry, Model]]:
        """The model in the first place that takes it, loaded; it stays so until the end of the `with`.

        entries        what `find` gave for the wish
        keep_alive_s   how long it stays afterwards, in place of the usual
        raises         what loading in the last place raises, RefusedError (503) if there is no memory for it
        """
        notes: list[str] = []
        for entry in entries:
            with self._in_use(entry, keep_alive_s):
                try:
                    model = entry.model or await self._loaded(entry)
                except (DeviceError, SchemeError, MissingExtraError) as exc:
                    if entry is entries[-1]:
                        raise
                    notes.append(f"{entry.place} is passed over: {exc.message}")
                    continue
                if wish.anywhere:
                    self._remember(entry, notes)
                yield entry, model
                return

    def unload(self, entry: Entry) -> None:
        """Unload a model now, if nobody uses it."""
        if entry.users == 0:
            self._unload(entry)

    def everywhere(self, name: str) -> list[Entry]:
        """A model in all places where it was ever asked for."""
        return [entry for entry in self.entries.values() if entry.name == name]

    def adopt(self, name: str, place: Candidate, model: Model) -> None:
        """Take a model that was loaded before; it stays as long as one that was just used."""
        entry = self._entry(name, place)
        self._defaults[name] = Default(entry)
        self._hold(entry, model)
        self._schedule_unload(entry, self.limits.keep_alive_s)

    async def close(self) -> None:
        """Unload everything; every answer under way ends with an error."""
        self._closed = True
        for entry in [*self.entries.values()]:
            if entry.loading is not None:
                with contextlib.suppress(Exception):
                    await asyncio.shield(entry.loading)
            self._unload(entry)
        await asyncio.gather(*self._closing)

    def _entry(self, name: str, place: Candidate) -> Entry:
        slots = Slots(self.limits.at_once, self.limits.waiting)
        entry = Entry(name, place, slots)
        return self.entries.setdefault(entry.labels, entry)

    def _remember(self, entry: Entry, notes: Sequence[str]) -> None:
        """Requests that name no device go there as long as it is loaded."""
        known = self._defaults.get(entry.name)
        if notes or known is None or known.entry is not entry:
            self._defaults[entry.name] = Default(entry, tuple(notes))

    @contextlib.contextmanager
    def _in_use(self, entry: Entry, keep_alive_s: float | None) -> Iterator[None]:
        """Hold an entry: it is not unloaded before the end of the `with`."""
        entry.users += 1
        if entry.timer is not None:
            entry.timer.cancel()
        entry.timer = entry.expires = None
        try:
            yield
        finally:
            entry.users -= 1
            entry.last_used = time.monotonic()
            if entry.users == 0 and entry.model is not None and not self._forget_if_lost(entry):
                usual_s = self.limits.keep_alive_s
                self._schedule_unload(entry, usual_s if keep_alive_s is None else keep_alive_s)

    async def _loaded(self, entry: Entry) -> Model:
        """The model, from a load that all who wait for it share and none of them ends."""
        if self._closed:
            raise RefusedError(503, "shutting_down", "the server is shutting down")
        if entry.loading is None:
            entry.loading = asyncio.create_task(self._open(entry))
            # Its error is nobody's if all who waited have gone.
            entry.loading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(entry.loading)

    async def _open(self, entry: Entry) -> Model:
        try:
            async with self._loading:
                if not entry.memory_bytes:
                    entry.memory_bytes = await asyncio.to_thread(self._estimate, entry.name)
                self._make_room(entry)
                model = await asyncio.to_thread(self._load, entry.name, entry.place)
                self._hold(entry, model)
                self._make_room(entry)
        finally:
            entry.loading = None
        if entry.users == 0:  # who asked for it has gone
            self._schedule_unload(entry, self.limits.keep_alive_s)
        return model

    def _hold(self, entry: Entry, model: Model) -> None:
        entry.model = model
        entry.last_used = time.monotonic()
        entry.memory_bytes = _memory_bytes(model)
        watch = getattr(model.session, "when_ended", None)
        if watch is not None:
            loop = asyncio.get_running_loop()
            watch(partial(_in_loop, loop, self._forget_if_lost, entry))
            # It may have ended before it was watched.
            loop.call_soon(self._forget_if_lost, entry)

    def _forget_if_lost(self, entry: Entry) -> bool:
        """Unload an idle model whose process has ended by itself; whether it was so.

        One in use is left to its requests, which start a fresh process.
        """
        if entry.users or entry.model is None or getattr(entry.model.session, "alive", True):
            return False
        _LOG.warning("the process of %s has ended; the next request starts another", entry)
        self._unload(entry)
        return True

    def _make_room(self, new: Entry) -> None:
        """Unload idle models, the longest unused first, until `new` fits beside the others.

        raises   RefusedError (503) if it is not loaded, and what is loaded is in use and leaves no room
        """
        others = [other for other in self.entries.values() if other.model is not None and other is not new]
        for other in others:
            other.memory_bytes = _memory_bytes(other.model) or other.memory_bytes
        for other in sorted(others, key=lambda other: other.last_used):
            if self._fits(new, others):
                return
            if other.users == 0:
                self._unload(other)
                others.remove(other)
        if others and new.model is None and not self._fits(new, others):
            raise RefusedError(
                503,
                "out_of_memory",
                f"there is no memory for {new} beside {', '.join(map(str, others))}, which are answering",
                hint="ask again later, or start the server with more --memory",
                retry_after_s=max(other.slots.retry_after_s() for other in others),
            )

    def _fits(self, new: Entry, others: list[Entry]) -> bool:
        return new.memory_bytes + sum(o.memory_bytes for o in others) <= self.limits.memory_bytes

    def _schedule_unload(self, entry: Entry, keep_alive_s: float) -> None:
        if keep_alive_s < 0:
            return
        entry.expires = time.time() + keep_alive_s
        entry.timer = asyncio.get_running_loop().call_later(keep_alive_s, self._unload, entry)

    def _unload(self, entry: Entry) -> None:
        """Forget the model now, and end its process in a thread: that may take seconds."""
        model, entry.model = entry.model, None
        if entry.timer is not None:
            entry.timer.cancel()
        entry.timer = entry.expires = None
        if model is not None:
            task = asyncio.create_task(asyncio.to_thread(model.close))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)


def _in_loop(loop: asyncio.AbstractEventLoop, call: Callable[..., object], *given: object) -> None:
    """Called from another thread; a loop that has ended needs to know of nothing any more."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *given)


def _is_up(entry: Entry) -> bool:
    """Whether it is loaded, or will be soon."""
    return entry.model is not None or entry.loading is not None


def machine_memory_bytes() -> int:
    """All memory of this machine."""
    return int(psutil.virtual_memory().total)


def _memory_bytes(model: Model | None) -> int:
    """Resident memory of the process that computes; 0 where a session has none of its own."""
    pid = getattr(model.session, "pid", None) if model is not None else None
    if pid is None:
        return 0
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
