"""aipc's engines as bench_agreement.py runs them: they also keep what the runtime's own clock says.

The environment names the engine and a file, to which each answer adds a line: seconds to its first token, and
of each later step. OpenVINO GenAI's are its perf_metrics of that very request. ONNX Runtime has none: there
they are the moments at which its computations return, from the first one's beginning on.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENGINE, FILE = "AIPC_AGREEMENT_ENGINE", "AIPC_AGREEMENT_FILE"


def main() -> None:
    """Serve the caller at the other end of stdin and stdout."""
    {"openvino": openvino, "onnxruntime": onnxruntime, "onnxruntime-genai": onnxruntime_genai}[
        os.environ[ENGINE]
    ]()


def keep(ttft_s: float, steps_s: list[float]) -> None:
    """Add a line, when the answer is already with the caller."""
    with Path(os.environ[FILE]).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"ttft_s": ttft_s, "steps_s": steps_s}) + "\n")


def openvino() -> None:
    """The engine of the CPU, whose requests know their metrics."""
    from aipc.runtimes import openvino_engine as engine

    class Clocked(engine.BatchEngine):
        def _deliver(self, *boxes: Any) -> None:
            before = dict(self._streams)
            super()._deliver(*boxes)
            for number in before.keys() - self._streams.keys():
                metrics = before[number].get_perf_metrics()
                steps_s = [duration / 1e6 for duration in metrics.raw_metrics.m_durations]
                keep(metrics.get_ttft().mean / 1000, steps_s)

    engine.BatchEngine = Clocked  # type: ignore[misc]
    engine.main()


class Clock:
    """The moments of one answer: when its first computation began, and when scores were there."""

    def __init__(self) -> None:
        self._began: float | None = None
        self._ends: list[float] = []

    def timed(self, compute: Callable[..., Any], *, scores: bool) -> Callable[..., Any]:
        """A method that computes, or with `scores` the one whose return gives them."""

        def call(*given: Any, **named: Any) -> Any:
            self._began = self._began or time.perf_counter()
            result = compute(*given, **named)
            if scores:
                self._ends.append(time.perf_counter())
            return result

        return call

    def begin(self) -> None:
        """Forget what was before."""
        self._began, self._ends = None, []

    def end(self) -> None:
        """Keep the answer's line."""
        if self._began is not None and self._ends:
            steps_s = [later - earlier for earlier, later in itertools.pairwise(self._ends)]
            keep(self._ends[0] - self._began, steps_s)
        self.begin()


def onnxruntime() -> None:
    """aipc's own engine over ONNX Runtime."""
    from aipc.runtimes import onnxruntime_batching as engine

    clock, decoder, ended = Clock(), engine.Decoder, engine.BatchEngine._end

    def end(self: Any, *given: Any) -> None:
        ended(self, *given)
        clock.end()

    decoder.step = clock.timed(decoder.step, scores=True)  # type: ignore[method-assign]
    decoder.extend = clock.timed(decoder.extend, scores=False)  # type: ignore[method-assign]
    engine.BatchEngine._end = end  # type: ignore[method-assign]
    engine.main()


def onnxruntime_genai() -> None:
    """The engine over onnxruntime-genai, which serves CUDA and DirectML, here on the CPU."""
    from aipc.runtimes import onnxruntime_engine as engine

    clock, cache, answer = Clock(), engine.KVCache, engine.OnnxEngine._answer

    def clocked(self: Any, *given: Any) -> None:
        clock.begin()
        answer(self, *given)
        clock.end()

    cache.append = clock.timed(cache.append, scores=False)  # type: ignore[method-assign]
    cache.logits = clock.timed(cache.logits, scores=True)  # type: ignore[method-assign]
    engine.OnnxEngine._answer = clocked  # type: ignore[method-assign]
    engine.main()
