"""The measuring: rounds over all cells, so that a machine that drifts slows all alike.

In each round each cell is loaded into a fresh process and answers one prompt of each length. Prompts are
random token ids, never the same twice: nothing that a runtime keeps of one helps with the next. Time is taken
where a token is received. The first token ends the prefill; each later one is a decode step.
"""

from __future__ import annotations

import datetime
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path

import aipc
from aipc.bench import machine
from aipc.bench.cells import Cell
from aipc.errors import AipcError, CheckpointError, ModelNotFoundError, PromptTooLongError, UsageError
from aipc.measurements.record import Load, Options, Record, Request
from aipc.model import Model
from aipc.monitor import Monitor, Sample
from aipc.monitor.usage import find_device
from aipc.types import Progress

# The first request warms the process; how long its answer is changes nothing.
_WARM_TOKENS = 2
# On Windows a thread that waits without a limit does not hear Ctrl+C.
_WAIT_S = 0.2
_SAMPLE_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Step:
    """How far a benchmark is.

    what     was measured last
    left_s   until the end, if the same takes as long as before
    """

    what: str
    done: int
    total: int
    left_s: float


class Benchmark:
    """Measures the cells of one model; what a cell cannot do is kept with its figures.

    raises   UsageError for numbers that cannot be
    """

    def __init__(self, source: str | Path, cells: Sequence[Cell], options: Options) -> None:
        _check(options)
        self._source = source
        self._cells = cells
        self._options = options
        self._bandwidths: list[float] = []
        self._random = random.Random(0)  # noqa: S311 - token ids, no secrets

    def prepare(self, progress: Callable[[Progress], None] | None = None) -> None:
        """Download and convert what the cells need, so that this is in no figure.

        raises   ModelNotFoundError, CheckpointError: they hold for every cell
        """
        for cell in self._cells:
            try:
                cell.prepare(self._source, progress)
            except (ModelNotFoundError, CheckpointError):
                raise
            except AipcError as exc:
                cell.fail(exc)

    def run(self, command: Sequence[str], progress: Callable[[Step], None] = lambda step: None) -> Record:
        """Measure all, until the end or Ctrl+C.

        command   the words that were typed, for the record
        """
        created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        interrupted = False
        try:
            with Monitor(_SAMPLE_EVERY_S) as monitor:
                self._run(monitor, progress)
        except KeyboardInterrupt:
            interrupted = True
        return Record(
            model=str(self._source),
            created=created,
            command=tuple(command),
            versions=machine.versions(),
            machine=machine.machine(),
            on_mains=machine.on_mains(),
            options=self._options,
            # What slows a measurement down is always something else: the best of them is the machine's.
            bandwidth_bytes_per_s=max(self._bandwidths, default=0.0),
            interrupted=interrupted,
            cells=tuple(cell.record() for cell in self._cells),
        )

    def _run(self, monitor: Monitor, progress: Callable[[Step], None]) -> None:
        able = [index for index, cell in enumerate(self._cells) if not cell.failed]
        timeline = _Timeline(able, self._options, progress)
        for number in range(self._options.rounds):
            self._bandwidths.append(machine.memory_bandwidth())
            turn = number % len(self._cells)
            order = [*range(len(self._cells))]
            for index in (*order[turn:], *order[:turn]):
                cell = self._cells[index]
                try:
                    for part in self._measure(cell, number, monitor):
                        timeline.done(index, part, f"{cell.device} with {cell.runtime}")
                except AipcError as exc:
                    cell.fail(exc)
                timeline.end_round(index, 0 if cell.failed else self._options.rounds - number - 1)

    def _measure(self, cell: Cell, number: int, monitor: Monitor) -> Iterator[int]:
        """One round of one cell; yields 0 after its load, and each length after its answers or none."""
        if cell.failed or cell.ready is None:
            return
        compiled = not cell.is_compiled()
        others, started = machine.child_processes(), time.time()
        with aipc.load(cell.ready.folder, cell.device, cell.runtime) as model:
            computing = machine.child_processes() - others
            first = ask(model, self._prompt(model, self._options.prompt_tokens[0]), _WARM_TOKENS)
            yield 0
            for length in self._options.prompt_tokens:
                if not cell.refuses(length):
                    try:
                        cell.requests += self._ask_all(model, monitor, number, length)
                    except PromptTooLongError as exc:
                        cell.fail(exc, length)
                yield length
            peak_bytes = machine.peak_bytes(computing)
            samples = [sample for sample in monitor.samples if sample.time_s >= started]
        cell.loads.append(
            Load(
                round=number,
                load_s=model.load_s,
                compiled=compiled,
                first_inference_s=first.ttft_s,
                peak_bytes=peak_bytes,
                device_peak_bytes=_device_peak_bytes(samples, model),
                system_rise_bytes=_system_rise_bytes(samples),
            )
        )

    def _ask_all(self, model: Model, monitor: Monitor, number: int, prompt_tokens: int) -> list[Request]:
        """As many answers at once as were asked for."""
        streams = self._options.concurrency
        prompts = [self._prompt(model, prompt_tokens) for _ in range(streams)]
        new_tokens = self._options.new_tokens
        if streams == 1:
            return [replace(ask(model, prompts[0], new_tokens, monitor), round=number)]
        with ThreadPoolExecutor(streams) as pool:
            asked = [pool.submit(ask, model, prompt, new_tokens, monitor) for prompt in prompts]
            try:
                while wait(asked, timeout=_WAIT_S).not_done:
                    pass
            except BaseException:
                # The streams end with it, and so do their threads.
                model.close()
                raise
        return [replace(each.result(), round=number, stream=stream) for stream, each in enumerate(asked)]

    def _prompt(self, model: Model, tokens: int) -> list[int]:
        return [self._random.randrange(model.text.vocab_size) for _ in range(tokens)]


