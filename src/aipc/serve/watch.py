"""What the devices are doing, sampled as long as somebody asks: the page, or Prometheus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from pydantic import BaseModel

from aipc.errors import AipcError
from aipc.model import Model
from aipc.monitor import DeviceSample, Monitor, Sample
from aipc.monitor.usage import find_device
from aipc.serve.pool import Default, Entry, Pool

# Longer than Prometheus waits between two questions.
_IDLE_S = 90.0


class DeviceUse(BaseModel):
    """A device, as `aipc top` shows it. What can't be read is null.

    utilisation    0 to 1, in the last second
    not_readable   why there is no utilisation, or ""
    """

    id: str
    name: str
    kind: str
    utilisation: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    power_w: float | None
    not_readable: str


class LoadedModel(BaseModel):
    """A model that is loaded, and what answers for it; `device` and `runtime` are the words to ask for it.

    device_id   which of the devices answers; null where that is not certain
    auto        whether it answers where no device is asked for
    notes       what was said when it was loaded, a sentence each
    """

    id: str
    device: str
    device_id: str | None
    runtime: str
    runtime_name: str
    precision: str
    auto: bool
    notes: list[str]


class Activity(BaseModel):
    """The devices, and the models that are loaded.

    time_s    of the sample, in seconds since the epoch; null where there is none
    failure   why there is no sample, or ""
    """

    time_s: float | None
    failure: str
    devices: list[DeviceUse]
    models: list[LoadedModel]


class Watch:
    """A monitor that is started when it is first asked, and ended when nobody asks any more.

    make     a new monitor
    sample   the latest, or None
    """

    def __init__(self, make: Callable[[], Monitor] = lambda: Monitor(history=2)) -> None:
        self.sample: Sample | None = None
        self.failure = ""
        self._make = make
        self._monitor: Monitor | None = None
        self._starting = asyncio.Lock()
        self._timer: asyncio.TimerHandle | None = None

    async def refresh(self) -> None:
        """Take the latest sample; the first question waits for one."""
        async with self._starting:
            try:
                monitor = self._monitor
                if monitor is None:
                    monitor = self._monitor = await asyncio.to_thread(self._start)
            except AipcError as exc:
                self.sample, self.failure = None, exc.message
                return
            self.failure = monitor.failure
        if self.failure:
            self.sample = None
            self.close()
            return
        self.sample = monitor.samples[-1]
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(_IDLE_S, self.close)

    def close(self) -> None:
        """End the sampling; the next question starts it again."""
        if self._timer is not None:
            self._timer.cancel()
        monitor, self._monitor, self._timer = self._monitor, None, None
        if monitor is not None:
            monitor.close()

    def _start(self) -> Monitor:
        monitor = self._make()
        try:
            monitor.start()
            monitor.sample()
        except BaseException:
            monitor.close()
            raise
        return monitor


def activity(watch: Watch, pool: Pool) -> Activity:
    """The latest sample, and what is loaded now."""
    sample = watch.sample
    return Activity(
        time_s=None if sample is None else sample.time_s,
        failure=watch.failure,
        devices=[_use(device) for device in (() if sample is None else sample.devices)],
        models=[
            _loaded(entry, entry.model, sample, pool.taken(entry.name))
            for entry in pool.entries.values()
            if entry.model is not None
        ],
    )


def _loaded(entry: Entry, model: Model, sample: Sample | None, taken: Default | None) -> LoadedModel:
    device = None if sample is None else find_device(sample.devices, model.device, model.address)
    auto = taken is not None and taken.entry is entry
    _, device_word, runtime_word = entry.labels
    return LoadedModel(
        id=entry.name,
        device=device_word,
        device_id=None if device is None else device.id,
        runtime=runtime_word,
        runtime_name=model.runtime,
        precision=model.precision,
        auto=auto,
        notes=[*(taken.notes if taken is not None and auto else ()), *model.notes],
    )


def _use(device: DeviceSample) -> DeviceUse:
    unknown = device.not_readable.get("utilisation")
    return DeviceUse(
        id=device.id,
        name=device.name,
        kind=device.kind,
        utilisation=device.utilisation,
        memory_used_bytes=device.memory_used_bytes,
        memory_total_bytes=device.memory_total_bytes,
        power_w=device.power_w,
        not_readable=unknown.reason if unknown else "",
    )
