"""Streams that block, read for an event loop: every one of them has a thread, however many there are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator

from aipc.serve.reading import read
from aipc.types import Chunk, Stream


def test_streams_that_wait_for_each_other_all_go_on() -> None:
    count = 12
    together = threading.Barrier(count, timeout=60)

    def chunks(name: str) -> Generator[Chunk, None, None]:
        together.wait()
        yield Chunk(name, (1,))

    async def answer(name: str) -> str:
        batches = read(lambda: Stream(chunks(name), threading.Event()))
        return "".join([chunk.text async for batch in batches for chunk in batch])

    async def round_of_answers() -> list[str]:
        return await asyncio.gather(*(answer(str(number)) for number in range(count)))

    # The threads of the first round are there for the second.
    for _ in range(2):
        assert asyncio.run(round_of_answers()) == [str(number) for number in range(count)]
