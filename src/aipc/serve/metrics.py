"""What `/metrics` tells Prometheus. No prompt, answer or client is in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aipc.serve.pool import Pool
from aipc.serve.watch import Watch
from aipc.types import Stats

# What tells a loaded model from all others.
_PLACE = ["model", "device", "runtime"]
_TTFT_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TPOT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """Counters of one server. How far the devices are used is in them once the watch has a sample."""

    def __init__(self, pool: Pool, watch: Watch) -> None:
        # Otherwise each counter has a second line that says when it began.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(_PoolCollector(pool))
        self._registry.register(_DeviceCollector(watch))
        self.requests = Counter(
            "aipc_requests", "Requests by route and status.", ["route", "status"], registry=self._registry
        )
        self.replays = Counter(
            "aipc_replays",
            "Answers begun anew after their process was lost.",
            _PLACE,
            registry=self._registry,
        )
        self._prompt_tokens = Counter(
            "aipc_prompt_tokens", "Tokens of answered prompts.", _PLACE, registry=self._registry
        )
        self._generated_tokens = Counter(
            "aipc_generated_tokens", "Tokens of answers.", _PLACE, registry=self._registry
        )
        self._ttft = Histogram(
            "aipc_time_to_first_token_seconds",
            "From the request's arrival, queue and load included.",
            _PLACE,
            buckets=_TTFT_S,
            registry=self._registry,
        )
        self._tpot = Histogram(
            "aipc_time_per_output_token_seconds",
            "Mean of the tokens after the first, for each answer.",
            _PLACE,
            buckets=_TPOT_S,
            registry=self._registry,
        )

    def first_token(self, place: Sequence[str], ttft_s: float) -> None:
        """An answer has begun.

        place   model, device and runtime
        """
        self._ttft.labels(*place).observe(ttft_s)

    def answered(self, place: Sequence[str], stats: Stats) -> None:
        """An answer is complete."""
        self._prompt_tokens.labels(*place).inc(stats.prompt_tokens)
        self._generated_tokens.labels(*place).inc(stats.generated_tokens)
        if stats.tpot_s is not None:
            self._tpot.labels(*place).observe(stats.tpot_s)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)


class Counted:
    """Counts the responses of an application."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on, and note the status."""

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "none")
                self._metrics.requests.labels(route, message["status"]).inc()
            await send(message)

        await self._app(scope, receive, noting)


class _PoolCollector(Collector):
    """The state of the pool at the moment of the question."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def collect(self) -> Iterator[Metric]:
        """One gauge for each thing that is counted, one sample for each model."""
        running = GaugeMetricFamily("aipc_requests_running", "Answers under way.", labels=_PLACE)
        waiting = GaugeMetricFamily("aipc_requests_waiting", "Answers in the queue.", labels=_PLACE)
        memory = GaugeMetricFamily(
            "aipc_model_memory_bytes", "Of a loaded model's process, when last measured.", labels=_PLACE
        )
        for entry in self._pool.entries.values():
            running.add_metric(entry.labels, entry.slots.running)
            waiting.add_metric(entry.labels, entry.slots.waiting)
            if entry.model is not None:
                memory.add_metric(entry.labels, entry.memory_bytes)
        yield from (running, waiting, memory)


class _DeviceCollector(Collector):
    """The devices in the latest sample; a counter that can't be read has no line."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def collect(self) -> Iterator[Metric]:
        """One gauge for each counter, one sample for each device."""
        labels = ["device", "kind"]
        busy = GaugeMetricFamily("aipc_device_utilisation_ratio", "Share of the last second.", labels=labels)
        memory = GaugeMetricFamily(
            "aipc_device_memory_used_bytes", "Of the device, or the system.", labels=labels
        )
        power = GaugeMetricFamily("aipc_device_power_watts", "Mean of the last second.", labels=labels)
        for device in () if self._watch.sample is None else self._watch.sample.devices:
            for family, value in (
                (busy, device.utilisation),
                (memory, device.memory_used_bytes),
                (power, device.power_w),
            ):
                if value is not None:
                    family.add_metric([device.id, device.kind], value)
        yield from (busy, memory, power)
