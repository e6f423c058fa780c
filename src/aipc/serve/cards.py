"""What clients are told of a served model: where it may run, and where it does."""

from __future__ import annotations

import asyncio

from aipc.errors import AipcError
from aipc.inventory import Candidate
from aipc.serve.failures import message_of
from aipc.serve.openai_schema import ModelDetails, PlaceCard
from aipc.serve.places import warning
from aipc.serve.pool import Pool


async def details(pool: Pool, name: str) -> ModelDetails:
    """A model's places, and the one that is taken where none is asked for."""
    taken = pool.taken(name)
    return await asyncio.to_thread(_details, pool, name, None if taken is None else taken.entry.place)


def _details(pool: Pool, name: str, taken: Candidate | None) -> ModelDetails:
    try:
        chosen = pool.places.of(name, pinned=True)
        possible = pool.places.of(name, pinned=False).candidates
    except AipcError as exc:
        return ModelDetails(id=name, created=0, places=[], auto=None, notes=[message_of(exc)])
    return ModelDetails(
        id=name,
        created=0,
        places=[_card(name, place) for place in possible],
        auto=_card(name, taken or chosen.candidates[0]),
        notes=list(chosen.notes),
    )


def _card(name: str, place: Candidate) -> PlaceCard:
    device, runtime = place.device, place.runtime
    return PlaceCard(
        device=device.word,
        runtime=runtime.name,
        device_name=device.name,
        kind=device.kind,
        runtime_name=runtime.title,
        warning=warning(name, place),
    )
