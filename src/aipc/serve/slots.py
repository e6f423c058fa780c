"""How many requests a model works on at once, and who waits how long for what."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque

from aipc.serve.failures import RefusedError

_LONGEST_RETRY_S = 60


class Ticket:
    """A place among those that are worked on, or in the queue for it. Given back with `leave`."""

    def __init__(self, slots: Slots, client: str) -> None:
        self._slots = slots
        self.client = client
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.started = 0.0
        self._left = False

    def leave(self) -> None:
        """Make room for the next; once is enough, more do no harm."""
        if not self._left:
            self._left = True
            self._slots.give_back(self)


class Slots:
    """So many at once; the next is taken from each waiting client in turn, so that none starves another.

    at_once   requests that the model works on
    most      requests that may wait
    """

    def __init__(self, at_once: int, most: int) -> None:
        self._at_once = at_once
        self._most = most
        self._waiting: dict[str, deque[Ticket]] = {}
        self._mean_s = 1.0
        self.running = 0

    @property
    def waiting(self) -> int:
        """How many wait."""
        return sum(map(len, self._waiting.values()))

    def enter(self, client: str, count: int) -> list[Ticket]:
        """Places for `count` answers to one client, or none at all.

        raises   RefusedError (429) if the queue has no room for them
        """
        if self.running + self.waiting + count > self._at_once + self._most:
            raise RefusedError(
                429,
                "queue_full",
                f"{self.running} requests are worked on and {self.waiting} wait; {self._most} may",
                hint="ask again later",
                retry_after_s=self.retry_after_s(),
            )
        tickets = [Ticket(self, client) for _ in range(count)]
        self._waiting.setdefault(client, deque()).extend(tickets)
        self._grant()
        return tickets

    def retry_after_s(self) -> int:
        """When there may be room: as long as those before take, as long as they took lately."""
        rounds = (self.waiting + self.running) / self._at_once
        return max(1, min(_LONGEST_RETRY_S, math.ceil(self._mean_s * rounds)))

    def give_back(self, ticket: Ticket) -> None:
        """What `Ticket.leave` does."""
        if ticket.started:
            self.running -= 1
            self._mean_s += 0.2 * (time.monotonic() - ticket.started - self._mean_s)
        else:
            queue = self._waiting[ticket.client]
            queue.remove(ticket)
            if not queue:
                del self._waiting[ticket.client]
        self._grant()

    def _grant(self) -> None:
        while self._waiting and self.running < self._at_once:
            client = next(iter(self._waiting))
            queue = self._waiting.pop(client)
            ticket = queue.popleft()
            if queue:  # back to the end of the line of clients
                self._waiting[client] = queue
            self.running += 1
            ticket.started = time.monotonic()
            if not ticket.granted.done():
                ticket.granted.set_result(None)