def ask(model: Model, prompt: Sequence[int], new_tokens: int, monitor: Monitor | None = None) -> Request:
    """One answer, in which an end of text ends nothing.

    raises   as Model.stream
    """
    arrivals: list[float] = []
    stats = None
    asked = time.perf_counter()
    for chunk in model.stream(prompt, max_new_tokens=new_tokens, ignore_eos=True, monitor=monitor):
        now = time.perf_counter()
        arrivals += [now] * len(chunk.token_ids)
        stats = chunk.stats
    return Request(
        round=0,
        stream=0,
        prompt_tokens=len(prompt),
        generated_tokens=len(arrivals),
        stopped_early=len(arrivals) < new_tokens,
        ttft_s=arrivals[0] - asked if arrivals else None,
        steps_s=tuple(later - earlier for earlier, later in itertools.pairwise(arrivals)),
        mean_utilisation=stats.mean_utilisation if stats else None,
        energy_j=stats.energy_j if stats else None,
    )


def _device_peak_bytes(samples: Sequence[Sample], model: Model) -> int | None:
    """The most that our processes held of a GPU's or an NPU's memory, where its driver tells that."""
    if model.device == "CPU":
        return None
    found = (find_device(sample.devices, model.device, model.address) for sample in samples)
    held = (device.own_memory_bytes for device in found if device is not None)
    return max((size for size in held if size is not None), default=None)


def _system_rise_bytes(samples: Sequence[Sample]) -> int | None:
    """How much more of the system's memory was in use than in the first sample, whoever used it."""
    found = (find_device(sample.devices, "CPU") for sample in samples)
    used = [device.memory_used_bytes for device in found if device and device.memory_used_bytes is not None]
    return max(used) - used[0] if used else None


class _Timeline:
    """What is left, and how long it will take: as long as the same took before.

    A part of a cell's round is a length, or 0 for its load.
    """

    def __init__(self, cells: Sequence[int], options: Options, report: Callable[[Step], None]) -> None:
        self._left = {(cell, part): options.rounds for cell in cells for part in (0, *options.prompt_tokens)}
        self._took_s: dict[tuple[int, int], float] = {}
        self._total = sum(self._left.values())
        self._report = report
        self._last = time.perf_counter()

    def done(self, cell: int, part: int, what: str) -> None:
        """A part of a cell's round has ended."""
        now = time.perf_counter()
        self._took_s[cell, part], self._last = now - self._last, now
        self._left[cell, part] -= 1
        left = sum(self._left.values())
        self._report(Step(what, self._total - left, self._total, self._left_s()))

    def end_round(self, cell: int, rounds: int) -> None:
        """A cell has so many rounds left, whatever came of this one."""
        for key in self._left:
            if key[0] == cell:
                self._left[key] = min(self._left[key], rounds)
        self._last = time.perf_counter()

    def _left_s(self) -> float:
        return sum(count * self._expected_s(*key) for key, count in self._left.items())

    def _expected_s(self, cell: int, part: int) -> float:
        """What is not known yet takes as long as the same part of the other cells, or as any part."""
        if (cell, part) in self._took_s:
            return self._took_s[cell, part]
        alike = [seconds for (_, other), seconds in self._took_s.items() if other == part]
        return statistics.mean(alike or self._took_s.values())


def _check(options: Options) -> None:
    """Refuse numbers that cannot be.

    raises   UsageError
    """
    if not options.prompt_tokens or min(options.prompt_tokens) < 1:
        raise UsageError("a prompt has at least 1 token", hint="--prompt-tokens 32,256,1024")
    if options.new_tokens < 2:
        raise UsageError("new tokens are at least 2: the first is no decode step", hint="--new-tokens 64")
    if options.rounds < 1 or options.concurrency < 1:
        raise UsageError("rounds and streams at once are at least 1")
